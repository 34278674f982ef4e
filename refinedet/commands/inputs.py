"""What the inputs of ``refinedet detect`` stand for, and what their annotated copies are called."""

from collections.abc import Iterable
from pathlib import Path

from refinedet.data import list_images
from refinedet.errors import DataError, InputError

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"))
KEPT_SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))  # annotated pictures of another format become .png


def find_inputs(arguments: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The images and the videos that files and folders stand for, each once, in order; a folder gives the images and
    videos directly in it. Raises DataError for a path that does not exist and a folder without any."""
    images: dict[Path, None] = {}
    videos: dict[Path, None] = {}
    for argument in arguments:
        if not argument.exists():
            raise DataError(f"{argument}: no such file or folder; check the path")
        for path in _files_in(argument) if argument.is_dir() else [argument]:
            (videos if path.suffix.lower() in VIDEO_SUFFIXES else images)[path] = None
    return list(images), list(videos)


def _files_in(folder: Path) -> list[Path]:
    videos = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES]
    found = sorted(path for path in [*list_images(folder), *videos] if path.is_file() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no image or video directly in this folder; give the folder that holds them")
    return found


def plan_outputs(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Where the annotated copy of each input goes: its name in ``out``, numbered when two inputs share it.

    Raises InputError when a copy would land on an input, or ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    originals = {path.resolve() for path in inputs}
    planned: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in inputs:
        suffix = path.suffix.lower()
        suffix = ".mp4" if suffix in VIDEO_SUFFIXES else suffix if suffix in KEPT_SUFFIXES else ".png"
        target, number = out / f"{path.stem}{suffix}", 1
        while target.name.lower() in taken:  # lower: some file systems ignore case
            number += 1
            target = out / f"{path.stem}_{number}{suffix}"
        if target.resolve() in originals:
            raise InputError(f"--out {out}: the annotated copy would overwrite the input {target}; give another folder")
        taken.add(target.name.lower())
        planned[path] = target
    return planned
