"""COCO on disk: checked split by split, and the splits of the paper made of what is there.

The paper trains on trainval35k and measures on minival2014, whose lists are no part of COCO's archives. They are those
of 2017: val2017 is minival2014, and train2017 is train2014 with the rest of val2014, valminusminival2014 (so say
Detectron's notes on its data sets, "exactly equivalent"; the numbers of images and of objects agree). Either year will
do; 2014 needs the list of val2017 beside it, or an instances_minival2014.json.

The files that are made have all that is learned and measured from, boxes, areas and crowds, but no outlines, and
``file_name`` with the folder of the image: no image is copied or renamed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refinedet.data.coco import (
    Object,
    find_images,
    image_folders,
    read_annotations,
    read_categories,
    read_image_names,
    read_object,
)
from refinedet.data.dataset import Findings, Record, existing_folder, make_record
from refinedet.data.images import read_image
from refinedet.data.prepare import SAMPLES, JoinCheck, Prepared, SplitCheck, files_of, spread
from refinedet.data.published import COCO_SPLITS, TRAINVAL35K, VALMINUSMINIVAL_IMAGES, Join, Published
from refinedet.errors import DataError
from refinedet.files import atomic_write
from refinedet.parsing import to_json
from refinedet.progress import SHORT, busy, show_progress

TRAINING, MINIVAL, REST = "trainval35k", "minival2014", "valminusminival2014"
_MARK = "made by refinedet prepare"
_LARGE = 20_000_000  # bytes of a JSON file that takes seconds
_KEPT = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def prepare_coco(
    root: str | os.PathLike[str],
    *,
    splits: Mapping[str, Published] = COCO_SPLITS,
    trainval35k: Join = TRAINVAL35K,
    rest_images: int = VALMINUSMINIVAL_IMAGES,
) -> Prepared:
    """Check COCO in ``root`` and write instances_trainval35k.json, instances_minival2014.json and, of 2014,
    instances_valminusminival2014.json into its ``annotations``.

    ``splits``, ``trainval35k`` and ``rest_images`` say what was published. Files are looked up in listings; no image
    but the samples is opened. Of the annotations one file at a time is in memory, but for 2014, which takes two. Files
    of these names that come from elsewhere are kept, and used where they list the same images. Raises DataError where
    none of the splits is there, and for annotations that cannot be read.
    """
    folder = existing_folder(root)
    work = _Work(folder, splits, rest_images)
    for name, published in splits.items():
        work.check(name, published)
    if all(check.state == "missing" for check in work.checks.values()):
        sources = sorted({source for split in splits.values() for source in split.source})
        raise DataError(
            f"{folder}: none of {', '.join(splits)} is in it; unpack the images there and the annotations beside them, "
            f"from {', '.join(sources)}"
        )
    join = _check_join(trainval35k, work)
    return Prepared(folder, work.classes, list(work.checks.values()), [join], work.samples, work.written, work.kept)


class _Part(NamedTuple):
    """Images of a split, their annotations and where the image files are."""

    split: str
    folder: Path
    content: Mapping[str, list[dict[str, Any]]]

    def of(self, ids: Collection[Any], *, inside: bool) -> _Part:
        """The images whose id is among ``ids``, or those whose id is not."""
        images = [image for image in self.content["images"] if (image["id"] in ids) is inside]
        rows = [row for row in self.content["annotations"] if (row["image_id"] in ids) is inside]
        return self._replace(content={**self.content, "images": images, "annotations": rows})


class _Work:
    """The splits as they are gone through, in an order in which each finds what it needs of those before."""

    def __init__(self, root: Path, splits: Mapping[str, Published], rest_images: int) -> None:
        self.root = root
        self.checks = {name: SplitCheck(name, published) for name, published in splits.items()}
        self.classes: tuple[str, ...] = ()
        self.samples: list[Record] = []
        self.written: list[Path] = []
        self.kept: list[Path] = []
        self.made: dict[str, int] = {}  # split -> its images
        self.unfit: dict[str, str] = {}  # split -> why a kept file is none
        self.strange = False  # whether minival2014 is not all in val2014
        self._rest_images = rest_images
        self._minival: set[Any] | None = None
        self._rest: _Part | None = None

    def check(self, name: str, published: Published) -> None:
        """Check a split, and make of it what can be made."""
        check = self.checks[name]
        file = annotations_file(self.root, name, published.annotated)
        folders = [path for path in image_folders(self.root, name) if os.path.isdir(path)]
        folder = max(folders, key=lambda path: len(files_of(path)), default=None)  # an empty one may stand beside it
        if not os.path.isfile(file):
            check.faults.append(f"{file.relative_to(self.root)} is not there")
            check.images = None if folder is None else 0
            return
        if folder is None and name != "val2017":
            check.faults.append("its images are not there")
            return
        content = _read(file, published.annotated)
        if name == "val2017":
            self._minival = {image["id"] for image in content["images"]}
        if folder is None:
            check.faults.append("its images are not there")
            return
        files = files_of(folder)
        _check_images(check, content["images"], files)
        if not published.annotated:
            return
        _check_objects(check, content)
        part = _Part(name, folder, content)
        if not self.samples:
            self._sample(part, files)
        if check.state == "complete":
            self._make(part)

    def _make(self, part: _Part) -> None:
        if part.split == "val2017":
            self._write(MINIVAL, [part])
        elif part.split == "train2017":
            self._write(TRAINING, [part])
        elif part.split == "val2014":
            self._make_of_val2014(part)
        elif part.split == "train2014" and self._rest is not None and TRAINING not in self.made:
            self._write(TRAINING, [part, self._rest])

    def _make_of_val2014(self, part: _Part) -> None:
        ids = self._minival or self._read_minival()
        if ids is None:
            return
        rest = part.of(ids, inside=False)
        others = len(rest.content["images"])
        if others != self._rest_images or others + len(ids) != len(part.content["images"]):
            self.strange = True
            return
        if MINIVAL not in self.made:
            self._write(MINIVAL, [part.of(ids, inside=True)])
        self._write(REST, [rest])
        if TRAINING not in self.made:
            self._rest = rest

    def _read_minival(self) -> set[Any] | None:
        file = annotations_file(self.root, MINIVAL)
        return {image["id"] for image in _read(file, True)["images"]} if os.path.isfile(file) else None

    def _write(self, name: str, parts: list[_Part]) -> None:
        file = annotations_file(self.root, name)
        ids = {image["id"] for part in parts for image in part.content["images"]}
        self.made[name] = len(ids)
        if os.path.isfile(file) and not _is_ours(file):
            self.kept.append(file)
            if fault := self._compare(file, name, ids):
                self.unfit[name] = fault
            return
        try:
            _write_split(file, name, parts, self.root)
        except ValueError as error:
            names = " and ".join(part.split for part in parts)
            raise DataError(
                f"{file} cannot be made of {names}: NaN or infinity is in their annotations, for which JSON has no "
                "number; unpack them again"
            ) from error
        self.written.append(file)

    def _compare(self, file: Path, name: str, ids: set[Any]) -> str:
        """What keeps a file of other origin from standing for the one that would have been made; "" if nothing."""
        names = read_image_names(_read(file, True)["images"], file)
        missing, others = ids - set(names), set(names) - ids
        if missing or others:
            return (
                f"{len(missing):,} images of {name} in {file.relative_to(self.root)}, which prepare has not made and "
                f"which lists {len(others):,} others; move it away, and it is made anew"
            )
        try:
            find_images(self.root, name, list(names.values()), file)
        except DataError as error:
            return (
                f"images where {file.relative_to(self.root)}, which prepare has not made, names them ({error}); move "
                "it away, and it is made anew"
            )
        return ""

    def _sample(self, part: _Part, files: Collection[str]) -> None:
        """Some images with objects from all over the split."""
        file = annotations_file(self.root, part.split)
        categories = read_categories(part.content["categories"], file)
        self.classes = tuple(categories.values())
        labels = {category: label for label, category in enumerate(categories, 1)}
        names = {i["id"]: i["file_name"] for i in part.content["images"] if i["file_name"] in files}
        used = dict.fromkeys(row["image_id"] for row in part.content["annotations"] if row["image_id"] in names)
        objects: dict[Any, list[Object]] = {image: [] for image in spread(SAMPLES, used)}
        for row in part.content["annotations"]:
            if row["image_id"] in objects:
                objects[row["image_id"]].append(read_object(row, names, categories, file))
        for image, found in objects.items():
            boxes, crowds = [item.corners for item in found], [item.crowd for item in found]
            numbers = [labels[item.category] for item in found]
            path = part.folder / names[image]
            try:
                record = make_record(path, image, names[image], boxes, numbers, crowds, None, Findings())
                read_image(path)
            except DataError as error:
                self.checks[part.split].faults.append(str(error))
            else:
                self.samples.append(record)


def annotations_file(root: Path, split: str, annotated: bool = True) -> Path:
    """Where COCO's archives put the annotations of a split, or the list of its images."""
    return root / "annotations" / f"{'instances' if annotated else 'image_info'}_{split}.json"


