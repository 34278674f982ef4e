"""VOC on disk: VOC2007 and VOC2012 beside each other, as their archives unpack, checked split by split.

The recipes join the splits (``train_split = ["VOC2007/trainval", "VOC2012/trainval"]``): nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from refinedet.classes import VOC_CLASSES
from refinedet.data.dataset import Findings, Record, existing_folder
from refinedet.data.images import IMAGE_SUFFIXES, read_image
from refinedet.data.prepare import SAMPLES, Prepared, SplitCheck, check_join, files_of, spread
from refinedet.data.published import VOC_JOINS, VOC_SPLITS, Join, Published
from refinedet.data.voc import Annotation, ImageFinder, annotation_file, read_annotation, read_record
from refinedet.errors import DataError
from refinedet.progress import track


def prepare_voc(
    root: str | os.PathLike[str],
    *,
    splits: Mapping[str, Published] = VOC_SPLITS,
    joins: Mapping[str, Join] = VOC_JOINS,
) -> Prepared:
    """Check VOC2007 and VOC2012 in ``root``, VOCdevkit or the folder that has it: lists, images, annotations, objects.

    ``splits`` and ``joins`` say what was published. Files are looked up in listings and annotations read, each once; no
    image is opened. Raises DataError where there is neither year.
    """
    folder = _find_devkit(existing_folder(root), sorted({name.partition("/")[0] for name in splits}))
    years: dict[str, _Year] = {}
    checks = {}
    for name, published in splits.items():
        year, _, split = name.partition("/")
        if year not in years:
            years[year] = _Year(folder / year)
        checks[name] = _check_split(name, published, years[year], split)
    sampled = [name for name, check in checks.items() if check.objects]
    samples = _samples(folder, _first_join(joins, sampled) or sampled[:1], years, checks)
    return Prepared(
        folder,
        VOC_CLASSES,
        list(checks.values()),
        [check_join(name, join, checks) for name, join in joins.items()],
        samples,
    )


class _Counts(NamedTuple):
    objects: int
    difficult: int
    known: bool  # whether all are of VOC's classes


class _Year:
    """The listings of a year, and what was counted in its annotations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = map(Path, files_of(root / "JPEGImages"))
        self.images = {path.stem for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}
        self.annotations = {Path(name).stem for name in files_of(root / "Annotations") if name.endswith(".xml")}
        self.ids: dict[str, list[str]] = {}
        self.counts: dict[str, _Counts | DataError] = {}

    def read_list(self, split: str) -> list[str] | None:
        """The ids of a split; None where there is no such list."""
        path = self.root / "ImageSets" / "Main" / f"{split}.txt"
        if not os.path.isfile(path):
            return None
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a text file in UTF-8 ({error.reason}); unpack it again") from error
        self.ids[split] = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        return self.ids[split]

    def count(self, image_id: str) -> _Counts | DataError:
        """The objects of an image, or why its annotation cannot be read."""
        if image_id not in self.counts:
            try:
                self.counts[image_id] = _count(read_annotation(annotation_file(self.root, image_id)))
            except DataError as error:
                self.counts[image_id] = error
        return self.counts[image_id]


def _find_devkit(root: Path, years: list[str]) -> Path:
    """The folder of the years: ``root``, or VOCdevkit in it."""
    for folder in (root, root / "VOCdevkit"):
        if any(os.path.isdir(folder / year) for year in years):
            return folder
    if root.resolve().name in years:
        raise DataError(f"{root}: is the folder of one year; give the folder that it lies in")
    sources = sorted({source for name in years for source in _sources(name)})
    raise DataError(
        f"{root}: neither {' nor '.join(years)} is in it; unpack the archives there, from {', '.join(sources)}"
    )


def _sources(year: str) -> list[str]:
    return [source for name, split in VOC_SPLITS.items() if name.startswith(year) for source in split.source]


def _check_split(name: str, published: Published, year: _Year, split: str) -> SplitCheck:
    check = SplitCheck(name, published)
    ids = year.read_list(split)
    if ids is None:
        check.faults.append(f"ImageSets/Main/{split}.txt is not there")
        return check
    check.images = len(ids)
    check.count("images listed", len(ids), published.images)
    check.lack("images missing or empty in JPEGImages", [i for i in ids if i not in year.images])
    if published.annotated:
        _count_objects(check, ids, year)
    return check


def _count_objects(check: SplitCheck, ids: list[str], year: _Year) -> None:
    check.lack("annotations missing or empty", [i for i in ids if i not in year.annotations])
    there = [image_id for image_id in ids if image_id in year.annotations]
    counts = [year.count(image_id) for image_id in track(there, f"reading {check.name}")]
    check.lack("annotations that cannot be read", [str(count) for count in counts if isinstance(count, DataError)])
    read = [count for count in counts if isinstance(count, _Counts)]
    others = [i for i, count in zip(there, counts, strict=True) if isinstance(count, _Counts) and not count.known]
    check.lack("annotations with another class than VOC's", others)
    check.objects = sum(count.objects for count in read)
    check.difficult = sum(count.difficult for count in read)
    check.count("objects", check.objects, check.published.objects)
    check.count("difficult objects", check.difficult, check.published.difficult)


def _count(annotation: Annotation) -> _Counts:
    known = all(item.name in VOC_CLASSES for item in annotation.objects)
    return _Counts(len(annotation.objects), sum(item.difficult for item in annotation.objects), known)


def _first_join(joins: Mapping[str, Join], usable: list[str]) -> list[str] | None:
    return next((list(join.parts) for join in joins.values() if set(join.parts) <= set(usable)), None)


def _samples(
    folder: Path, splits: list[str], years: Mapping[str, _Year], checks: Mapping[str, SplitCheck]
) -> list[Record]:
    """Some images with objects from all over ``splits``; one that cannot be read is a fault of its split."""
    findings, finders = Findings(), {name: ImageFinder(folder / name / "JPEGImages", None) for name in years}
    usable = []
    for name in splits:
        year, _, split = name.partition("/")
        known = years[year]
        ids = [i for i in known.ids[split] if i in known.images and _is_sample(known.counts.get(i))]
        usable += [(name, year, image_id) for image_id in ids]
    samples = []
    for name, year, image_id in spread(SAMPLES, usable):
        try:
            record = read_record(folder / year, image_id, VOC_CLASSES, finders[year], findings)
            read_image(record.path)
        except DataError as error:
            checks[name].faults.append(str(error))
        else:
            samples.append(record._replace(image_id=f"{year}/{image_id}"))
    return samples


def _is_sample(counts: _Counts | DataError | None) -> bool:
    return isinstance(counts, _Counts) and counts.objects > 0 and counts.known
