"""Classifiers of one list of classes for another: a COCO model becomes the start of a VOC model (spec section 9.3)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from refinedet.anchors import ANCHORS_PER_CELL

COCO_NAMES = {  # where VOC and COCO name the same class differently
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
_CLASSIFIERS = "odm.conf."  # their rows go anchor by anchor, then class by class, background first


def class_rows(source: Sequence[str], target: Sequence[str]) -> list[int] | None:
    """For the background and each class of ``target``, its row among the background and the classes of ``source``.

    A class is found by its name, or by COCO's name for it. None when one is not found.
    """
    rows = {name: row for row, name in enumerate(source, start=1)}
    names = [name if name in rows else COCO_NAMES.get(name, name) for name in target]
    return [0, *(rows[name] for name in names)] if rows.keys() >= set(names) else None


def select_classes(tensors: Mapping[str, Tensor], source: Sequence[str], target: Sequence[str]) -> dict[str, Tensor]:
    """A state dict of a RefineDet for the classes ``source``, for the classes ``target``.

    The classifiers keep the rows of `class_rows`; everything else is as it was, and so is all of it when a class is
    not found. A classifier that is not for ``source`` is left for the network to refuse.
    """
    rows = class_rows(source, target)
    if rows is None or tuple(source) == tuple(target):
        return dict(tensors)
    shape = (ANCHORS_PER_CELL, len(source) + 1)
    selected = dict(tensors)
    for name, value in tensors.items():
        if name.startswith(_CLASSIFIERS) and len(value) == shape[0] * shape[1]:
            selected[name] = value.unflatten(0, shape)[:, rows].flatten(0, 1)
    return selected
