"""Where the package's files lie, and writing that leaves a file whole or absent: to a temporary neighbour, flushed to
disk, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refinedet.errors import escape_surrogates

PACKAGE = Path(__file__).resolve().parent
CHECKPOINTS = PACKAGE / "checkpoints"  # shipped models
LONG_NAME = 100  # bytes: of a longer name nothing goes into that of the temporary file; file systems take 255, some 143
LONG_SUFFIX = 20  # bytes: no format is called so
RECIPES = PACKAGE / "recipes"  # shipped recipes
_LARGEST_TEXT = 1 << 20  # bytes of a recipe, a protocol or a list of classes; what is larger was given by mistake
_SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")


def is_hidden(path: Path) -> bool:
    """Whether systems and editors keep a file for themselves: ``._a.xml``, ``.ipynb_checkpoints/a.xml``,
    ``__MACOSX/a.xml``, ``Thumbs.db``. ``path`` is relative to the folder that is searched, whose own name is no
    matter."""
    return any((part[0] == "." and part != "..") or part.lower() in _SYSTEM_FILES for part in path.parts)


@contextmanager
def utf8_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name of the file ``path``, in UTF-8: its own, or that of a link to it while the block runs. For libraries that
    take no other: OpenCV's videos end the process, safetensors refuses."""
    name = os.fspath(path)
    if escape_surrogates(name) == name:
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"file{escape_surrogates(Path(name).suffix)}"
        link.symlink_to(Path(name).absolute())
        yield str(link)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    The temporary file keeps ``path``'s suffix (OpenCV and matplotlib choose the format by it). On any error,
    a full disk included, it is removed and whatever stood at ``path`` before is untouched. Parent folders are made.
    An OSError that names no file, such as a full disk's, or the temporary one gets ``path`` as its ``filename``.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    try:
        temporary = _make_temporary(target)
        yield temporary
        _grant_default_mode(temporary)
        _flush_to_disk(temporary)
        temporary.replace(target)
    except OSError as error:
        if error.filename is None or temporary is None or Path(os.fsdecode(error.filename)) == temporary:
            error.filename = str(target)
            del error.filename2  # None would be shown as one
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def place(folder: Path, target: Path, last: str) -> None:
    """Move the files of ``folder`` to the folder ``target`` of the same file system, each at once, the one called
    ``last`` after all others: while it is the old one or absent, the new ones are not complete."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        _grant_default_mode(path)
        _flush_to_disk(path)
        path.replace(target / path.name)


def read_text(path: Path) -> str:
    """The text of a small file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it cannot be read, or is no such file; with the reason.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_TEXT + 1)
    except OSError as error:
        raise ValueError(f"{error.strerror or error}") from error
    if len(content) > _LARGEST_TEXT:
        raise ValueError(f"it has more than {_LARGEST_TEXT} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; save it as UTF-8 text") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _make_temporary(target: Path) -> Path:
    """An empty file beside ``target``, whose name is no longer than a long one of ``target``'s may be."""
    long = len(os.fsencode(target.name)) > LONG_NAME
    prefix = "." if long else f".{target.stem}."
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= LONG_SUFFIX else ""
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=target.parent)
    os.close(handle)
    return Path(name)


def is_utf8(text: str) -> bool:
    """Whether a file can hold ``text``; a path may be of any bytes, which Python shows as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _grant_default_mode(path: Path) -> None:
    """Give the file the mode a plain ``open`` would have: mkstemp makes it private to the user."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
