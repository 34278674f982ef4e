"""Boxes in the frames of the metrics: 0-based pixels, and COCO's documents made from them.

From network output to metric, as the released evaluation scripts do (spec sections 1.2, 1.3, 7.1, 10.5):

1. The image is warped to the input size; ``ops.detect`` gives boxes in units of the image side.
2. Detections: x times W, clipped to [0, W-1]; y likewise. These are 0-based pixels, the last one inclusive, so a box is
   x2 - x1 + 1 wide. The VOC scripts add 1 to get VOC's 1-based frame; the COCO scripts write [x1, y1, width, height].
3. Ground truth, brought into the same 0-based inclusive frame: VOC's 1-based corners minus 1; COCO's x, y, x + w - 1,
   y + h - 1. (IoU does not depend on the origin, so comparing here equals comparing in VOC's frame.)

Either metric works on either data set; a VOC difficult object is to COCO's metric a crowd, and the other way round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refinedet.data import COCODataset, DetectionDataset
from refinedet.evaluation.voc_ap import GroundTruth, ScoredBoxes
from refinedet.records import Sample

# Boxes travel as float32 fractions of the image side; annotation files hold at most a few decimals of a pixel.
ANNOTATION_DECIMALS = 3
BOX_DECIMALS, SCORE_DECIMALS = 4, 8  # in detections.json and so in COCO's metric


class EvaluatedImage(NamedTuple):
    """What is kept of an image after it was run."""

    image_id: str
    height: int
    width: int


class Collected(NamedTuple):
    """Boxes of all images in 0-based inclusive pixels; images are numbered in the data set's order."""

    truth: GroundTruth
    found: ScoredBoxes
    images: list[EvaluatedImage]


def truth_to_pixels(sample: Sample, *, one_based: bool) -> np.ndarray:
    """Ground truth [n,4] of ``sample`` in 0-based inclusive pixels, float64 (step 3 above)."""
    height, width = sample.image.shape[:2]
    corners = np.round(sample.boxes.astype(np.float64) * (width, height, width, height), ANNOTATION_DECIMALS)
    return corners - (1.0 if one_based else (0.0, 0.0, 1.0, 1.0))


def coco_ids(dataset: DetectionDataset, images: list[EvaluatedImage]) -> tuple[list[int | str], dict[int, int]]:
    """Image ids by image number and category ids by label: those of the annotation file, or else made."""
    if isinstance(dataset, COCODataset):
        return [dataset.image_ids[image.image_id] for image in images], dataset.category_ids
    return [image.image_id for image in images], {label: label for label in range(1, len(dataset.classes) + 1)}


def coco_results(
    found: ScoredBoxes, image_ids: list[int | str], category_ids: dict[int, int]
) -> Iterator[dict[str, Any]]:
    """The detections in COCO's results format, one by one; those of a class without a category are left out."""
    sizes = found.boxes[:, 2:] - found.boxes[:, :2] + 1
    boxes = np.round(np.concatenate([found.boxes[:, :2], sizes], axis=1), BOX_DECIMALS)
    scores = np.round(found.scores.astype(np.float64), SCORE_DECIMALS)
    for image, label, box, score in zip(found.images, found.labels, boxes, scores, strict=True):
        if label in category_ids:
            yield {
                "image_id": image_ids[image],
                "category_id": category_ids[label],
                "bbox": box.tolist(),
                "score": score.item(),
            }


def coco_ground_truth(dataset: DetectionDataset, collected: Collected) -> dict[str, Any]:
    """COCO data keep their own annotations, whose areas are those of the objects' outlines; others get them made."""
    if isinstance(dataset, COCODataset):
        content = json.loads(dataset.annotation_file.read_bytes())
        # As the data set does; pycocotools could never match these, but would count them as missed.
        content["annotations"] = [item for item in content["annotations"] if _has_area(item["bbox"])]
        return content
    truth, images = collected.truth, collected.images
    boxes = np.concatenate([truth.boxes[:, :2], truth.boxes[:, 2:] - truth.boxes[:, :2] + 1], axis=1)
    rows = zip(truth.images.tolist(), truth.labels.tolist(), boxes.tolist(), truth.difficult.tolist(), strict=True)
    return {
        "images": [{"id": image.image_id, "height": image.height, "width": image.width} for image in images],
        "categories": [{"id": label, "name": name} for label, name in enumerate(dataset.classes, start=1)],
        "annotations": [
            {"image_id": images[image].image_id, "category_id": label, "bbox": box, "iscrowd": int(difficult)}
            for image, label, box, difficult in rows
        ],
    }


def _has_area(box: list[float]) -> bool:
    """Whether a COCO box x, y, width, height is finite, not inverted and not empty."""
    return all(map(math.isfinite, box)) and min(box[2:]) > 0
