"""Annotation files in the layout of COCO."""

from pathlib import Path

from support.synthetic import make_coco

from fuzz.engine import Target
from fuzz.mutations import damage_json
from refinedet.data import COCODataset


def make_seeds(folder: Path) -> list[Path]:
    root = make_coco(folder / "coco", {"train": 3})
    return [root / "annotations" / "instances_train.json"]


def read(file: Path) -> None:
    dataset = COCODataset(file.parent.parent, file.stem.removeprefix("instances_"))
    for index in range(len(dataset)):
        dataset[index]


TARGET = Target("coco", make_seeds, damage_json, read)
