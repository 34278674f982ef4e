"""Data sets in the layout of PASCAL VOC: Annotations/*.xml, ImageSets/Main/SPLIT.txt, JPEGImages/."""

import codecs
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from refinedet.classes import VOC_CLASSES
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
from refinedet.data.images import IMAGE_SUFFIXES
from refinedet.errors import DataError, shorten, show, suggestion
from refinedet.files import is_hidden
from refinedet.progress import track

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"": False, "unspecified": False, "false": False, "no": False, "true": True, "yes": True}  # beside numbers
_DECLARED_ENCODING = re.compile(rb"\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)[\"']")
# Names that Python does not know.
_ENCODING_NAMES = {"windows-31j": "cp932", "windows-936": "gbk", "windows-949": "cp949", "windows-950": "cp950"}
# What Windows writes under the name of a smaller set, by the names of Python's codecs.
_EXTENDED_ENCODINGS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "cp950",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}


class VOCDataset(DetectionDataset):
    """One split of a data set in VOC layout.

    Coordinates are used as they stand, divided by the image's width and height (spec 7.1): 1-based in VOC itself.
    An image is found by the split's id, whatever its suffix and whatever the XML's ``filename`` says; the folder is
    JPEGImages, or else the only one named ``*Images``. A line of the split may also be the name or path of the image
    or of its annotation. ``classes`` gives the names in the order of their labels; by default they are those of all
    annotation files, sorted, and VOC's own twenty are in VOC's order.

    Everything but the pixels is checked here, so that an error comes before any work: DataError for a missing file,
    malformed XML, an unknown class or split, and an id or filename that leaves ``root``, unless ``allow_outside``.
    Unusable boxes are dropped with a warning; see ``make_record``. Hidden files are passed over.

    Without ``need_annotations`` a split whose images have no annotations, as VOC2012 test, is opened too: ``annotated``
    is then False and no record has a box, even where some of the images have annotations (of other tasks, in VOC2012
    test). All images that are missing are named.
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
        name = f"{self.root} (split {split})"
        findings = Findings()
        ids = _read_split(self.root, split, allow_outside, findings, need_annotations)
        names = discover_classes(self.root) if classes is None else check_classes(classes)
        images = ImageFinder(image_folder(self.root), None if allow_outside else self.root)
        if not need_annotations:
            _check_images(name, ids, images)
            self.annotated = all(os.path.isfile(annotation_file(self.root, image_id)) for image_id in ids)
        read = read_record if self.annotated else _bare_record
        records = [
            read(self.root, image_id, names, images, findings)
            for image_id in track(ids, f"reading {self.root.name} {split}")
        ]
        super().__init__(name, names, records, findings.lines())


def is_voc(root: Path) -> bool:
    """Whether a folder has the lists of splits of VOC's layout."""
    return os.path.isdir(root / "ImageSets" / "Main")


