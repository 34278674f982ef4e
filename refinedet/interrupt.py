"""Ctrl-C that lets what is under way finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on Ctrl-C after saving its state. The message says where; the exit status is 130."""


class StopRequest:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def stop_on_interrupt(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Turn the first SIGINT into a request to stop (``request``, or a new one); the second one kills the process, as
    without any handler.

    Outside the main thread, where Python allows no handlers, SIGINT keeps its meaning.
    """
    request = request or StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        request.made = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, previous)
