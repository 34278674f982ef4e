"""What the inputs of ``refinedet detect`` stand for, and what their annotated copies are called."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from refinedet.data.images import IMAGE_SUFFIXES, is_image
from refinedet.errors import DataError, InputError, printable, show
from refinedet.inference.video import is_video

KEPT_SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))  # annotated pictures of another format become .png
STDIN = "-"


def find_inputs(
    arguments: Iterable[str], *, recursive: bool = False, out: Path | None = None
) -> tuple[list[Path], list[Path]]:
    """The images and the videos that the arguments stand for, each once, in order.

    A folder gives the images and videos directly in it, with ``recursive`` those in the folders below it as well; a
    pattern (``*``, ``?``, ``[a-z]``, and ``**`` for folders of any depth) those among the files it matches; ``-`` the
    files and folders that stdin lists. What is hidden, links to folders, and the folder ``out`` of the annotated copies
    are not looked into.

    Raises DataError for a path that does not exist, what is neither file nor folder, and a folder, pattern or list
    without any image or video.
    """
    images: dict[Path, None] = {}
    videos: dict[Path, None] = {}
    for argument in arguments:
        for path in _expand(argument, recursive, out):
            (videos if is_video(path) else images)[path] = None
    return list(images), list(videos)


def find_photographs(given: Iterable[str] | None, option: str) -> list[Path]:
    """The images that an option stands for, as `find_inputs`; none where it is not given. InputError for a video."""
    images, videos = find_inputs(given or [])
    if videos:
        raise InputError(f"{option} {printable(videos[0])} is a video; give photographs")
    return images


def _expand(argument: str, recursive: bool, out: Path | None) -> Iterator[Path]:
    if argument == STDIN:
        for path in _listed():
            yield from _files_at(path, recursive, out)
    elif not argument:
        raise InputError("an input is an empty text; give files and folders (the folder you are in: .)")
    elif not os.path.lexists(argument) and any(letter in argument for letter in "*?["):
        yield from _matches(Path(argument))
    else:
        yield from _files_at(Path(argument), recursive, out)


def _files_at(path: Path, recursive: bool, out: Path | None) -> list[Path]:
    if path.is_dir():
        return _files_in(path, recursive, out)
    if path.is_file():
        return [path]
    if path.exists():
        raise DataError(f"{path}: a pipe, a device or a socket; give files and folders")
    raise DataError(f"{path}: no such file or folder; check the path")


def _files_in(folder: Path, recursive: bool, out: Path | None) -> list[Path]:
    folders = list(_walk(folder, out)) if recursive else [folder]
    found = [path for each in folders for path in sorted(each.iterdir()) if _is_shown(path)]
    if not found:
        where, fix = ("in or below", "check the path") if recursive else ("directly in", "--recursive looks below it")
        raise DataError(f"{folder}: no image or video {where} this folder; {fix}")
    return found


def _walk(folder: Path, out: Path | None) -> Iterator[Path]:
    """The folder and those below it. A link is not followed: it may lead back."""

    def refuse(error: OSError) -> None:
        raise error

    for name, below, _ in os.walk(folder, onerror=refuse):
        parent = Path(name)
        yield parent
        below[:] = sorted(each for each in below if not each.startswith(".") and not _is_same(parent / each, out))


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and other.exists() and path.samefile(other)


def _is_shown(path: Path) -> bool:
    """Whether this is an image or a video that is not hidden."""
    if path.name.startswith(".") or not path.is_file():
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES or is_image(path) or is_video(path)


def _matches(pattern: Path) -> list[Path]:
    """The images and videos among the files that match; ``**`` follows no link, as the shells have it."""
    parts = pattern.relative_to(pattern.anchor).parts
    if any("**" in part and part != "**" for part in parts):
        raise DataError(f"{pattern}: ** stands for folders, alone between two slashes; write **/*.jpg")
    if parts[-1] == "**":
        parts = (*parts, "*")
    matched = sorted(Path(pattern.anchor).glob(os.path.join(*parts)))
    found = [path for path in matched if _is_shown(path) and not _in_hidden_folder(path, parts)]
    if not found:
        raise DataError(f"{pattern}: no image or video matches; check the pattern")
    return found


def _in_hidden_folder(path: Path, asked: Iterable[str]) -> bool:
    return any(part.startswith(".") and part not in asked for part in path.parent.parts)


def _listed() -> list[Path]:
    """The paths on stdin, one a line, or ended by NUL as `find -print0` writes them."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    names = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    paths = [Path(os.fsdecode(name)) for name in names if name]
    if not paths:
        raise DataError("-: stdin lists no file; write one path a line")
    for path in paths:
        if not path.exists():
            raise DataError(f"-: stdin lists {show(str(path))}, which is no file or folder; write one path a line")
    return paths


def plan_outputs(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Where the annotated copy of each input goes: its name in ``out``, numbered when two inputs share it.

    Raises InputError when a copy would land on an input, or ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    originals = {path.resolve() for path in inputs}
    planned: dict[Path, Path] = {}
    taken: Counter[str] = Counter()
    for path in inputs:
        suffix = path.suffix.lower()
        suffix = ".mp4" if is_video(path) else suffix if suffix in KEPT_SUFFIXES else ".png"
        target = free_name(path.stem, suffix, taken)
        if (out / target).resolve() in originals:
            raise InputError(
                f"--out {out}: the annotated copy would overwrite the input {out / target}; give another folder"
            )
        planned[path] = out / target
    return planned


def free_name(stem: str, suffix: str, taken: Counter[str]) -> str:
    """The name, numbered where it is ``taken``, which counts how many copies would be called so."""
    name = f"{stem}{suffix}"
    asked = _folded(name)
    while _folded(name) in taken:
        taken[asked] += 1
        name = f"{stem}_{taken[asked]}{suffix}"
    taken[_folded(name)] = 1
    return name


def _folded(name: str) -> str:
    """Names that are one to some file system, which ignores case or the ways to write an accent, are equal so."""
    return unicodedata.normalize("NFC", name).casefold()
