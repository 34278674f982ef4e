"""Where the package's files lie, and writing that leaves a file whole or absent: to a temporary neighbour, flushed to
disk, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKPOINTS = PACKAGE / "checkpoints"  # shipped models
RECIPES = PACKAGE / "recipes"  # shipped recipes


def is_hidden(path: Path) -> bool:
    """Whether systems and editors keep a file for themselves: ``._a.xml``, ``.ipynb_checkpoints/a.xml``,
    ``__MACOSX/a.xml``. ``path`` is relative to the folder that is searched, whose own name is no matter."""
    return any((part[0] == "." and part != "..") or part == "__MACOSX" for part in path.parts)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    The temporary file keeps ``path``'s suffix (OpenCV and matplotlib choose the format by it). On any error,
    a full disk included, it is removed and whatever stood at ``path`` before is untouched. Parent folders are made.
    An OSError that names no file, such as a full disk's, gets ``path`` as its ``filename``.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _grant_default_mode(temporary)
        _flush_to_disk(temporary)
        temporary.replace(target)
    except OSError as error:
        if error.filename is None:
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _grant_default_mode(path: Path) -> None:
    """Give the file the mode a plain ``open`` would have: mkstemp makes it private to the user."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
