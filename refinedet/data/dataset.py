"""What the VOC and the COCO data set have in common: checked records, warnings and decoding on demand."""

import difflib
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refinedet.data.images import image_size, read_image
from refinedet.errors import DataError, show
from refinedet.parsing import to_float
from refinedet.records import Sample

# Boxes may stick out by a rounding error without being reported.
_TOLERANCE_PIXELS = 0.01
_FILES_NAMED = 3


class Record(NamedTuple):
    """The annotations of one image, checked and clipped."""

    path: Path
    image_id: int | str  # as the data set's files have it
    boxes: np.ndarray  # float32 [n,4] x1,y1,x2,y2 in units of the image side
    labels: np.ndarray  # int64 [n], 1..C-1
    difficult: np.ndarray  # bool [n]
    one_based: bool = False  # the boxes are VOC's corners: the first pixel is 1, and the last one belongs to the box
    areas: np.ndarray | None = None  # float64 [n] pixels of the objects' outlines, NaN where unknown; None: of all


class DetectionDataset:
    """Images with boxes. ``dataset[i]`` decodes image i and returns a Sample.

    ``classes`` are the foreground names: label k is ``classes[k - 1]``, and ``category_ids[k]`` the id of its category
    in detections that are written for COCO. ``records`` hold the annotations without the pixels, and all that a metric
    needs: those of several data sets may be joined, and some left out. ``warnings`` lists what was repaired or left out
    while reading; the same text is issued once as a warning. Without ``annotated`` nobody knows what is in the images.
    """

    annotated = True

    def __init__(
        self, name: str, classes: Sequence[str], records: Sequence[Record], findings: Sequence[str] = ()
    ) -> None:
        if not records:
            raise DataError(f"{name}: the data set holds no images; add some or choose another split")
        self.name = name
        self.classes = tuple(classes)
        self.category_ids: dict[int, int | str] = {label: label for label in range(1, len(self.classes) + 1)}
        self.records = list(records)
        self.warnings = list(findings)
        if self.warnings:
            warnings.warn(f"{name}: " + "; ".join(self.warnings), stacklevel=3)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image = read_image(record.path)
        return Sample(
            image,
            record.boxes,
            record.labels,
            record.difficult,
            str(record.path),
            record.image_id,
            record.one_based,
            record.areas,
        )

    def class_table(self) -> str:
        """A line per class: how many images have it, and how many objects it has, difficult ones included."""
        empty = np.empty(0, np.int64)
        slots = len(self.classes) + 1
        objects = np.bincount(np.concatenate([empty, *(r.labels for r in self.records)]), minlength=slots)
        images = np.bincount(np.concatenate([empty, *(np.unique(r.labels) for r in self.records)]), minlength=slots)
        width = max(len("class"), *map(len, self.classes))
        rows = zip(self.classes, images[1:], objects[1:], strict=True)
        lines = [f"{name:<{width}}  {in_images:>6}  {count:>7}" for name, in_images, count in rows]
        return "\n".join([f"{'class':<{width}}  images  objects", *lines])


class Findings:
    """Collects irregularities per kind, with the files they were found in."""

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}

    def add(self, kind: str, file: str, count: int = 1) -> None:
        self._files.setdefault(kind, []).extend([file] * count)

    def lines(self) -> list[str]:
        """One line per kind: how many, and the first files by name."""
        return [_summary(kind, files) for kind, files in self._files.items()]


def _summary(kind: str, files: list[str]) -> str:
    unique = list(dict.fromkeys(files))
    more = f" and {len(unique) - _FILES_NAMED} more files" if len(unique) > _FILES_NAMED else ""
    return f"{kind}: {len(files)} ({', '.join(unique[:_FILES_NAMED])}{more})"


def make_record(
    image: Path,
    image_id: int | str,
    annotation: str,
    boxes: Iterable[Sequence[float]],
    labels: Iterable[int],
    difficult: Iterable[bool],
    declared_size: tuple[float, float] | None,
    findings: Findings,
    *,
    one_based: bool = False,
    areas: Iterable[float] | None = None,
) -> Record:
    """Check the boxes of one image against its real size and express them in units of its sides (spec 7.1).

    Boxes are x1,y1,x2,y2 in pixels. Those that are not finite, of no area, inverted or wholly outside the image are
    dropped; those that reach outside are clipped; ``findings`` gets a note of each, under the name ``annotation``.
    Where ``declared_size`` (height, width) differs from the image's, the image wins. ``one_based`` and ``areas`` are
    the record's; an area that is not between 0 and the image's is unknown.
    """
    height, width = image_size(image)
    if declared_size == (width, height) != (height, width):
        findings.add(
            "annotated image size is the image's turned by 90 degrees, which an orientation of EXIF or TIFF explains; "
            "it is ignored: boxes count on the stored pixels, so annotate those, or save the image upright",
            annotation,
        )
    elif declared_size is not None and declared_size != (height, width):
        findings.add("annotated image size differs from the image's, which is used", annotation)
    pixels = np.asarray(list(boxes), np.float64).reshape(-1, 4)
    kept, fractions = _check_boxes(pixels, width, height, annotation, findings)
    if areas is not None:
        given = np.asarray(list(areas), np.float64)[kept]
        areas = np.where((given >= 0) & (given <= height * width), given, np.nan)
    return Record(
        image,
        image_id,
        fractions,
        np.asarray(list(labels), np.int64)[kept],
        np.asarray(list(difficult), bool)[kept],
        one_based,
        areas,
    )


