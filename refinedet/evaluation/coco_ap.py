"""COCO average precision through pycocotools, from objects in memory."""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet.errors import InputError, shorten, show

# The order of COCOeval.stats; the names are those of the COCO results format.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class COCOResult:
    """COCO's twelve numbers and the AP of each category. A number without any ground truth behind it is NaN."""

    metrics: dict[str, float]  # by the names of METRICS
    category_ap: dict[Any, float]  # category id -> AP, mean over IoU 0.50:0.95
    category_ap50: dict[Any, float]  # category id -> AP at IoU 0.50


def coco_ap(ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> COCOResult:
    """Evaluate boxes in COCO's results format against ground truth in COCO's annotation format.

    ground_truth: ``images`` (``id``), ``categories`` (``id``), ``annotations`` (``image_id``, ``category_id``, ``bbox``
        [x, y, width, height] in pixels; an ``iscrowd`` that is missing or None means 0, such an ``area`` width *
        height). Ids are numbers or texts of any size.
    results: one mapping per detection with ``image_id``, ``category_id``, ``bbox`` [x, y, width, height], ``score``.
        At most the 100 best of an image and category count, as COCO's rules say. May be empty: every AP and AR that has
        ground truth is then 0.

    Neither argument is changed. Raises InputError when the ground truth has no images or categories, and for an
    annotation or result with a missing key, an unknown image or category, or numbers that are not finite.
    """
    images, categories = _numbers(ground_truth, "images"), _numbers(ground_truth, "categories")
    rows = ground_truth.get("annotations", [])
    rows = _checked(rows, "ground truth annotation", images, categories, scored=False)
    annotations = [_annotation(number, row) for number, row in enumerate(rows, start=1)]
    rows = _checked(results, "result", images, categories, scored=True)
    detections = [_detection(number, row) for number, row in enumerate(rows, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and its summary
        truth, found = _index(images, categories, annotations), _index(images, categories, detections)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 detections
    return COCOResult(
        metrics={name: _defined(value) for name, value in zip(METRICS, evaluation.stats, strict=True)},
        category_ap={id_: _mean(precision[:, :, k]) for id_, k in categories.items()},
        category_ap50={id_: _mean(precision[:1, :, k]) for id_, k in categories.items()},
    )


def _numbers(ground_truth: Mapping[str, Any], kind: str) -> dict[Any, int]:
    """The rank of each id. COCOeval sorts ids with numpy, which makes texts or inexact numbers of some. Their order
    counts: of detections with equal scores those of the first image come first."""
    rows = ground_truth.get(kind)
    if not rows:
        raise InputError(f"COCO ground truth: '{kind}' is missing or empty; nothing can be evaluated")
    return {id_: rank for rank, id_ in enumerate(sorted({row["id"] for row in rows}, key=id_order))}


def id_order(id_: int | str) -> tuple[bool, int | str]:
    """Sorts ids: numbers by value, then texts."""
    return isinstance(id_, str), id_


def _checked(
    rows: Iterable[Mapping[str, Any]], what: str, images: dict[Any, int], categories: dict[Any, int], *, scored: bool
) -> Iterator[dict[str, Any]]:
    """Copies of the rows with numbers for ids, each one checked before it is given."""
    for position, row in enumerate(rows):
        place = f"COCO {what} {position}"
        missing = [key for key in ("image_id", "category_id", "bbox", "score")[: 3 + scored] if key not in row]
        if missing:
            raise InputError(f"{place}: no {' and no '.join(missing)}; add it")
        if row["image_id"] not in images:
            raise InputError(
                f"{place}: image_id {show(row['image_id'])} is not among the {len(images)} images of the ground truth; "
                "evaluate against the annotations the detections were made for"
            )
        if row["category_id"] not in categories:
            raise InputError(
                f"{place}: category_id {show(row['category_id'])} is not a category of the ground truth; "
                f"known: {shorten(list(map(show, categories)), 10)}"
            )
        if not _is_sound(row["bbox"], row["score"] if scored else 0.0):
            raise InputError(
                f"{place}: bbox {show(row['bbox'])} or its score is not finite numbers [x, y, width, height]"
            )
        yield {**row, "image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]}


def _is_sound(box: Sequence[float], score: float) -> bool:
    try:
        return len(box) == 4 and all(map(math.isfinite, (*box, score)))
    except (TypeError, OverflowError):  # no list, no numbers; one of 400 digits
        return False


def _annotation(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with every field COCOeval reads. Ids count anew from 1: COCOeval takes a match with id 0 for none."""
    given = {key: value for key, value in row.items() if value is not None}
    return {"iscrowd": 0, "area": _area(row), **given, "id": number}


def _detection(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what ``COCO.loadRes`` would add; its area is that of the box, whatever the row says."""
    return {**row, "id": number, "iscrowd": 0, "area": _area(row)}


def _area(row: Mapping[str, Any]) -> float:
    area: float = row["bbox"][2] * row["bbox"][3]
    return area


def _index(images: dict[Any, int], categories: dict[Any, int], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in images.values()],
        "categories": [{"id": number} for number in categories.values()],
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