def discover_classes(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names in all annotation files of a VOC folder, of any split, so that splits agree on the labels."""
    found: set[str] = set()
    folder = Path(root) / "Annotations"
    files = sorted(path for path in folder.rglob("*.xml") if not is_hidden(path.relative_to(folder)))
    for path in track(files, "collecting class names"):
        found.update(item.name for item in read_annotation(path).objects)
    if not found:
        raise DataError(f"{folder}: no annotated object in any XML file, so no class is known; pass classes=[...]")
    return VOC_CLASSES if found == set(VOC_CLASSES) else tuple(sorted(found))


class _Object(NamedTuple):
    name: str
    box: tuple[float, ...]  # x1,y1,x2,y2 in pixels
    difficult: bool


class Annotation(NamedTuple):
    """What the XML file of an image says."""

    objects: list[_Object]
    size: tuple[float, float] | None  # height, width
    filename: str


class ImageFinder:
    """Finds images by their name without suffix; lists each folder once. A ``filename`` has to stay in ``limits``."""

    def __init__(self, root: Path, limits: Path | None) -> None:
        self.root = root
        self._limits = limits
        self._listings: dict[Path, dict[str, list[Path]]] = {}

    def find(self, image_id: str, filename: str, annotation: Path) -> Path | None:
        """The image called ``image_id``, whatever its suffix; ``filename`` decides among several or replaces none."""
        base = self.root / image_id
        found = self._listing(base.parent).get(base.name, [])
        named = self.root / filename
        if filename and named in found:
            return named
        if filename and not found:
            if self._limits is not None:
                check_inside(named, self._limits, f"{annotation}: <filename> {show(filename)}")
            return named if os.path.isfile(named) else None
        return found[0] if found else None

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listings:
            listing: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    listing.setdefault(path.stem, []).append(path)
            self._listings[folder] = listing
        return self._listings[folder]


def annotation_file(root: Path, image_id: str) -> Path:
    """Where the annotation of an image is."""
    return root / "Annotations" / f"{image_id}.xml"


def _read_split(root: Path, split: str, allow_outside: bool, findings: Findings, need_annotations: bool) -> list[str]:
    """The image ids of a split, in the file's order."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not os.path.isfile(path):
        splits = _splits(path.parent)
        raise DataError(f"{path}: no such split;{suggestion(split, splits)} the splits there: {choices(splits)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not a text file in UTF-8 ({error.reason}); save it as UTF-8, one image id per line"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    ids: list[str] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        found = _image_id(line, root)
        if not line or (line.startswith("#") and found is None):
            continue
        image_id = found or _readings(line, root)[-1]
        annotation, place = annotation_file(root, image_id), f"{path}, line {number}: {show(line)}"
        if not allow_outside:
            check_inside(annotation, root, place)
        if is_hidden(Path(os.path.basename(image_id) if os.path.isabs(image_id) else image_id)):
            findings.add("hidden files listed in the split, left out", path.name)
        elif found is None and need_annotations:
            raise DataError(
                f"{annotation}: no such annotation file; restore it or remove the id from the split ({place}). A split "
                "without annotations gives the server's file: refinedet evaluate --submit DIR"
            )
        else:
            ids.append(image_id)
    if not ids:
        raise DataError(f"{path}: the split is empty; list one image id per line or choose another split")
    unique = list(dict.fromkeys(ids))
    if len(unique) < len(ids):
        findings.add("images listed twice in the split, used once", path.name, len(ids) - len(unique))
    return unique


def _splits(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.txt") if path.is_file() and not is_hidden(Path(path.name))]


def _image_id(line: str, root: Path) -> str | None:
    """The image id that a line stands for; None where there is no such annotation."""
    readings = _readings(line, root)
    return next((i for i in readings if i and os.path.isfile(annotation_file(root, i))), None)


def _readings(line: str, root: Path) -> list[str]:
    """What a line may mean: an id; its first column, in VOC's lists of one class (``000005 -1``); either one as the
    path of an image or annotation (``JPEGImages/000005.jpg``); any of them in quotes."""
    text = line.strip("\"',;")
    column = (line.split() or [""])[0].strip("\"',;")
    return [line, text, column, _without_folder_and_suffix(text, root), _without_folder_and_suffix(column, root)]


def _without_folder_and_suffix(text: str, root: Path) -> str:
    text = text.replace("\\", "/").removeprefix("./")
    absolute = Path(os.path.abspath(root))
    for written in (absolute, root, absolute.name):
        text = text.removeprefix(f"{written}/")
    folder, _, rest = text.partition("/")
    text = rest if folder == "Annotations" or folder.endswith("Images") else text
    stem, suffix = os.path.splitext(text)
    return stem if suffix.lower() in IMAGE_SUFFIXES | {".xml"} else text


def image_folder(root: Path) -> Path:
    """JPEGImages, or else the only folder named ``*Images``."""
    usual = root / "JPEGImages"
    if usual.is_dir():
        return usual
    others = sorted(p for p in root.glob("*Images") if p.is_dir() and not is_hidden(Path(p.name)))
    if len(others) != 1:
        raise DataError(f"{root}: no folder JPEGImages (folders named *Images: {choices(p.name for p in others)})")
    return others[0]


def read_record(root: Path, image_id: str, classes: Sequence[str], images: ImageFinder, findings: Findings) -> Record:
    path = annotation_file(root, image_id)
    annotation = read_annotation(path)
    image = images.find(image_id, annotation.filename, path)
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
        one_based=True,
    )


def _bare_record(root: Path, image_id: str, _: Sequence[str], images: ImageFinder, findings: Findings) -> Record:
    """An image without its annotation; that it is there was checked."""
    path = images.find(image_id, "", root)
    assert path is not None
    return make_record(path, image_id, path.name, [], [], [], None, findings, one_based=True)


def _check_images(name: str, ids: Sequence[str], images: ImageFinder) -> None:
    missing = [image_id for image_id in ids if images.find(image_id, "", images.root) is None]
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of {len(ids)} images are not in {images.root} ({shorten(missing, 10)}); "
            "restore them"
        )


def read_annotation(path: Path) -> Annotation:
    """The objects of an image; DataError for a file that cannot be read or is no annotation."""
    try:
        tree = ElementTree.fromstring(_decode(path.read_bytes()))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: malformed XML (not {error.encoding}: {error.reason} at byte {error.start}); declare the encoding "
            'that it is written in, such as <?xml version="1.0" encoding="gbk"?>, or save it as UTF-8'
        ) from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: malformed XML ({error}); correct the file or remove it from the data set") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    objects = [_read_object(element, path) for element in tree.iter("object")]
    if not objects and tree.tag != "annotation":  # a page of a web site, CVAT's XML: not an image without objects
        raise DataError(f"{path}: its root is {show(tree.tag)}, not VOC's 'annotation'; replace it by the annotation")
    size = declared_size(tree.findtext("size/height"), tree.findtext("size/width"))
    return Annotation(objects, size, (tree.findtext("filename") or "").strip())


