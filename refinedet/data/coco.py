"""Data sets in the layout of COCO: one JSON file of images, annotations and categories per split."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refinedet.data.dataset import (
    DetectionDataset,
    Findings,
    Record,
    check_classes,
    choices,
    existing_folder,
    make_record,
    unknown_class,
)
from refinedet.errors import DataError
from refinedet.progress import track


class COCODataset(DetectionDataset):
    """One split of a data set in COCO layout.

    The annotations are ``annotations/instances_SPLIT.json``, ``annotations/SPLIT.json`` or either one beside the
    images; the images are in ``SPLIT/``, ``images/SPLIT/``, ``images/`` or the root. Boxes x,y,w,h become corners in
    units of the image side, ``iscrowd`` becomes difficult, and images without annotations stay. Labels count the
    categories in the file's order (spec 10.5), or follow ``classes`` by name where given.

    For evaluation: ``annotation_file``; ``category_ids``, from label to category id (a class that the file does not
    have is absent); the record's and sample's ``image_id``, the file's id as text; ``image_ids``, from that to the id.

    Everything but the pixels is checked here, so that an error comes before any work: DataError for malformed JSON,
    a missing image, an unknown image, category or class. Unusable boxes are dropped with a warning; see
    ``make_record``.
    """

    def __init__(self, root: str | os.PathLike[str], split: str, *, classes: Sequence[str] | None = None) -> None:
        self.root = existing_folder(root)
        self.split = split
        self.annotation_file = _find_annotations(self.root, split)
        content = _read_json(self.annotation_file)
        categories = _read_categories(content["categories"], self.annotation_file)
        names = tuple(categories.values()) if classes is None else check_classes(classes)
        ids_by_name = {name: category for category, name in categories.items()}
        self.category_ids = {label: ids_by_name[name] for label, name in enumerate(names, 1) if name in ids_by_name}
        self.image_ids = {str(image.get("id")): image.get("id") for image in content["images"]}
        findings = Findings()
        records = self._read_records(content, categories, names, findings)
        super().__init__(f"{self.root} (split {split})", names, records, findings.lines())

    def _read_records(
        self, content: dict[str, list[Any]], categories: dict[Any, str], names: Sequence[str], findings: Findings
    ) -> list[Record]:
        file = self.annotation_file
        images = {_id(item, "id", "image", file): item for item in content["images"]}
        if len(images) < len(content["images"]):
            raise DataError(f"{file}: two images share an id; give each image its own")
        labels = {name: label for label, name in enumerate(names, 1)}
        grouped = _group(content["annotations"], images, categories, file)
        folder = _find_images(self.root, self.split, images, file)
        records = []
        for key, image in track(images.items(), f"reading {self.root.name} {self.split}", "image"):
            found = grouped.get(key, [])
            for item in found:
                if categories[item["category_id"]] not in labels:
                    raise unknown_class(categories[item["category_id"]], file, names)
            name = str(image["file_name"])
            records.append(
                make_record(
                    folder / name,
                    str(key),
                    name,
                    [_corners(item, file) for item in found],
                    [labels[categories[item["category_id"]]] for item in found],
                    [bool(item.get("iscrowd")) for item in found],
                    _declared_size(image),
                    findings,
                )
            )
        return records


def _find_annotations(root: Path, split: str) -> Path:
    folders = (root / "annotations", root, root / split)
    candidates = [folder / name for folder in folders for name in (f"instances_{split}.json", f"{split}.json")]
    for path in candidates:
        if path.is_file():
            return path
    existing = {path.stem.removeprefix("instances_") for path in (root / "annotations").glob("*.json")}
    raise DataError(f"{candidates[0]}: no such split; the splits there: {choices(existing)}")


def _find_images(root: Path, split: str, images: dict[Any, dict[str, Any]], file: Path) -> Path:
    """The folder that the images are in; DataError when one of them is in no candidate."""
    folders = (root / split, root / "images" / split, root / "images", root)
    names = [str(_field(image, "file_name", "image", file)) for image in images.values()]
    if not names:
        raise DataError(f"{file}: the list of images is empty; add some or choose another split")
    folder = next((folder for folder in folders if (folder / names[0]).is_file()), None)
    if folder is None:
        raise DataError(
            f"{file}: its image {names[0]} is in none of {', '.join(map(str, folders))}; restore it or its folder"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{file}: its image {missing[0]} is not in {folder} ({len(missing)} of {len(names)} are missing); "
            "restore the images or remove them from the file"
        )
    return folder


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: malformed JSON ({error}); correct the file or write it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: has no list {key!r}; a COCO file has images, annotations and categories")
        if not all(isinstance(item, dict) for item in content[key]):
            raise DataError(f"{path}: the list {key!r} has an entry that is not an object {{...}}; correct it")
    checked: dict[str, list[Any]] = content
    return checked


def _read_categories(items: list[dict[str, Any]], file: Path) -> dict[Any, str]:
    """Category id -> name, in the file's order."""
    categories = {_id(item, "id", "category", file): str(_field(item, "name", "category", file)) for item in items}
    if not categories:
        raise DataError(f"{file}: the list of categories is empty; add the classes")
    if len(categories) < len(items) or len(set(categories.values())) < len(items):
        raise DataError(f"{file}: two categories share an id or a name; give each its own")
    return categories


def _group(
    annotations: list[dict[str, Any]], images: dict[Any, Any], categories: dict[Any, str], file: Path
) -> dict[Any, list[dict[str, Any]]]:
    """The annotations of each image id, in the file's order."""
    grouped: dict[Any, list[dict[str, Any]]] = {}
    for item in annotations:
        image = _id(item, "image_id", "annotation", file)
        category = _id(item, "category_id", "annotation", file)
        if image not in images:
            raise DataError(f"{file}: annotation {item.get('id')} names image id {image!r}, which the file lacks")
        if category not in categories:
            raise DataError(
                f"{file}: annotation {item.get('id')} names category id {category!r}; "
                f"the file's categories are {choices(f'{key} ({name})' for key, name in categories.items())}"
            )
        _check_numbers(item, file)
        grouped.setdefault(image, []).append(item)
    return grouped


def _corners(item: dict[str, Any], file: Path) -> tuple[float, float, float, float]:
    box = _field(item, "bbox", "annotation", file)
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)):
        raise DataError(f"{file}: annotation {item.get('id')} has bbox {box!r}; give [x, y, width, height]")
    x, y, width, height = box
    return x, y, x + width, y + height


def _check_numbers(item: dict[str, Any], file: Path) -> None:
    """What COCO's metric reads beside the box; absent or null counts as not given."""
    for key in ("area", "iscrowd"):
        value = item.get(key)
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise DataError(f"{file}: annotation {item.get('id')} has {key} {value!r}; give a number, or leave it out")


def _declared_size(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if height and width else None


def _id(item: dict[str, Any], key: str, kind: str, file: Path) -> int | str:
    value = _field(item, key, kind, file)
    if not isinstance(value, (int, str)):
        raise DataError(f"{file}: {kind} {item.get('id')} has {key} {value!r}; give a whole number")
    return value


def _field(item: dict[str, Any], key: str, kind: str, file: Path) -> Any:
    if key not in item:
        raise DataError(f"{file}: {kind} {item.get('id', item)} has no {key!r}; add it")
    return item[key]
