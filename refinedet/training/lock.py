"""One process at a time trains in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refinedet.errors import InputError

LOCK_FILE = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks say

_held: set[int] = set()  # open lock files of this process


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Keep other runs out of folder ``out`` for the length of the block; one that is made here is not left empty.

    The lock is the system's, on a file that its holder removes. It ends with the process, however that dies: a file
    that a killed run left locks nothing.

    Raises:
        InputError: another run holds it; names its process and machine.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK_FILE
    file = _take(path)
    _held.add(file)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock ends: no other run can have taken it yet
        _held.discard(file)
        os.close(file)
        with suppress(OSError):  # what holds something stays
            for folder in made:
                folder.rmdir()


def refuse_running(out: Path) -> None:
    """Raise InputError when a run is going on in ``out``."""
    if (out / LOCK_FILE).exists():
        with run_lock(out):
            pass


def _take(path: Path) -> int:
    """The lock file, open and locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has removed it in the meantime: it is no longer the one that others see


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(file, 1000).decode(errors="replace") or "another process"
        raise InputError(
            f"a run is going on in {path.parent} ({holder}); wait for its end, or choose another folder (--out)"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"{path.parent} is on a file system without locks ({error.strerror}); see to it that no other run uses it",
            stacklevel=2,
        )


def _let_go() -> None:
    """Loading processes share the open file and so the lock, and outlive a killed run by seconds."""
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
