"""Detection in a video: frames in batches, an annotated mp4 and the detections of every frame."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from refinedet.data.headers import read_header
from refinedet.data.images import max_pixels
from refinedet.errors import DataError
from refinedet.files import atomic_write, utf8_path
from refinedet.inference.detector import Detector, Testing, check_options, scale_teller
from refinedet.inference.draw import draw
from refinedet.inference.pictures import batches
from refinedet.progress import SHORT, show_progress
from refinedet.protocols import get_protocol
from refinedet.records import Detections
from refinedet.silence import silent_decoders

DEFAULT_FPS = 25.0  # for containers that do not tell
CODEC = "mp4v"  # the one mp4 codec that every OpenCV wheel can write: MPEG-4 part 2
SIDES = (2, 8190)  # pixels that its pictures may have, in even numbers
RATES = (0.01, 65535.0)  # frames per second

# Names of files that can be nothing else: those that cannot be read are told as damaged videos. Not .ts and .mts, which
# TypeScript has as well.
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2",
     ".ogv", ".m2ts", ".vob", ".mxf", ".mjpeg", ".mjpg", ".h264", ".h265", ".hevc", ".dv", ".y4m")
)  # fmt: skip
STREAMS_OF_IMAGES = frozenset((".mjpeg", ".mjpg"))  # begin as their first image does
# How files begin that may hold a video. FFmpeg is no judge of that: it takes a text for a video of an old terminal. The
# brands left out are pictures of phones and cameras, and audio with a picture of its cover.
_CONTAINER = re.compile(
    rb"....ftyp(?!avi[fs]|hei[a-z]|hev[a-z]|m[is]f[12]|crx |M4[AB] )|....(?:moov|mdat|wide|free|skip|pnot)"
    rb"|RIFF....AVI |\x1a\x45\xdf\xa3|\x30\x26\xb2\x75\x8e\x66\xcf\x11|FLV\x01|OggS|\0\0\x01[\xb3\xba]"
    rb"|(?:.{4})?\x47.{187}(?:.{4})?\x47.{187}(?:.{4})?\x47"  # transport streams, also with times between packets
    rb"|YUV4MPEG2 |DKIF|nut/multimedia|\.RMF|\x06\x0e\x2b\x34",
    re.DOTALL,
)


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
    protocol: Testing = None,
    score_threshold: float = 0.5,
    batch_size: int = 8,
    progress: bool = False,
    on_frame: Callable[[int, Detections], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> VideoResult:
    """Detect in every frame of the video ``source`` and write the annotated mp4 ``output``, whole or not at all.

    ``protocol`` is that of `Detector.detect`. ``batch_size`` frames are in memory at a time.
    ``on_frame(index, detections)`` is called for each frame in order; the boxes are in pixels of the frame. When
    ``stop()`` is true after a batch, that is the last. Frames are turned as the container says, and written at one
    rate, also those of a video whose rate varies. The mp4 has even sides: of an odd one the last row or column is cut.
    A rate or size that MPEG-4 does not have is rounded or scaled, with a warning. A video that breaks off is written as
    far as it goes, see `VideoResult.damaged`.

    Raises DataError when ``source`` is absent, no video, without a readable frame, or of frames of more than
    `refinedet.data.images.max_pixels`, or when ``output`` cannot be written.
    """
    count = 0
    check_options(score_threshold, batch_size)
    testing = None if protocol is None else get_protocol(protocol)
    with _reader(source) as (info, frames), atomic_write(output) as temporary:
        name = Path(source).name
        bar = show_progress(name, "frame", info.frames or None, delay=SHORT, shown=progress)
        rate, size = _mp4_rate(info.fps), _mp4_size(info.height, info.width)
        if abs(rate - info.fps) > 0.001:  # what it has for more digits
            warnings.warn(
                f"{source}: MPEG-4 has no {info.fps:.7g} frames per second; written with {rate:.7g}", stacklevel=2
            )
        if size != (info.height, info.width):
            scaled = f"{info.width}x{info.height} pixels; scaled to {size[1]}x{size[0]}"
            warnings.warn(f"{source}: MPEG-4 has no frames of {scaled}", stacklevel=2)
        with bar, _writer(temporary, rate, size) as writer:
            for batch in batches(frames, batch_size):
                found = detector.detect_batch(
                    batch, [None] * len(batch), score_threshold, protocol=testing, on_scale=scale_teller(bar)
                )
                for frame, detections in zip(batch, found, strict=True):
                    writer.write(_scale(draw(frame, detections, score_threshold), size))
                    if on_frame is not None:
                        on_frame(count, detections)
                    count += 1
                bar.update(len(batch))
                if stop is not None and stop():
                    break
        _check_written(temporary, output)
    return VideoResult(info, count, Path(output))


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is to be read as a video, which its content decides: a container that a frame after the first can
    be read of, or a GIF with several. A file that cannot be read is a video when its name says so."""
    named = Path(path).suffix.lower() in VIDEO_SUFFIXES
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
            file.seek(0)
            image = read_header(file) is not None
    except OSError:
        return named
    if head.startswith(b"GIF8"):
        return _has_frames(path)
    if image:
        return Path(path).suffix.lower() in STREAMS_OF_IMAGES
    return named or (_CONTAINER.match(head) is not None and _has_frames(path))


