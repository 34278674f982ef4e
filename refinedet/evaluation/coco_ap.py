"""COCO average precision through pycocotools, from objects in memory."""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet.errors import InputError

# The order of COCOeval.stats; the names are those of the COCO results format.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class COCOResult:
    """COCO's twelve numbers and the AP of each category. A number without any ground truth behind it is NaN."""

    metrics: dict[str, float]  # by the names of METRICS
    category_ap: dict[int, float]  # category id -> AP, mean over IoU 0.50:0.95
    category_ap50: dict[int, float]  # category id -> AP at IoU 0.50


def coco_ap(ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> COCOResult:
    """Evaluate boxes in COCO's results format against ground truth in COCO's annotation format.

    ground_truth: ``images`` (``id``), ``categories`` (``id``), ``annotations`` (``image_id``, ``category_id``, ``bbox``
        [x, y, width, height] in pixels; an ``iscrowd`` that is missing or None means 0, such an ``area`` width *
        height).
    results: one mapping per detection with ``image_id``, ``category_id``, ``bbox`` [x, y, width, height], ``score``.
        At most the 100 best of an image and category count, as COCO's rules say. May be empty: every AP and AR that has
        ground truth is then 0.

    Neither argument is changed. Raises InputError when the ground truth has no images or categories, and for an
    annotation or result with a missing key, an unknown image or category, or numbers that are not finite.
    """
    image_ids = _ids(ground_truth, "images")
    category_ids = _ids(ground_truth, "categories")
    rows = ground_truth.get("annotations", [])
    rows = _checked(rows, "ground truth annotation", image_ids, category_ids, scored=False)
    annotations = [_annotation(number, row) for number, row in enumerate(rows, start=1)]
    rows = _checked(results, "result", image_ids, category_ids, scored=True)
    detections = [_detection(number, row) for number, row in enumerate(rows, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and its summary
        truth, found = _index(ground_truth, annotations), _index(ground_truth, detections)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 detections
    categories = list(evaluation.params.catIds)
    return COCOResult(
        metrics={name: _defined(value) for name, value in zip(METRICS, evaluation.stats, strict=True)},
        category_ap={id_: _mean(precision[:, :, k]) for k, id_ in enumerate(categories)},
        category_ap50={id_: _mean(precision[:1, :, k]) for k, id_ in enumerate(categories)},
    )


def _ids(ground_truth: Mapping[str, Any], kind: str) -> set[int]:
    rows = ground_truth.get(kind)
    if not rows:
        raise InputError(f"COCO ground truth: '{kind}' is missing or empty; nothing can be evaluated")
    return {row["id"] for row in rows}


def _checked(
    rows: Iterable[Mapping[str, Any]], what: str, image_ids: set[int], category_ids: set[int], *, scored: bool
) -> Iterator[Mapping[str, Any]]:
    """The rows, each one checked before it is given."""
    for position, row in enumerate(rows):
        place = f"COCO {what} {position}"
        missing = [key for key in ("image_id", "category_id", "bbox", "score")[: 3 + scored] if key not in row]
        if missing:
            raise InputError(f"{place}: no {' and no '.join(missing)}; add it")
        if row["image_id"] not in image_ids:
            raise InputError(
                f"{place}: image_id {row['image_id']!r} is not among the {len(image_ids)} images of the ground truth; "
                "evaluate against the annotations the detections were made for"
            )
        if row["category_id"] not in category_ids:
            raise InputError(
                f"{place}: category_id {row['category_id']!r} is not a category of the ground truth; "
                f"known: {', '.join(map(str, sorted(category_ids)[:10]))}{' ...' if len(category_ids) > 10 else ''}"
            )
        numbers = [*row["bbox"], row["score"]] if scored else row["bbox"]
        if len(row["bbox"]) != 4 or not all(map(math.isfinite, numbers)):
            raise InputError(f"{place}: bbox {row['bbox']} or its score is not finite numbers [x, y, width, height]")
        yield row


def _annotation(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with every field COCOeval reads. Ids count anew from 1: COCOeval takes a match with id 0 for none."""
    given = {key: value for key, value in row.items() if value is not None}
    return {"iscrowd": 0, "area": _area(row), **given, "id": number}


def _detection(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with what ``COCO.loadRes`` would add; its area is that of the box, whatever the row says."""
    return {**row, "id": number, "iscrowd": 0, "area": _area(row)}


def _area(row: Mapping[str, Any]) -> float:
    area: float = row["bbox"][2] * row["bbox"][3]
    return area


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": list(ground_truth["images"]),
        "categories": list(ground_truth["categories"]),
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _defined(value: float) -> float:
    """COCOeval writes -1 where there is no ground truth."""
    return float("nan") if value < 0 else float(value)


def _mean(precision: np.ndarray) -> float:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else float("nan")
