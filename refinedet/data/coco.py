"""Data sets in the layout of COCO: one JSON file of images, annotations and categories per split."""

import math
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refinedet.data.dataset import (
    DetectionDataset,
    Findings,
    Record,
    check_classes,
    check_inside,
    choices,
    declared_size,
    existing_folder,
    make_record,
    unknown_class,
)
from refinedet.errors import DataError, shorten, show, suggestion
from refinedet.files import is_hidden
from refinedet.parsing import parse_json, to_float
from refinedet.progress import track

# Where the annotations of a split {0} are; the last one is Roboflow's.
_ANNOTATIONS = (
    "annotations/instances_{0}.json",
    "annotations/{0}.json",
    "instances_{0}.json",
    "{0}.json",
    "{0}/instances_{0}.json",
    "{0}/{0}.json",
    "{0}/_annotations.coco.json",
)


# Where the images are listed of a split whose annotations are not public.
_IMAGE_LISTS = ("annotations/image_info_{0}.json", "image_info_{0}.json")
# Splits whose images lie in the folder of another one.
_IMAGE_FOLDERS = {
    "minival2014": "val2014",
    "valminusminival2014": "val2014",
    "test-dev2015": "test2015",
    "test-dev2017": "test2017",
}


class _Image(NamedTuple):
    path: Path
    name: str
    size: tuple[float, float] | None  # height, width as declared


class Object(NamedTuple):
    """What an annotation says."""

    image: int | str
    category: int | str
    corners: tuple[float, float, float, float]  # x1,y1,x2,y2 in pixels
    crowd: bool
    area: float  # of the outline, pixels; NaN where it is not given


class COCODataset(DetectionDataset):
    """One split of a data set in COCO layout.

    The annotations are ``annotations/instances_SPLIT.json``, ``annotations/SPLIT.json`` or either one beside the
    images, or Roboflow's ``SPLIT/_annotations.coco.json`` (``valid/`` for the split val); the images are in ``SPLIT/``,
    ``images/SPLIT/``, ``images/``, beside the annotations or in the root. Boxes x,y,w,h become corners in units of the
    image side, ``iscrowd`` becomes difficult, and images without annotations stay. Labels count the categories in the
    file's order (spec 10.5), or follow ``classes`` by name where given. Ids are whole numbers or texts.

    For evaluation: ``annotation_file``; ``category_ids``, from label to category id (a class that the file does not
    have is absent); ``image_id`` and ``areas`` of the records.

    Everything but the pixels is checked here, so that an error comes before any work: DataError for malformed JSON,
    a missing image, an unknown image, category or class, and a ``file_name`` that leaves ``root``, unless
    ``allow_outside``. Unusable boxes are dropped with a warning; see ``make_record``.

    Without ``need_annotations`` a split without annotations is opened too, from ``annotations/image_info_SPLIT.json``
    where there is no other file: ``annotated`` is then False, and no record has a box.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        classes: Sequence[str] | None = None,
        allow_outside: bool = False,
        need_annotations: bool = True,
    ) -> None:
        self.root = existing_folder(root)
        self.split = split
        self.annotation_file = _find_annotations(self.root, split, need_annotations)
        content = read_annotations(self.annotation_file, need_annotations)
        self.annotated = need_annotations or bool(content["annotations"])
        categories = read_categories(content["categories"], self.annotation_file)
        names = tuple(categories.values()) if classes is None else check_classes(classes)
        findings = Findings()
        images = self._read_images(content["images"], allow_outside)
        records = self._read_records(images, content["annotations"], categories, names, findings)
        super().__init__(f"{self.root} (split {split})", names, records, findings.lines())
        ids_by_name = {name: category for category, name in categories.items()}
        self.category_ids = {label: ids_by_name[name] for label, name in enumerate(names, 1) if name in ids_by_name}

    def _read_images(self, items: list[dict[str, Any]], allow_outside: bool) -> dict[int | str, _Image]:
        """The images by id, in the file's order."""
        file = self.annotation_file
        names = read_image_names(items, file)
        paths = find_images(self.root, self.split, list(names.values()), file, allow_outside)
        return {
            key: _Image(path, name, declared_size(item.get("height"), item.get("width")))
            for (key, name), path, item in zip(names.items(), paths, items, strict=True)
        }

    def _read_records(
        self,
        images: dict[int | str, _Image],
        annotations: list[dict[str, Any]],
        categories: dict[int | str, str],
        names: Sequence[str],
        findings: Findings,
    ) -> list[Record]:
        file = self.annotation_file
        labels = {name: label for label, name in enumerate(names, 1)}
        grouped: dict[int | str, list[Object]] = {key: [] for key in images}
        for item in annotations:
            found = read_object(item, images, categories, file)
            if categories[found.category] not in labels:
                raise unknown_class(categories[found.category], file, names)
            grouped[found.image].append(found)
        records = []
        for key, image in track(images.items(), f"reading {self.root.name} {self.split}", "image"):
            objects = grouped[key]
            records.append(
                make_record(
                    image.path,
                    key,
                    image.name,
                    [item.corners for item in objects],
                    [labels[categories[item.category]] for item in objects],
                    [item.crowd for item in objects],
                    image.size,
                    findings,
                    areas=[item.area for item in objects],
                )
            )
        return records


