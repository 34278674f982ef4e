"""Detection metrics on plain arrays: PASCAL VOC average precision, COCO average precision, and their plots."""

from refinedet.evaluation.coco_ap import COCOResult, coco_ap
from refinedet.evaluation.voc_ap import (
    ClassResult,
    GroundTruth,
    OperatingPoint,
    ScoredBoxes,
    best_f1,
    mean_ap,
    pixel_iou,
    voc_ap,
)

__all__ = [
    "COCOResult",
    "ClassResult",
    "GroundTruth",
    "OperatingPoint",
    "ScoredBoxes",
    "best_f1",
    "coco_ap",
    "mean_ap",
    "pixel_iou",
    "voc_ap",
]
