"""YOLO's labels, as Ultralytics (8.x, "Object Detection Datasets Overview") and Darknet have them: a text file for each
image, a line for each object.

A line is the class, counted from 0, and centre, width and height of the box's edges in units of the image's sides. Six
decimals are 0.01 pixel of an image of 10,000. Ultralytics writes scores behind them on request, but takes none when it
trains, nor do annotation tools.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from refinedet.files import write_text
from refinedet.interchange.edges import Found, to_edges


def to_yolo(detections: Found, *, scores: bool = False) -> str:
    """The lines of one image, "class x y width height"; ``scores``: and the score."""
    height, width = detections.size
    edges = to_edges(detections) / (width, height, width, height)
    low, high = edges[:, :2], edges[:, 2:]
    centres, sides = ((low + high) / 2).tolist(), (high - low).tolist()
    columns = detections.labels.tolist(), centres, sides, detections.scores.tolist()
    return "".join(
        f"{label - 1} {x:.6f} {y:.6f} {w:.6f} {h:.6f}{f' {score:.6f}' if scores else ''}\n"
        for label, (x, y), (w, h), score in zip(*columns, strict=True)
    )


class YOLOFolder:
    """``labels/NAME.txt``, empty where nothing was found, ``images/``, and the names of the classes: ``data.yaml`` for
    Ultralytics, ``classes.txt`` for Label Studio and labelImg."""

    images = "images"

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._root = root
        self._classes = classes

    def add(self, image: str, detections: Found) -> None:
        """Write the lines of an image."""
        write_text(self._root / "labels" / f"{Path(image).stem}.txt", to_yolo(detections))

    def close(self) -> None:
        """Write the names of the classes. Without ``path`` Ultralytics takes the file's own folder for the root."""
        names = "".join(
            f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(self._classes)
        )
        write_text(self._root / "data.yaml", f"train: {self.images}\nval: {self.images}\nnames:\n{names}")
        write_text(self._root / "classes.txt", "".join(f"{name}\n" for name in self._classes))
