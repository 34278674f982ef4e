"""Annotated copies of many images and videos, and the account of what was found in each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from refinedet.commands.messages import explain
from refinedet.commands.save import Saver
from refinedet.data.images import read_image, write_image
from refinedet.errors import DataError, printable
from refinedet.inference.detector import Detector, OnScale, scale_teller
from refinedet.inference.draw import draw
from refinedet.inference.pictures import batches
from refinedet.inference.timing import STAGES, timed
from refinedet.inference.video import detect_video
from refinedet.interrupt import StopRequest, stop_on_interrupt
from refinedet.progress import SHORT, Progress, show_progress
from refinedet.protocols import Protocol
from refinedet.records import Detections

TIMED = (*STAGES, "draw")
MOST_COLUMNS = 60  # for the path of an image; a longer one shifts its line

_Batch: TypeAlias = list[tuple[Path, np.ndarray]]


@dataclass
class Annotator:
    """Detects in images and videos, draws what it finds on copies of them, and saves it as data sets.

    An input that cannot be read, and one whose copy cannot be written, goes to ``failures`` and the others go on; a
    video that breaks off is both there and in ``done``. After Ctrl-C or SIGTERM (``interrupted``) what was begun is
    finished, the rest is left.
    """

    detector: Detector
    targets: dict[Path, Path]  # annotated copy of each input
    protocol: Protocol | None  # None: the detector's preset
    score_threshold: float
    batch_size: int
    say: Callable[[str], None]  # prints a line for people: a result
    note: Callable[[str], None]  # and what --quiet leaves out
    each_object: bool  # a line for each object of an image, not for each image
    keep_records: bool  # for to_json
    saver: Saver | None = None  # of the images
    done: list[Path] = field(default_factory=list)
    failures: dict[Path, Exception] = field(default_factory=dict)
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
                try:
                    self._run_images(images)
                finally:
                    if self.saver is not None:
                        self.saver.close()
            for video in videos:
                if not self.interrupted:
                    self._run_video(video)

    def to_json(self) -> dict[str, Any]:
        """What was found, for ``--json``: boxes are x1, y1, x2, y2 in pixels of the original image or frame."""
        return {
            "classes": list(self.detector.classes),
            "protocol": None if self.protocol is None else self.protocol.name,
            "score_threshold": self.score_threshold,
            "images": self.images,
            "videos": self.videos,
            "failed": [{"path": str(path), "error": explain(error)} for path, error in self.failures.items()],
            "remaining": [str(path) for path in self.remaining],
        }

    def _run_images(self, images: Sequence[Path]) -> None:
        account = _Account(images, self.detector.classes, self.each_object, self.say)
        speed = Speed()
        with show_progress("detecting", "image", len(images), delay=SHORT) as bar:
            stream = batches(self._readable(images, bar), self.batch_size)
            while batch := self._next(stream, speed):
                found = self._find([image for _, image in batch], speed.seconds, scale_teller(bar))
                with timed(speed.seconds, "draw"):
                    done = [each for each in zip(batch, found, strict=True) if self._finish_image(*each[0], each[1])]
                speed.count(len(batch))
                for (path, _), detections in done:
                    account.add(path, detections)
        if self.done:
            account.close()
            self.note(speed.text(len(self.done)))

    @staticmethod
    def _next(stream: Iterator[_Batch], speed: Speed) -> _Batch:
        with timed(speed.seconds, "decode"):
            return next(stream, [])

    def _readable(self, images: Sequence[Path], bar: Progress) -> Iterator[tuple[Path, np.ndarray]]:
        for path in images:
            if self.interrupted:
                return
            try:
                yield path, read_image(path, apply_exif=True)
            except DataError as error:
                self.failures[path] = error
            bar.update()

    def _find(self, images: list[np.ndarray], seconds: dict[str, float], on_scale: OnScale) -> list[Detections]:
        paths = [None] * len(images)
        return self.detector.detect_batch(images, paths, self.score_threshold, seconds, self.protocol, on_scale)

    def _finish_image(self, path: Path, image: np.ndarray, detections: Detections) -> bool:
        """Write the annotated copy, and what is saved; whether it could be written."""
        target = self.targets[path]
        try:
            write_image(target, draw(image, detections, self.score_threshold))
            if self.saver is not None:
                self.saver.add(path, image, detections)
        except (DataError, OSError) as error:
            self.failures[path] = error
            return False
        self.done.append(path)
        if self.keep_records:
            height, width = detections.size
            record = {"path": str(path), "output": str(target), "width": width, "height": height}
            self.images.append({**record, "detections": _rows(detections)})
        return True

    def _run_video(self, path: Path) -> None:
        frames: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        warm = time.perf_counter()  # when the first batch of frames is done

        def on_frame(index: int, detections: Detections) -> None:
            nonlocal warm
            if index < self.batch_size:
                warm = time.perf_counter()
            counts.update(detections.names)
            if self.keep_records:
                frames.append({"frame": index, "detections": _rows(detections)})

        try:
            result = detect_video(
                self.detector,
                path,
                self.targets[path],
                protocol=self.protocol,
                score_threshold=self.score_threshold,
                batch_size=self.batch_size,
                progress=True,
                on_frame=on_frame,
                stop=lambda: self.interrupted,
            )
        except (DataError, OSError) as error:
            self.failures[path] = error
            return
        later = result.frames - self.batch_size
        rate = f" ({later / (time.perf_counter() - warm):.1f} per second after the first call)" if later > 0 else ""
        self.say(
            f"{printable(path)}: {result.frames} frames{rate}; objects, all frames together: {_count_text(counts)}"
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


class Speed:
    """The time of each stage per image. The first batch warms up and does not count."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(TIMED, 0.0)  # added up by `timed`
        self._start = time.perf_counter()
        self._first = self._images = 0

    def count(self, images: int) -> None:
        """Count a batch of so many images, when it is done."""
        if not self._first:
            self._first = images
            self.seconds = dict.fromkeys(TIMED, 0.0)
        else:
            self._images += images

    def text(self, done: int) -> str:
        """The line that tells it; ``done``: the images whose copies were written."""
        if not self._images:
            return f"{_number(done, 'image')}, all in the first call, which warms up; refinedet benchmark tells speed"
        stages = ", ".join(f"{stage} {1000 * self.seconds[stage] / self._images:.1f}" for stage in TIMED)
        took = time.perf_counter() - self._start
        first = f"the first call of {self._first} left out"
        return f"{_number(done, 'image')} in {took:.2f} s; ms per image, {first}: {stages}"


