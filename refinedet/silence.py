"""Keeping what libraries print off the terminal."""

import contextlib
import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_lock = threading.Lock()


def silence_opencv() -> None:
    """For a command, before OpenCV is imported: what is wrong with a file is said once, by us.

    A user who sets these variables sees OpenCV's lines; worker processes inherit them.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET


@contextlib.contextmanager
def silent_decoders() -> Iterator[None]:
    """Where OPENCV_LOG_LEVEL is SILENT, nothing reaches file descriptor 2 inside the block.

    libjpeg and libpng write there themselves, whatever the level. So would other threads: keep the block short.
    """
    if os.environ.get("OPENCV_LOG_LEVEL") != "SILENT":
        yield
        return
    with _lock, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no standard error, nothing to silence
            kept = os.dup(2)
            stack.callback(os.close, kept)
            null = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, null)
            os.dup2(null, 2)
            stack.callback(os.dup2, kept, 2)
        yield


@contextlib.contextmanager
def capture_output() -> Iterator[list[str]]:
    """What reaches file descriptor 1 inside the block is kept from there; the lines of it are in the list after it.

    For libraries in C and C++ that print there themselves. Whatever other threads print goes the same way.
    """
    lines: list[str] = []
    with _lock, tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        _flush()
        try:
            kept = os.dup(1)
        except OSError:  # no standard output, nothing to keep
            yield lines
            return
        stack.callback(os.close, kept)
        os.dup2(file.fileno(), 1)
        try:
            yield lines
        finally:
            _flush()
            os.dup2(kept, 1)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def _flush() -> None:
    """What Python and C hold back for standard output goes there now."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no sys.stdout, or a closed one
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
