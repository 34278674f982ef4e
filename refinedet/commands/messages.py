"""Errors and warnings for people: one line each, with the cause and the fix."""

import errno
import sys
import warnings
from pathlib import Path
from typing import TextIO

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
    errno.ENAMETOOLONG: "choose a shorter name",
}


def say(message: str) -> None:
    """Tell the user on stderr, in one line."""
    write(f"refinedet: {message}")


def say_error(error: Exception) -> None:
    """Tell what went wrong, without a traceback."""
    say(f"error: {_explain_os_error(error) if isinstance(error, OSError) else error}")


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
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")


def _explain_os_error(error: OSError) -> str:
    """What the system said, with file and fix as all other errors have them."""
    fix = _FIXES.get(error.errno or 0)
    if error.filename is None or fix is None:
        return str(error)
    return f"{error.filename}: {error.strerror}; {fix}"