class _Account:
    """What was found, in lines of fixed columns as it is found: each object, or each image and totals at the end."""

    def __init__(
        self, images: Sequence[Path], classes: Sequence[str], each_object: bool, say: Callable[[str], None]
    ) -> None:
        self._width = min(MOST_COLUMNS, max(len("image"), *(len(printable(path)) for path in images)))
        self._class_width = max(len("class"), *(len(printable(name)) for name in classes))
        self._each_object, self._say = each_object, say
        self._counts: Counter[str] = Counter()
        self._begun = False

    def add(self, path: Path, detections: Detections) -> None:
        """Tell of one image; a line says so when nothing was found."""
        if self._each_object and not self._begun:
            self._say(self._line("image", "class", "score", ("x1", "y1", "x2", "y2")))
        self._begun = True
        counts = Counter(detections.names)
        self._counts += counts
        image = f"{printable(path):{self._width}}"
        if not counts:
            self._say(f"{image}  nothing found")
        elif not self._each_object:
            self._say(f"{image}  {_count_text(counts)}")
        else:
            rows = zip(detections.names, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
            for name, score, box in rows:
                self._say(self._line(image, printable(name), f"{score:.3f}", (f"{v:.1f}" for v in box)))

    def close(self) -> None:
        """Tell the totals, where no line has each object."""
        if not self._each_object:
            self._say(f"{_number(self._counts.total(), 'object')} in all images: {_count_text(self._counts)}")

    def _line(self, image: str, name: str, score: str, box: Iterable[str]) -> str:
        corners = "  ".join(f"{value:>6}" for value in box)
        return f"{image:{self._width}}  {name:{self._class_width}}  {score:>5}  {corners}"


def _count_text(counts: Counter[str]) -> str:
    return ", ".join(f"{printable(name)} {count}" for name, count in counts.most_common()) or "none"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _rows(detections: Detections) -> list[dict[str, Any]]:
    columns = (detections.names, detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
    return [
        {"class": name, "label": label, "score": round(score, 6), "box": [round(value, 3) for value in box]}
        for name, label, score, box in zip(*columns, strict=True)
    ]
