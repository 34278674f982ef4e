"""Data sets, augmentation and loading."""

import os
from collections.abc import Sequence
from pathlib import Path

from refinedet.augmentation import AugmentConfig
from refinedet.classes import COCO_CLASSES, VOC_CLASSES
from refinedet.data.augment import TrainAugment
from refinedet.data.coco import COCODataset
from refinedet.data.dataset import DetectionDataset, existing_folder
from refinedet.data.images import list_images, read_image
from refinedet.data.loader import TrainLoader, eval_batches
from refinedet.data.voc import VOCDataset
from refinedet.errors import DataError

__all__ = [
    "COCO_CLASSES",
    "VOC_CLASSES",
    "AugmentConfig",
    "COCODataset",
    "DetectionDataset",
    "TrainAugment",
    "TrainLoader",
    "VOCDataset",
    "eval_batches",
    "list_images",
    "open_dataset",
    "read_image",
]

_FORMATS = {"voc": VOCDataset, "coco": COCODataset}


def open_dataset(
    root: str | os.PathLike[str],
    split: str,
    *,
    format: str | None = None,
    classes: Sequence[str] | None = None,
) -> DetectionDataset:
    """Open one split of a data set and check all of it but the pixels.

    ``format`` is "voc" or "coco"; None tells them apart by their folders. ``classes`` gives the foreground names in
    the order of their labels (a trained model's, for instance); by default the data set's own.
    Raises DataError that names the file, what is wrong and the fix.
    """
    folder = existing_folder(root)
    chosen = _guess_format(folder) if format is None else format
    if chosen not in _FORMATS:
        raise DataError(f"data set format {format!r} is unknown; give 'voc' or 'coco'")
    return _FORMATS[chosen](folder, split, classes=classes)


def _guess_format(root: Path) -> str:
    if (root / "ImageSets" / "Main").is_dir():
        return "voc"
    if any(root.glob("annotations/*.json")) or any(root.glob("*.json")):
        return "coco"
    raise DataError(
        f"{root}: neither a VOC data set (Annotations/*.xml, ImageSets/Main/SPLIT.txt, JPEGImages/) "
        "nor a COCO one (annotations/instances_SPLIT.json, SPLIT/ or images/); check the path"
    )
