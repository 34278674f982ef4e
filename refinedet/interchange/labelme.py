"""labelme's files (6.3.1): a JSON document for each image, beside it.

A rectangle is two corners of its edges, in pixels of the upright image. ``imagePath`` is relative to the document.
labelme keeps keys of a shape that it does not know, so the score stays with its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refinedet.files import write_text
from refinedet.interchange.edges import Found, to_edges
from refinedet.interchange.voc import DECIMALS
from refinedet.parsing import to_json

VERSION = "6.3.1"  # whose files these are


def to_labelme(detections: Found, image_path: str) -> dict[str, Any]:
    """The document of one image; ``image_path`` is relative to the document's folder."""
    height, width = detections.size
    edges = np.round(to_edges(detections), DECIMALS).tolist()
    columns = detections.names, edges, detections.scores.tolist()
    shapes = [
        {
            "label": name,
            "points": [[x1, y1], [x2, y2]],
            "group_id": None,
            "description": "",
            "shape_type": "rectangle",
            "flags": {},
            "mask": None,
            "score": round(score, 6),
        }
        for name, (x1, y1, x2, y2), score in zip(*columns, strict=True)
    ]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,  # in the image's file
        "imageHeight": height,
        "imageWidth": width,
    }


class LabelmeFolder:
    """``NAME.json`` beside each image."""

    images = ""

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._root = root

    def add(self, image: str, detections: Found) -> None:
        """Write the document of an image."""
        write_text(self._root / f"{Path(image).stem}.json", to_json(to_labelme(detections, image), indent=2) + "\n")

    def close(self) -> None:
        """There is nothing that all images share."""