def _read(file: Path, annotated: bool) -> dict[str, list[dict[str, Any]]]:
    with busy(f"reading {file.name}", shown=file.stat().st_size > _LARGE):
        content = read_annotations(file, annotated)
    images = read_image_names(content["images"], file)
    categories = read_categories(content["categories"], file)
    for row in content["annotations"]:
        read_object(row, images, categories, file)
    return content


def _check_images(check: SplitCheck, images: list[dict[str, Any]], files: Collection[str]) -> None:
    check.images = len(images)
    check.count("images listed", len(images), check.published.images)
    missing = [image["file_name"] for image in images if image["file_name"] not in files]
    check.lack("images missing or empty", missing)


def _check_objects(check: SplitCheck, content: Mapping[str, list[dict[str, Any]]]) -> None:
    rows = content["annotations"]
    check.objects = len(rows)
    check.difficult = sum(bool(row.get("iscrowd")) for row in rows)
    check.count("objects", len(rows), check.published.objects)
    check.count("images with objects", len({row["image_id"] for row in rows}), check.published.used)


def _check_join(join: Join, work: _Work) -> JoinCheck:
    lacks = []
    images = work.made.get(TRAINING, 0)
    if TRAINING not in work.made or MINIVAL not in work.made:
        lacks.append("train2017 and val2017, or train2014 and val2014 with annotations/instances_val2017.json")
        if work.strange:
            lacks.append(f"images of {MINIVAL} in val2014")
    elif images != join.images:
        lacks.append(f"{join.images - images:,} of {join.images:,} images")
    lacks += work.unfit.values()
    return JoinCheck(TRAINING, join, images, lacks)


