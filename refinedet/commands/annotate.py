"""Annotated copies of many images and videos, and the account of what was found in each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refinedet.data import read_image
from refinedet.errors import DataError
from refinedet.files import atomic_write
from refinedet.inference.detector import Detector
from refinedet.inference.draw import draw
from refinedet.inference.pictures import batches
from refinedet.inference.video import detect_video
from refinedet.interrupt import StopRequest, stop_on_interrupt
from refinedet.progress import SHORT, Progress, show_progress
from refinedet.records import Detections


@dataclass
class Annotator:
    """Detects in images and videos, and draws what it finds on copies of them.

    An input that cannot be read goes to ``failures`` and the others go on; a video that breaks off is both there and in
    ``done``. After Ctrl-C or SIGTERM (``interrupted``) what was begun is finished, the rest is left.
    """

    detector: Detector
    targets: dict[Path, Path]  # annotated copy of each input
    score_threshold: float
    batch_size: int
    say: Callable[[str], None]  # prints a line for people
    keep_records: bool  # for to_json
    done: list[Path] = field(default_factory=list)
    failures: dict[Path, DataError] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)
    stop: StopRequest = field(default_factory=StopRequest, init=False)

    @property
    def interrupted(self) -> bool:
        """Whether someone asked to stop."""
        return self.stop.made

    @property
    def remaining(self) -> list[Path]:
        """The inputs that were not reached."""
        return [path for path in self.targets if path not in self.failures and path not in self.done]

    def run(self, images: Sequence[Path], videos: Sequence[Path]) -> None:
        """Detect in all images, then in all videos; writes the annotated copies and tells what was found."""
        with stop_on_interrupt(self.stop):
            if images:
                self._run_images(images)
            for video in videos:
                if not self.interrupted:
                    self._run_video(video)

    def to_json(self) -> dict[str, Any]:
        """What was found, for ``--json``: boxes are x1, y1, x2, y2 in pixels of the original image or frame."""
        return {
            "classes": list(self.detector.classes),
            "score_threshold": self.score_threshold,
            "images": self.images,
            "videos": self.videos,
            "failed": [{"path": str(path), "error": str(error)} for path, error in self.failures.items()],
            "remaining": [str(path) for path in self.remaining],
        }

    def _run_images(self, images: Sequence[Path]) -> None:
        started = time.perf_counter()
        network_seconds = 0.0
        table = _Table(images, self.detector.classes)
        with show_progress("detecting", "image", len(images), delay=SHORT) as bar:
            for batch in batches(self._readable(images, bar), self.batch_size):
                before = time.perf_counter()
                found = self._find([image for _, image in batch])
                network_seconds += time.perf_counter() - before
                for (path, image), detections in zip(batch, found, strict=True):
                    self._finish_image(path, image, detections, table)
        if done := len(self.done):
            seconds = time.perf_counter() - started
            self.say("\n".join(table.lines))
            self.say(
                f"{done} image{'s' * (done != 1)} in {seconds:.2f} s; detection {1000 * network_seconds / done:.1f} ms "
                "per image, without reading and drawing"
            )

    def _readable(self, images: Sequence[Path], bar: Progress) -> Iterator[tuple[Path, np.ndarray]]:
        for path in images:
            if self.interrupted:
                return
            try:
                yield path, read_image(path, apply_exif=True)
            except DataError as error:
                self.failures[path] = error
            bar.update()

    def _find(self, images: list[np.ndarray]) -> list[Detections]:
        return self.detector.detect(images, score_threshold=self.score_threshold, batch_size=self.batch_size)

    def _finish_image(self, path: Path, image: np.ndarray, detections: Detections, table: _Table) -> None:
        target = self.targets[path]
        try:
            _write_image(target, draw(image, detections, self.score_threshold))
        except DataError as error:
            self.failures[path] = error
            return
        self.done.append(path)
        table.add(path, detections)
        if self.keep_records:
            height, width = detections.size
            record = {"path": str(path), "output": str(target), "width": width, "height": height}
            self.images.append({**record, "detections": _rows(detections)})

    def _run_video(self, path: Path) -> None:
        frames: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()

        def on_frame(index: int, detections: Detections) -> None:
            counts.update(detections.names)
            if self.keep_records:
                frames.append({"frame": index, "detections": _rows(detections)})

        started = time.perf_counter()
        try:
            result = detect_video(
                self.detector,
                path,
                self.targets[path],
                score_threshold=self.score_threshold,
                batch_size=self.batch_size,
                progress=True,
                on_frame=on_frame,
                stop=lambda: self.interrupted,
            )
        except DataError as error:
            self.failures[path] = error
            return
        seconds = time.perf_counter() - started
        objects = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
        self.say(
            f"{path}: {result.frames} frames in {seconds:.2f} s ({result.frames / seconds:.1f} per second); objects, "
            f"all frames together: {objects}"
        )
        self.done.append(path)
        if result.damaged:
            cause, fix = ("is interrupted", "") if self.interrupted else ("breaks off", "; replace the damaged file")
            reached = f"{result.frames} of {result.info.frames} frames"
            self.failures[path] = DataError(f"{path}: {cause} after {reached}, where the annotated copy ends{fix}")
        if self.keep_records:
            record = {"path": str(path), "output": str(result.output), "width": result.info.width}
            record |= {"height": result.info.height, "fps": result.info.fps, "damaged": result.damaged}
            self.videos.append({**record, "frames": frames})


class _Table:
    """The table of detections, in ``lines`` of fixed columns."""

    def __init__(self, images: Sequence[Path], classes: Sequence[str]) -> None:
        self._width = max(len("image"), *(len(str(path)) for path in images))
        self._class_width = max(len("class"), *(len(name) for name in classes))
        self.lines = [self._line("image", "class", "score", ("x1", "y1", "x2", "y2"))]

    def add(self, path: Path, detections: Detections) -> None:
        """One line per detection; one that says so when there is none."""
        rows = zip(detections.names, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
        lines = [self._line(path, name, f"{score:.3f}", (f"{v:.1f}" for v in box)) for name, score, box in rows]
        self.lines += lines or [f"{path!s:{self._width}}  nothing found"]

    def _line(self, image: object, name: str, score: str, box: Iterable[str]) -> str:
        corners = "  ".join(f"{value:>6}" for value in box)
        return f"{image!s:{self._width}}  {name:{self._class_width}}  {score:>5}  {corners}"


def _rows(detections: Detections) -> list[dict[str, Any]]:
    columns = (detections.names, detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
    return [
        {"class": name, "label": label, "score": round(score, 6), "box": [round(value, 3) for value in box]}
        for name, label, score, box in zip(*columns, strict=True)
    ]


def _write_image(path: Path, image: np.ndarray) -> None:
    encoded, data = cv2.imencode(path.suffix, image)
    if not encoded:  # a JPEG has at most 65,500 rows and columns
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DataError(f"{path}: OpenCV cannot write a {size} picture in this format; save the image as PNG")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())
