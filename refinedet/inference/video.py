"""Detection in a video: frames in batches, an annotated mp4 and the detections of every frame."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from refinedet.errors import DataError
from refinedet.files import atomic_write
from refinedet.inference.detector import Detector
from refinedet.inference.draw import draw
from refinedet.inference.pictures import batches
from refinedet.progress import SHORT, show_progress
from refinedet.records import Detections

DEFAULT_FPS = 25.0  # for containers that do not tell
CODEC = "mp4v"  # the one mp4 codec that every OpenCV wheel can write


@dataclass(frozen=True)
class VideoInfo:
    """Frame size in pixels, frames per second, and the number of frames the container promises (0: unknown)."""

    height: int
    width: int
    fps: float
    frames: int


@dataclass(frozen=True)
class VideoResult:
    """What was done: ``frames`` frames were read and written to ``output``."""

    info: VideoInfo
    frames: int
    output: Path

    @property
    def damaged(self) -> bool:
        """Whether the video broke off early. Containers estimate their count from the duration: less than a second
        short is taken for that."""
        return self.frames < self.info.frames - self.info.fps


def detect_video(
    detector: Detector,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    score_threshold: float = 0.5,
    batch_size: int = 8,
    progress: bool = False,
    on_frame: Callable[[int, Detections], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> VideoResult:
    """Detect in every frame of the video ``source`` and write the annotated mp4 ``output``, whole or not at all.

    ``batch_size`` frames are in memory at a time. ``on_frame(index, detections)`` is called for each frame in order;
    the boxes are in pixels of the frame. When ``stop()`` is true after a batch, that is the last. The mp4 has even
    sides: of an odd one the last row or column is cut.
    A video that breaks off is written as far as it goes, see `VideoResult.damaged`.
    Raises DataError when ``source`` is absent, no video, or without a readable frame, or ``output`` cannot be written.
    """
    count = 0
    with _reader(source) as (info, frames), atomic_write(output) as temporary:
        name = Path(source).name
        bar = show_progress(name, "frame", info.frames or None, delay=SHORT, shown=progress)
        with bar, _writer(temporary, info) as writer:
            for batch in batches(frames, batch_size):
                found = detector.detect(batch, score_threshold=score_threshold, batch_size=batch_size)
                for frame, detections in zip(batch, found, strict=True):
                    writer.write(draw(frame, detections, score_threshold))
                    if on_frame is not None:
                        on_frame(count, detections)
                    count += 1
                bar.update(len(batch))
                if stop is not None and stop():
                    break
        _check_written(temporary, output)
    return VideoResult(info, count, Path(output))


@contextmanager
def _reader(path: str | os.PathLike[str]) -> Iterator[tuple[VideoInfo, Iterator[np.ndarray]]]:
    """Open a video whose first frame can be read; yields what is known of it and its frames."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; check the path")
    capture = cv2.VideoCapture(os.fspath(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: not a video that OpenCV can open; convert it to mp4 or replace it")
        readable, first = capture.read()
        if not readable:
            raise DataError(f"{path}: a video without a readable frame; convert it to mp4 or replace it")
        fps = capture.get(cv2.CAP_PROP_FPS)
        info = VideoInfo(
            height=first.shape[0],
            width=first.shape[1],
            fps=fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS,
            frames=max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))),
        )
        yield info, _frames(capture, first)
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture, first: np.ndarray) -> Iterator[np.ndarray]:
    """All frames, in the size of the first: a writer drops frames of another size without a word."""
    height, width = first.shape[:2]
    frame = first
    while frame is not None:
        yield frame if frame.shape[:2] == (height, width) else cv2.resize(frame, (width, height))
        frame = capture.read()[1]


@contextmanager
def _writer(path: Path, info: VideoInfo) -> Iterator[cv2.VideoWriter]:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODEC), info.fps, (info.width, info.height))
    try:
        if not writer.isOpened():
            size = f"{info.width}x{info.height}"
            raise DataError(
                f"{path.parent}: OpenCV cannot write a {size} mp4 there; choose another folder for the output"
            )
        yield writer
    finally:
        writer.release()


def _check_written(temporary: Path, output: str | os.PathLike[str]) -> None:
    """OpenCV's writer never reports a full disk: see that the file it left has a frame."""
    capture = cv2.VideoCapture(str(temporary))
    readable = capture.isOpened() and capture.read()[0]
    capture.release()
    if not readable:
        raise DataError(f"{output}: the annotated video could not be written; is the disk full?")