def _is_ours(file: Path) -> bool:
    with file.open("rb") as start:
        return _MARK.encode() in start.read(200)


def _write_split(file: Path, name: str, parts: list[_Part], root: Path) -> None:
    """A COCO file, written row by row."""
    total = sum(len(part.content[key]) for part in parts for key in ("images", "annotations"))
    info = {"description": f"{name} of {' and '.join(part.split for part in parts)}, {_MARK}"}
    with (
        show_progress(f"writing {file.name}", "row", total, delay=SHORT, leave=False) as bar,
        atomic_write(file) as temporary,
        temporary.open("w", encoding="utf-8") as document,
    ):
        document.write(
            f'{{"info": {to_json(info)},\n"categories": {to_json(parts[0].content["categories"])},\n"images": ['
        )
        for number, image in enumerate(_images(parts, root)):
            document.write(("," if number else "") + "\n" + to_json(image))
            bar.update()
        document.write('],\n"annotations": [')
        for number, row in enumerate(row for part in parts for row in part.content["annotations"]):
            document.write(("," if number else "") + "\n" + to_json({key: row[key] for key in _KEPT if key in row}))
            bar.update()
        document.write("]}\n")


def _images(parts: list[_Part], root: Path) -> Iterator[dict[str, Any]]:
    for part in parts:
        folder = part.folder.relative_to(root).as_posix()
        for image in part.content["images"]:
            size: dict[str, Any] = {key: image[key] for key in ("height", "width") if key in image}
            yield {"id": image["id"], "file_name": f"{folder}/{image['file_name']}", **size}
