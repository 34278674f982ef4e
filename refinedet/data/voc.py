"""Data sets in the layout of PASCAL VOC: Annotations/*.xml, ImageSets/Main/SPLIT.txt, JPEGImages/."""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from refinedet.data.classes import VOC_CLASSES
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
from refinedet.data.images import IMAGE_SUFFIXES
from refinedet.errors import DataError
from refinedet.progress import track

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VOCDataset(DetectionDataset):
    """One split of a data set in VOC layout.

    Coordinates are used as they stand, divided by the image's width and height (spec 7.1): 1-based in VOC itself.
    An image is found by the split's id, whatever its suffix and whatever the XML's ``filename`` says; the folder is
    JPEGImages, or else the only one named ``*Images``. ``classes`` gives the names in the order of their labels; by
    default they are those of all annotation files, sorted, and VOC's own twenty are in VOC's order.

    Everything but the pixels is checked here, so that an error comes before any work: DataError for a missing file,
    malformed XML, an unknown class or split. Unusable boxes are dropped with a warning; see ``make_record``.
    """

    def __init__(self, root: str | os.PathLike[str], split: str, *, classes: Sequence[str] | None = None) -> None:
        self.root = existing_folder(root)
        self.split = split
        name = f"{self.root} (split {split})"
        findings = Findings()
        ids = _read_split(self.root, split, findings)
        names = discover_classes(self.root) if classes is None else check_classes(classes)
        images = _ImageFinder(_image_folder(self.root))
        records = [
            _read_record(self.root, image_id, names, images, findings)
            for image_id in track(ids, f"reading {self.root.name} {split}")
        ]
        super().__init__(name, names, records, findings.lines())


def discover_classes(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names in all annotation files of a VOC folder, of any split, so that splits agree on the labels."""
    found: set[str] = set()
    folder = Path(root) / "Annotations"
    for path in track(sorted(folder.rglob("*.xml")), "collecting class names"):
        found.update(item.name for item in _read_annotation(path).objects)
    if not found:
        raise DataError(f"{folder}: no annotated object in any XML file, so no class is known; pass classes=[...]")
    return VOC_CLASSES if found == set(VOC_CLASSES) else tuple(sorted(found))


class _Object(NamedTuple):
    name: str
    box: tuple[float, ...]  # x1,y1,x2,y2 in pixels
    difficult: bool


class _Annotation(NamedTuple):
    objects: list[_Object]
    size: tuple[int, int] | None  # height, width
    filename: str


class _ImageFinder:
    """Finds images by their name without suffix; lists each folder once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, dict[str, list[Path]]] = {}

    def find(self, image_id: str, filename: str) -> Path | None:
        """The image called ``image_id``, whatever its suffix; ``filename`` decides among several or replaces none."""
        base = self.root / image_id
        found = self._listing(base.parent).get(base.name, [])
        named = self.root / filename
        if filename and (named in found or (not found and named.is_file())):
            return named
        return found[0] if found else None

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listings:
            listing: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    listing.setdefault(path.stem, []).append(path)
            self._listings[folder] = listing
        return self._listings[folder]


def _read_split(root: Path, split: str, findings: Findings) -> list[str]:
    """The image ids of a split, in the file's order."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        existing = (entry.stem for entry in path.parent.glob("*.txt")) if path.parent.is_dir() else ()
        raise DataError(f"{path}: no such split; the splits there: {choices(existing)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason}); list one image id per line") from error
    ids = [_image_id(line.strip(), root) for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path}: the split is empty; list one image id per line or choose another split")
    unique = list(dict.fromkeys(ids))
    if len(unique) < len(ids):
        findings.add("images listed twice in the split, used once", path.name, len(ids) - len(unique))
    return unique


def _image_id(line: str, root: Path) -> str:
    """The id on a line: all of it, or its first column in VOC's lists of one class (``000005 -1``)."""
    return line if (root / "Annotations" / f"{line}.xml").is_file() else line.split()[0]


def _image_folder(root: Path) -> Path:
    usual = root / "JPEGImages"
    if usual.is_dir():
        return usual
    others = sorted(path for path in root.glob("*Images") if path.is_dir())
    if len(others) != 1:
        raise DataError(f"{root}: no folder JPEGImages (folders named *Images: {choices(p.name for p in others)})")
    return others[0]


def _read_record(root: Path, image_id: str, classes: Sequence[str], images: _ImageFinder, findings: Findings) -> Record:
    path = root / "Annotations" / f"{image_id}.xml"
    annotation = _read_annotation(path)
    image = images.find(image_id, annotation.filename)
    if image is None:
        raise DataError(
            f"{path}: its image {image_id}.* is not in {images.root}; restore it or remove the id from the split"
        )
    labels = {name: index for index, name in enumerate(classes, 1)}
    for item in annotation.objects:
        if item.name not in labels:
            raise unknown_class(item.name, path, classes)
    return make_record(
        image,
        image_id,
        path.name,
        [item.box for item in annotation.objects],
        [labels[item.name] for item in annotation.objects],
        [item.difficult for item in annotation.objects],
        annotation.size,
        findings,
    )


def _read_annotation(path: Path) -> _Annotation:
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; restore it or remove the id from the split") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: malformed XML ({error}); correct the file or remove it from the data set") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    objects = [_read_object(element, path) for element in tree.iter("object")]
    return _Annotation(objects, _read_size(tree, path), (tree.findtext("filename") or "").strip())


def _read_object(element: ElementTree.Element, path: Path) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: an <object> has no <name>; add it")
    box = tuple(_number(element, f"bndbox/{corner}", path) for corner in _CORNERS)
    difficult = element.find("difficult") is not None and _number(element, "difficult", path) != 0
    return _Object(name, box, difficult)


def _read_size(tree: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    """(height, width) as annotated, or None: some tools leave the element out or write 0."""
    if tree.find("size") is None:
        return None
    height, width = _number(tree, "size/height", path), _number(tree, "size/width", path)
    return (int(height), int(width)) if 0 < height < math.inf and 0 < width < math.inf else None


def _number(element: ElementTree.Element, tag: str, path: Path) -> float:
    text = element.findtext(tag)
    if text is None:
        raise DataError(f"{path}: <{element.tag}> has no <{tag}>; add it")
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{path}: <{tag}> is {text.strip()!r}, not a number; correct it") from None
