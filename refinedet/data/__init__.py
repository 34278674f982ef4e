"""Data sets, augmentation and loading."""

import os
from collections.abc import Sequence
from pathlib import Path

from refinedet.augmentation import AugmentConfig
from refinedet.classes import COCO_CLASSES, VOC_CLASSES
from refinedet.data.augment import TrainAugment
from refinedet.data.coco import COCODataset, is_coco
from refinedet.data.dataset import DetectionDataset, existing_folder
from refinedet.data.images import list_images, read_image
from refinedet.data.loader import TrainLoader
from refinedet.data.voc import VOCDataset, is_voc
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
    allow_outside: bool = False,
    need_annotations: bool = True,
) -> DetectionDataset:
    """Open one split of a data set and check all of it but the pixels.

    ``format`` is "voc" or "coco"; None tells them apart by their folders. ``classes`` gives the foreground names in
    the order of their labels (a trained model's, for instance); by default the data set's own. ``allow_outside``
    permits annotations and splits to name files that are not in ``root``. Without ``need_annotations`` the images of
    a split that has none are opened alone, as those of VOC2012 test and COCO's test splits: see ``annotated``.
    Raises DataError that names the file, what is wrong and the fix.
    """
    folder = existing_folder(root)
    if format is not None and format not in _FORMATS:
        raise DataError(f"data set format {format!r} is unknown; give 'voc' or 'coco'")
    found = _guess_format(folder)
    return _FORMATS[format or found](
        folder, split, classes=classes, allow_outside=allow_outside, need_annotations=need_annotations
    )


def _guess_format(root: Path) -> str:
    if is_voc(root):
        return "voc"
    if is_coco(root):
        return "coco"
    raise DataError(
        f"{root}: neither a VOC data set (Annotations/*.xml, ImageSets/Main/SPLIT.txt, JPEGImages/) "
        "nor a COCO one (annotations/instances_SPLIT.json, SPLIT/ or images/); check the path"
    )