def is_coco(root: Path) -> bool:
    """Whether a folder has the annotations of some split."""
    return bool(_splits(root))


def _find_annotations(root: Path, split: str, need_annotations: bool) -> Path:
    candidates = [root / pattern.format(split) for pattern in _ANNOTATIONS]
    if split == "val":
        candidates.append(root / _ANNOTATIONS[-1].format("valid"))
    lists = [root / pattern.format(split) for pattern in _IMAGE_LISTS]
    for path in [*candidates, *lists]:
        if os.path.isfile(path):
            if need_annotations and path in lists:
                raise DataError(
                    f"{path}: lists images without annotations, from which nothing is learned or measured; choose "
                    "another split, or write the server's file by refinedet evaluate --submit DIR"
                )
            return path
    splits = sorted(_splits(root))
    raise DataError(f"{candidates[0]}: no such split;{suggestion(split, splits)} the splits there: {choices(splits)}")


def _splits(root: Path) -> set[str]:
    files = [*root.glob("annotations/*.json"), *root.glob("*.json")]
    beside = [pattern for pattern in _ANNOTATIONS if pattern.startswith("{0}/")]
    return {
        file.stem.removeprefix("instances_").removeprefix("image_info_")
        for file in files
        if not is_hidden(file.relative_to(root))
    } | {
        file.parent.name
        for pattern in beside
        for file in root.glob(pattern.format("*"))
        if file == root / pattern.format(file.parent.name) and not is_hidden(file.relative_to(root))
    }


def image_folders(root: Path, split: str) -> list[Path]:
    """Where the images of a split may be, when they are not in one folder with others'."""
    return [root / place / name for name in (split, _IMAGE_FOLDERS.get(split, split)) for place in ("", "images")]


