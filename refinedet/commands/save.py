"""``refinedet detect --save``: data sets of the images and of what was found in them, for annotation tools.

Each is a folder of its own, complete, so that a tool imports it as it is: an upright image, its label, what the format
has for all images. Where an image lies upright in its file that file is there a second time, by a hard link where the
file system lets it: a symbolic link supervision refuses, and it breaks where one of the two is moved. Images that EXIF
turns are written upright, as the boxes are of the upright image, and some readers turn it and some do not.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from refinedet.commands.inputs import KEPT_SUFFIXES, free_name
from refinedet.data.images import IMAGE_SUFFIXES, read_image, write_image
from refinedet.errors import InputError
from refinedet.files import atomic_write
from refinedet.interchange.coco import COCOFolder
from refinedet.interchange.labelme import LabelmeFolder
from refinedet.interchange.names import check_name
from refinedet.interchange.voc import VOCFolder
from refinedet.interchange.yolo import YOLOFolder
from refinedet.records import Detections


class Folder(Protocol):
    """The labels of one format, in the folder ``root``; the images are in its ``images``."""

    images: str

    def __init__(self, root: Path, classes: Sequence[str]) -> None: ...

    def add(self, image: str, detections: Detections) -> None:
        """Take up an image of this name."""

    def close(self) -> None:
        """Write what all images share."""


FOLDERS: dict[str, type[Folder]] = {
    "coco": COCOFolder,
    "voc": VOCFolder,
    "yolo": YOLOFolder,
    "labelme": LabelmeFolder,
}


def plan_saved(formats: Iterable[str], images: Sequence[Path], videos: Sequence[Path], out: Path) -> dict[str, Path]:
    """The folder of each format, in ``out``.

    Raises InputError for a video, and for a folder that holds anything: results of another run, corrected since, would
    be overwritten or mixed with these.
    """
    folders = {name: out / name for name in formats}
    for name, folder in folders.items():
        if videos:
            raise InputError(
                f"--save {name}: {videos[0]} is a video, and a data set has images; take frames out of it first "
                "(ffmpeg -i VIDEO frames/%06d.jpg)"
            )
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"--save {name}: {folder} is there already; move it, or give another folder by --out")
    return folders


class Saver:
    """Writes the data sets of ``folders``, image by image; `close` ends them, and is due whatever happens."""

    def __init__(self, folders: dict[str, Path], images: Iterable[Path], classes: Sequence[str]) -> None:
        for name in classes:
            check_name(name, "--save: a class of the checkpoint")
        self._stems = _plan_stems(images)
        self._sets = [(root / FOLDERS[name].images, FOLDERS[name](root, classes)) for name, root in folders.items()]
        self._saved = False

    def add(self, path: Path, image: np.ndarray, detections: Detections) -> None:
        """Write an image, given as it was read, and its objects; of one that fails nothing stays in any list."""
        upright = path.suffix.lower() in IMAGE_SUFFIXES and np.array_equal(image, read_image(path))
        suffix = path.suffix if upright or path.suffix.lower() in KEPT_SUFFIXES else ".png"
        name = self._stems[path] + suffix
        for folder, labels in self._sets:
            target = folder / name
            try:
                if upright:
                    _link(path, target)
                else:
                    write_image(target, image)
                labels.add(name, detections)
            except BaseException:
                target.unlink(missing_ok=True)  # without a label it would be an image without objects
                raise
        self._saved = True

    def close(self) -> None:
        """Write what all images of a format share, if any image was saved."""
        if self._saved:
            for _, labels in self._sets:
                labels.close()


def _plan_stems(images: Iterable[Path]) -> dict[Path, str]:
    """By image its name without suffix, which no other has: it is the label's, too.

    What some format or tool stumbles over is replaced: a backslash, line ends, bytes that are not UTF-8, a leading dot.
    """
    taken: Counter[str] = Counter()
    stems = {}
    for path in images:
        shown = "".join(c if c.isprintable() and c != "\\" else "_" for c in path.stem)
        stems[path] = free_name(shown.strip(" ").lstrip(".") or "image", "", taken)
    return stems


def _link(path: Path, target: Path) -> None:
    """A hard link, or a copy where the file system or the owner does not let it be one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(path), target)
    except OSError:
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)