def _decode(data: bytes) -> str:
    """The text of an XML file in the encoding that it declares: by itself the parser knows few of them.

    Raises UnicodeDecodeError where it is in another one, LookupError for one that Python does not know.
    """
    encoding: str = json.detect_encoding(data)  # UTF-8, 16 or 32 by the first bytes, in XML as in JSON
    declared = _DECLARED_ENCODING.match(data)
    if encoding == "utf-8" and declared:
        name = declared[1].decode().lower().removeprefix("x-")
        name = codecs.lookup(_ENCODING_NAMES.get(name, name)).name
        # .NET declares UTF-16 in texts that are saved as UTF-8.
        encoding = "utf-8" if name.startswith(("utf-16", "utf-32")) else name
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if encoding not in _EXTENDED_ENCODINGS:
            raise
        text = data.decode(_EXTENDED_ENCODINGS[encoding])
    return text.lstrip("\ufeff \t\r\n")


def _read_object(element: ElementTree.Element, path: Path) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: an <object> has no <name>; add it")
    box = tuple(_number(element, f"bndbox/{corner}", path) for corner in _CORNERS)
    return _Object(name, box, _read_difficult(element, path))


def _read_difficult(element: ElementTree.Element, path: Path) -> bool:
    text = (element.findtext("difficult") or "").strip().lower()
    if text in _FLAGS:
        return _FLAGS[text]
    value = _number(element, "difficult", path)
    if math.isnan(value):
        raise DataError(f"{path}: <difficult> is {show(text)}, not a number; correct it")
    return value != 0


def _number(element: ElementTree.Element, tag: str, path: Path) -> float:
    text = element.findtext(tag)
    if text is None:
        raise DataError(f"{path}: <{element.tag}> has no <{tag}>; add it")
    try:
        return float(text.replace("_", "?"))  # to Python 4_0 is 40
    except ValueError:
        raise DataError(f"{path}: <{tag}> is {show(text.strip())}, not a number; correct it") from None