def find_images(root: Path, split: str, names: list[str], file: Path, allow_outside: bool = False) -> list[Path]:
    """The images' paths; DataError when one of them is in no candidate, or none of them is given."""
    if not names:
        raise DataError(f"{file}: the list of images is empty; add some or choose another split")
    folders = list(dict.fromkeys((*image_folders(root, split), root / "images", file.parent, root)))
    folder = next((folder for folder in folders if os.path.isfile(_join(folder, names[0]))), None)
    if not allow_outside:
        for name in names:
            check_inside(_join(folder or folders[0], name), root, f"{file}: file_name {show(name)}")
    if folder is None:
        raise DataError(
            f"{file}: its image {names[0]} is in none of {', '.join(map(str, folders))}; restore it or its folder"
        )
    paths = [_join(folder, name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of its {len(names)} images are not in {folder} ({shorten(missing, 10)}); "
            "restore the images or remove them from the file"
        )
    return paths


def _join(folder: Path, name: str) -> Path:
    """The path of a ``file_name``, which Windows may have written."""
    path = folder / name
    return path if "\\" not in name or os.path.isfile(path) else folder / name.replace("\\", "/")


def read_annotations(path: Path, need_annotations: bool = True) -> dict[str, list[Any]]:
    """The lists ``images``, ``annotations`` and ``categories`` of a COCO file; DataError where it cannot be used.

    Without ``need_annotations`` that list may be absent, and comes empty.
    """
    try:
        content = parse_json(path.read_bytes(), object_hook=_without_outline)
    except ValueError as error:
        raise DataError(f"{path}: {error}; correct the file or write it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not need_annotations and isinstance(content, dict):
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: has no list {key!r}; a COCO file has images, annotations and categories")
        if not all(isinstance(item, dict) for item in content[key]):
            raise DataError(f"{path}: the list {key!r} has an entry that is not an object {{...}}; correct it")
    checked: dict[str, list[Any]] = content
    return checked


def _without_outline(item: dict[str, Any]) -> dict[str, Any]:
    """Nobody reads the outlines, and they are most of the memory that COCO's own files would take."""
    item.pop("segmentation", None)
    return item


def read_image_names(items: list[dict[str, Any]], file: Path) -> dict[int | str, str]:
    """Image id -> file_name, in the file's order; DataError where two images share an id."""
    names = {read_id(item, "id", "image", file): read_text(item, "file_name", "image", file) for item in items}
    if len(names) < len(items):
        raise DataError(f"{file}: two images share an id; give each image its own")
    return names


def read_categories(items: list[dict[str, Any]], file: Path) -> dict[int | str, str]:
    """Category id -> name, in the file's order."""
    categories = {read_id(item, "id", "category", file): read_text(item, "name", "category", file) for item in items}
    if not categories:
        raise DataError(f"{file}: the list of categories is empty; add the classes")
    if len(categories) < len(items) or len(set(categories.values())) < len(items):
        raise DataError(f"{file}: two categories share an id or a name; give each its own")
    return categories


def read_object(
    item: dict[str, Any], images: Container[int | str], categories: dict[int | str, str], file: Path
) -> Object:
    """An annotation, checked; DataError for one that cannot be used."""
    image = read_id(item, "image_id", "annotation", file)
    category = read_id(item, "category_id", "annotation", file)
    if image not in images:
        raise DataError(f"{file}: {_name(item, 'annotation')} names image id {show(image)}, which the file lacks")
    if category not in categories:
        raise DataError(
            f"{file}: {_name(item, 'annotation')} names category id {show(category)}; "
            f"the file's categories are {choices(f'{show(key)} ({name})' for key, name in categories.items())}"
        )
    area = _number(item, "area", file)
    return Object(
        image,
        category,
        _corners(item, file),
        bool(_number(item, "iscrowd", file)),
        math.nan if area is None else area,
    )


def _corners(item: dict[str, Any], file: Path) -> tuple[float, float, float, float]:
    box = _field(item, "bbox", "annotation", file)
    if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
        raise DataError(f"{file}: {_name(item, 'annotation')} has bbox {show(box)}; give [x, y, width, height]")
    x, y, width, height = map(to_float, box)
    return x, y, x + width, y + height


def _number(item: dict[str, Any], key: str, file: Path) -> float | None:
    """A number beside the box; absent or null counts as not given."""
    value = item.get(key)
    if value is None:
        return None
    if not (isinstance(value, (int, float)) and math.isfinite(to_float(value))):
        raise DataError(f"{file}: {_name(item, 'annotation')} has {key} {show(value)}; give a number, or leave it out")
    return to_float(value)


def read_id(item: dict[str, Any], key: str, kind: str, file: Path) -> int | str:
    """An id of an entry of this kind: a whole number or a text, else DataError."""
    value = _field(item, key, kind, file)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes 1.0 where a column has gaps
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise DataError(f"{file}: {_name(item, kind)} has {key} {show(value)}; give a whole number or a text")
    return value


def read_text(item: dict[str, Any], key: str, kind: str, file: Path) -> str:
    """A text of an entry of this kind; DataError where it is none."""
    value = _field(item, key, kind, file)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{file}: {_name(item, kind)} has {key} {show(value)}; give a text")
    return value


def _field(item: dict[str, Any], key: str, kind: str, file: Path) -> Any:
    if key not in item:
        raise DataError(f"{file}: {_name(item, kind)} has no {key!r}; add it")
    return item[key]


def _name(item: dict[str, Any], kind: str) -> str:
    """What an entry is called in a message."""
    return f"{kind} {show(item.get('id', item))}"