def _check_boxes(
    boxes: np.ndarray, width: int, height: int, annotation: str, findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes [n,4] are usable (bool [n]), and those boxes clipped to the image, float32 in units of its sides."""
    finite = np.isfinite(boxes).all(1)
    with np.errstate(over="ignore", invalid="ignore"):
        sides = np.where(finite[:, None], boxes[:, 2:] - boxes[:, :2], 1.0)
    inverted = (sides < 0).any(1)
    limits = np.array((width, height, width, height), np.float64)
    clipped = np.clip(boxes, 0.0, limits)
    outside = finite & ~inverted & ~(sides == 0).any(1) & ~(clipped[:, 2:] > clipped[:, :2]).all(1)
    fractions = (clipped / limits).astype(np.float32)
    # In float32, too: whoever learns from a box takes the logarithm of its sides.
    empty = finite & ~inverted & ~outside & ~(fractions[:, 2:] > fractions[:, :2]).all(1)
    kept = finite & ~inverted & ~empty & ~outside
    with np.errstate(over="ignore", invalid="ignore"):
        cut = kept & (np.abs(clipped - boxes) > _TOLERANCE_PIXELS).any(1)
    for kind, mask in (
        ("boxes with a coordinate that is not finite, dropped", ~finite),
        ("inverted boxes, dropped", inverted),
        ("boxes of no area, dropped", empty),
        ("boxes wholly outside the image, dropped", outside),
        ("boxes partly outside the image, clipped", cut),
    ):
        if mask.any():
            findings.add(kind, annotation, int(mask.sum()))
    return kept, fractions[kept]


def declared_size(height: Any, width: Any) -> tuple[float, float] | None:
    """The size that an annotation gives as two numbers or texts; None where it gives none. Only a warning needs it."""
    try:
        size = to_float(height), to_float(width)
    except (TypeError, ValueError):
        return None
    return size if all(map(math.isfinite, size)) else None


def existing_folder(root: str | os.PathLike[str]) -> Path:
    """``root`` as a path; DataError when it is not a folder."""
    folder = Path(root)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such data folder; check the path")
    return folder


def check_inside(path: Path, root: Path, what: str) -> None:
    """DataError when ``path``, as it is written, leaves the folder ``root``; ``what`` names its source.

    Links are not resolved: whoever lays one in a data folder decides where it leads, who writes a name does not.
    """
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise DataError(
            f"{what} leaves the data folder {root}; move the file into it, or allow this: data.allow_outside = true in "
            "a recipe, --allow-outside at the command line, allow_outside=True in Python"
        )


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The class names as a tuple; DataError when there are none, or one of them twice."""
    if isinstance(classes, str):
        raise DataError(f"classes is the text {classes!r}; give a list of names, such as [{classes!r}]")
    if not classes:
        raise DataError("the list of classes is empty; give at least one name")
    if not all(isinstance(name, str) and name.strip() for name in classes):
        raise DataError(f"classes is {show(list(classes))}; give a list of names, each a text")
    repeated = sorted({name for name in classes if list(classes).count(name) > 1})
    if repeated:
        raise DataError(f"class {repeated[0]!r} is named twice; name each class once")
    return tuple(classes)


def unknown_class(name: str, annotation: str | os.PathLike[str], classes: Sequence[str]) -> DataError:
    """The error for an annotation whose class is not among ``classes``."""
    near = difflib.get_close_matches(name, classes, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return DataError(
        f"{annotation}: class {show(name)} is not among the {len(classes)} known classes ({_names(classes)}); "
        f"{hint}correct the annotation, or the list of classes if it is the one with the mistake (data.classes in a "
        "recipe); a trained model knows its own classes only"
    )


def _names(names: Sequence[str], most: int = 20) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def choices(names: Iterable[str]) -> str:
    """The existing alternatives, for an error message."""
    return _names(sorted(names)) or "none"