def _has_frames(path: str | os.PathLike[str]) -> bool:
    """Two of them: a picture, or audio with one, has one."""
    capture = cv2.VideoCapture()
    try:
        with silent_decoders(), utf8_path(path) as name:
            return bool(capture.open(name)) and capture.read()[0] and capture.read()[0]
    finally:
        capture.release()


@contextmanager
def _reader(path: str | os.PathLike[str]) -> Iterator[tuple[VideoInfo, Iterator[np.ndarray]]]:
    """Open a video whose first frame can be read; yields what is known of it and its frames."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; check the path")
    if not is_video(path):
        raise DataError(f"{path}: not a video; give a file that OpenCV opens as one, or an image to `detect`")
    capture = cv2.VideoCapture()
    try:
        with silent_decoders(), utf8_path(path) as name:
            opened = capture.open(name)
        if not opened:
            raise DataError(f"{path}: not a video that OpenCV can open; convert it to mp4 or replace it")
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # the default of OpenCV 5, not of 4
        _check_size(capture, path)
        readable, first = _read(capture)
        if not readable:
            raise DataError(f"{path}: a video without a readable frame; convert it to mp4 or replace it")
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        info = VideoInfo(
            height=first.shape[0],
            width=first.shape[1],
            fps=fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS,
            frames=int(frames) if math.isfinite(frames) and frames > 0 else 0,
        )
        yield info, _frames(capture, first)
    finally:
        capture.release()


def _check_size(capture: cv2.VideoCapture, path: str | os.PathLike[str]) -> None:
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if width * height > max_pixels():
        raise DataError(
            f"{path}: frames of {width:.0f}x{height:.0f} pixels are more than {max_pixels()}; make them smaller, or "
            "allow more by the environment variable REFINEDET_MAX_PIXELS"
        )


def _read(capture: cv2.VideoCapture) -> tuple[bool, np.ndarray]:
    try:
        with silent_decoders():
            return capture.read()
    except cv2.error:  # a frame that OpenCV cannot hold
        return False, np.empty(0)


def _frames(capture: cv2.VideoCapture, first: np.ndarray) -> Iterator[np.ndarray]:
    """All frames, in the size of the first: a writer drops frames of another size without a word."""
    height, width = first.shape[:2]
    readable, frame = True, first
    while readable:
        yield _scale(frame, (height, width))
        readable, frame = _read(capture)


def _scale(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frame in a size of (height, width)."""
    return frame if frame.shape[:2] == size else cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)


def _mp4_rate(fps: float) -> float:
    """The nearest frame rate that can be written. OpenCV makes a fraction of its first three decimals, and MPEG-4 has
    16 bits for the numerator."""
    fps = min(max(fps, RATES[0]), RATES[1])
    rounded = (round(fps, digits) for digits in (3, 2, 1, 0))
    return next(rate for rate in rounded if Fraction(str(rate)).numerator <= RATES[1])


def _mp4_size(height: int, width: int) -> tuple[int, int]:
    """The nearest height and width that can be written, in the same proportion where that is possible."""
    scale = min(1.0, SIDES[1] / max(height, width))
    return max(SIDES[0], round(height * scale)), max(SIDES[0], round(width * scale))


@contextmanager
def _writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    height, width = size
    with utf8_path(path) as name:
        writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*CODEC), rate, (width, height))
    try:
        if not writer.isOpened():
            raise DataError(
                f"{path.parent}: OpenCV cannot write a {width}x{height} mp4 there; choose another folder for the output"
            )
        yield writer
    finally:
        writer.release()


def _check_written(temporary: Path, output: str | os.PathLike[str]) -> None:
    """OpenCV's writer never reports a full disk: see that the file it left has a frame."""
    with utf8_path(temporary) as name:
        capture = cv2.VideoCapture(name)
    readable = capture.isOpened() and _read(capture)[0]
    capture.release()
    if not readable:
        raise DataError(f"{output}: the annotated video could not be written; is the disk full?")
