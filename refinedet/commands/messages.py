"""Errors and warnings for people: one line each, with the cause and the fix. They go above a progress bar, and none of
them can fail: neither the stream nor a letter in a file's name ends the work."""

import errno
import os
import warnings
from pathlib import Path
from typing import TextIO

from refinedet.errors import printable
from refinedet.files import PACKAGE
from refinedet.progress import write

_FIXES = {
    errno.ENOSPC: "free space or choose another folder",
    errno.EDQUOT: "free space or choose another folder",
    errno.EFBIG: "free space or choose another folder",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EEXIST: "choose another folder",
    errno.EISDIR: "choose another place",
    errno.ELOOP: "check its links",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOMEM: "free memory",
}
OUT_OF_MEMORY = "out of memory", "OutOfMemory", "can't allocate memory"  # CUDA, OpenCV, torch on the CPU


def say(message: str) -> None:
    """Tell the user on stderr, in one line."""
    write(f"refinedet: {printable(message)}")


def say_error(error: Exception) -> None:
    """Tell what went wrong, without a traceback."""
    say(f"error: {explain(error)}")


def explain(error: Exception) -> str:
    """The cause and the fix of an error that is no fault of this package."""
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if is_out_of_memory(error):
        reason = str(error).strip().partition("\n")[0]
        return f"out of memory{f' ({reason})' if reason else ''}; lower the batch size, or free memory"
    return str(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine's or the GPU's memory ended, whoever says so: Python, torch, OpenCV."""
    return isinstance(error, MemoryError) or any(words in f"{type(error)} {error}" for words in OUT_OF_MEMORY)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of this package is for the user: one line without the source code behind it."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(PACKAGE):
        say(f"warning: {message}")
    else:
        write(warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n"))


def _explain_os_error(error: OSError) -> str:
    """What the system said, with file and fix as all other errors have them."""
    fix = _FIXES.get(error.errno or 0)
    if error.filename is None or fix is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}; {fix}"
