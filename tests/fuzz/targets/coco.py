"""Annotation files in the layout of COCO: read, loaded and measured."""

from pathlib import Path

from support.synthetic import make_coco

from fuzz.engine import Target
from fuzz.mutations import damage_json
from fuzz.use_data import use
from refinedet.data import COCODataset


def make_seeds(folder: Path) -> list[Path]:
    root = make_coco(folder / "coco", {"train": 3}, height=24, width=32)
    return [root / "annotations" / "instances_train.json"]


def read(file: Path) -> None:
    use(COCODataset(file.parent.parent, "train"))


TARGET = Target("coco", make_seeds, damage_json, read)
