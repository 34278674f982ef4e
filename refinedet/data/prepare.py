"""What is on disk of a benchmark, beside what was published, and what was made of it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from refinedet.data.dataset import Record
from refinedet.data.published import Join, Published
from refinedet.errors import printable, shorten

T = TypeVar("T")

SAMPLES = 16  # images on the page
_NAMED = 5  # files in a line


@dataclass
class SplitCheck:
    """A split on disk. Without ``faults`` it is as published; ``images`` is None where nothing of it is there."""

    name: str
    published: Published
    images: int | None = None
    objects: int | None = None
    difficult: int | None = None  # or crowds
    faults: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """complete, short (something of it is missing or differs), or missing."""
        return "missing" if self.images is None else "short" if self.faults else "complete"

    def count(self, what: str, found: int, published: int | None) -> None:
        """A fault where ``found`` is not what was published."""
        if published is not None and found != published:
            self.faults.append(f"{what}: {found:,}, published are {published:,}")

    def lack(self, what: str, names: Sequence[str]) -> None:
        """A fault where something is missing, with the first names."""
        if names:
            self.faults.append(f"{what}: {len(names):,} ({shorten(list(names), _NAMED)})")


@dataclass
class JoinCheck:
    """A training set of the recipes: ready, or what it lacks."""

    name: str
    join: Join
    images: int
    lacks: list[str]

    @property
    def ready(self) -> bool:
        """Whether the recipes can train on it."""
        return not self.lacks


@dataclass
class Prepared:
    """What `prepare_voc` or `prepare_coco` found and made; ``root`` is what ``refinedet train --data`` takes."""

    root: Path
    classes: tuple[str, ...]
    splits: list[SplitCheck]
    joins: list[JoinCheck]
    samples: list[Record]
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)  # files of other origin where one would have been written

    @property
    def sound(self) -> bool:
        """Whether nothing that is there is short, and some training set is ready."""
        return any(join.ready for join in self.joins) and all(split.state != "short" for split in self.splits)

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        splits = [
            {
                "name": split.name,
                "state": split.state,
                **{key: getattr(split, key) for key in ("images", "objects", "difficult", "faults")},
                "published": {key: getattr(split.published, key) for key in ("images", "objects", "difficult")},
                "source": list(split.published.source),
            }
            for split in self.splits
        ]
        joins = [
            {"name": join.name, "ready": join.ready, "images": join.images, "lacks": join.lacks, **_names(join.join)}
            for join in self.joins
        ]
        files = {key: [str(path) for path in getattr(self, key)] for key in ("written", "kept")}
        return {"root": str(self.root), "splits": splits, "training_sets": joins, **files}

    def table(self) -> str:
        """A line per split, what is wrong with it below; then where to get what is missing; then the training sets."""
        width = max(len(split.name) for split in self.splits)
        lines = [f"{'split':<{width}}  {'images':>8}  {'objects':>8}  difficult  state"]
        for split in self.splits:
            numbers = (split.images, split.objects, split.difficult)
            images, objects, difficult = ("-" if number is None else f"{number:,}" for number in numbers)
            lines.append(f"{split.name:<{width}}  {images:>8}  {objects:>8}  {difficult:>9}  {split.state}")
            lines += [f"    {printable(fault)}" for fault in split.faults if split.state == "short"]
        lines += [_origin(split) for split in self.splits if split.state != "complete"]
        return "\n".join(lines + [self._describe(join) for join in self.joins])

    def _describe(self, join: JoinCheck) -> str:
        if join.lacks:
            return f"{join.name}: not ready, it lacks {', '.join(map(printable, join.lacks))}"
        command = printable(shlex.join(["refinedet", "train", join.join.recipes[0], "--data", str(self.root)]))
        others = ", ".join(join.join.recipes[1:])
        return f"{join.name}: ready, {join.images:,} images, for {command}{others and f' (or {others})'}"


def spread(count: int, items: Collection[T]) -> list[T]:
    """At most ``count`` of ``items``, from all over them."""
    names = list(items)
    return [names[index * len(names) // count] for index in range(count)] if len(names) > count else names


def files_of(folder: Path) -> frozenset[str]:
    """The names of the files of a folder that are not empty, from its listing; none where there is no such folder."""
    if not os.path.isdir(folder):
        return frozenset()
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.is_file() and entry.stat().st_size)


def check_join(name: str, join: Join, splits: Mapping[str, SplitCheck]) -> JoinCheck:
    """A training set that is nothing but its parts."""
    parts = [splits[part] for part in join.parts]
    images = sum(part.images or 0 for part in parts)
    lacks = [f"{part.name} ({part.state})" for part in parts if part.state != "complete"]
    if not lacks and images != join.images:
        lacks = [f"{join.images - images} of {join.images} images"]
    return JoinCheck(name, join, images, lacks)


def _origin(split: SplitCheck) -> str:
    missing = f" is missing ({'; '.join(map(printable, split.faults))}); it" if split.state == "missing" else ""
    return f"{split.name}{missing} comes from {' and '.join(split.published.source)}"


def _names(join: Join) -> dict[str, Any]:
    return {"parts": list(join.parts), "test": join.test, "recipes": list(join.recipes)}
