"""Keeping what OpenCV's decoders print off the terminal, at the command line."""

import contextlib
import os
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
