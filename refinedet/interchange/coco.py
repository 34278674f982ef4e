"""COCO's two formats (cocodataset.org, "Data format" and "Results format"), as pycocotools 2.0.11 reads them.

A box is x, y, width, height of its edges in pixels. Ids of images and annotations count from 1: to pycocotools an
annotation of id 0 is one that is never found. Results, a list of boxes with scores, go to ``COCO.loadRes`` beside the
annotations of the same images. Annotation tools and FiftyOne take images and categories as well: the document written
here has both, and each of its annotations is a result, too, by its ``score``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refinedet.choices import SAVED_SPLIT
from refinedet.classes import COCO_CATEGORY_IDS, COCO_CLASSES
from refinedet.errors import InputError, show
from refinedet.files import write_text
from refinedet.interchange.edges import Found
from refinedet.parsing import to_json

BOX_DECIMALS, SCORE_DECIMALS = 4, 8  # in COCO's results and so in its metric


def to_coco(
    detections: Found, image_id: int | str, category_ids: Mapping[int, int | str] | None = None
) -> list[dict[str, Any]]:
    """The objects in COCO's results format, for ``COCO.loadRes``, as `refinedet evaluate` has them.

    ``category_ids``: from label to the category's id, by default the label itself; `refinedet.classes` has those of
    COCO's own annotation files as ``COCO_CATEGORY_IDS``, and a `COCODataset` has its file's. Raises InputError for an
    object whose label has none.
    """
    labels = detections.labels.tolist()
    ids = {label: label for label in labels} if category_ids is None else category_ids
    for label, name in zip(labels, detections.names, strict=True):
        if label not in ids:
            raise InputError(f"category_ids has no id for label {label}, class {show(name)}; add it")
    boxes, scores = (column.detach().cpu().double().numpy() for column in (detections.boxes, detections.scores))
    return list(coco_rows([image_id] * len(labels), [ids[label] for label in labels], boxes, scores))


def coco_rows(
    image_ids: Iterable[int | str], category_ids: Iterable[int | str], boxes: np.ndarray, scores: np.ndarray
) -> Iterator[dict[str, Any]]:
    """COCO's results, one by one, of boxes [n,4] float64 x1,y1,x2,y2 in 0-based inclusive pixels and scores [n]."""
    sides = np.round(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], axis=1), BOX_DECIMALS)
    shares = np.round(scores.astype(np.float64), SCORE_DECIMALS)
    for image_id, category_id, box, score in zip(image_ids, category_ids, sides, shares, strict=True):
        yield {"image_id": image_id, "category_id": category_id, "bbox": box.tolist(), "score": score.item()}


class COCOFolder:
    """``annotations/instances_default.json`` and ``images/``. The categories of a model of COCO's 80 classes have the
    ids of COCO's own files, those of others their labels."""

    images = "images"

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._file = root / "annotations" / f"instances_{SAVED_SPLIT}.json"
        labels = range(1, len(classes) + 1)
        self._category_ids = COCO_CATEGORY_IDS if tuple(classes) == COCO_CLASSES else {n: n for n in labels}
        self._categories = [
            {"id": self._category_ids[label], "name": name, "supercategory": ""}
            for label, name in zip(labels, classes, strict=True)
        ]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, image: str, detections: Found) -> None:
        """Take up an image and its objects; `close` writes them."""
        image_id = len(self._images) + 1
        height, width = detections.size
        self._images.append({"id": image_id, "file_name": image, "width": width, "height": height})
        for row in to_coco(detections, image_id, self._category_ids):
            _, _, wide, high = row["bbox"]
            number = len(self._annotations) + 1
            self._annotations.append({"id": number, **row, "area": round(wide * high, 4), "iscrowd": 0})

    def close(self) -> None:
        """Write the document: it is one for all images."""
        document = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        write_text(self._file, to_json(document) + "\n")
