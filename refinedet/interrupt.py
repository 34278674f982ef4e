"""Signals that ask to stop: Ctrl-C, the SIGTERM of Slurm, Kubernetes, `docker stop` and `timeout`, the SIGHUP of a
closed terminal. The first one lets what is under way finish, the second one kills."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ECHO = 0.5  # seconds: `timeout`, shells and launchers send one request twice, to the process and to its group


class Stopped(KeyboardInterrupt):
    """Asked to stop by the signal ``signum``."""

    def __init__(self, message: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """What a shell shows for a process that the signal killed: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signum


class TrainingInterrupted(Stopped):
    """Training stopped on request after saving its state. The message says where."""


class StopRequest:
    """Whether someone asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False

    @property
    def made(self) -> bool:
        """Whether someone asked."""
        return self.signum is not None

    def make(self, signum: int) -> None:
        """Ask to stop."""
        self.signum = signum
        if self._at_once:
            self.obey()

    def obey(self, message: str = "") -> None:
        """Raise Stopped if someone asked."""
        if self.signum is not None:
            raise Stopped(message, self.signum)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a request ends by Stopped, wherever it is: long work that leaves nothing half done."""
        self._at_once = True
        try:
            self.obey()
            yield
        finally:
            self._at_once = False


@contextmanager
def stop_on_interrupt(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Turn the first signal into a request to stop (``request``, or a new one); the second one kills the process, as
    without any handler.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """
    request = request or StopRequest()
    with _handling(request.make):
        yield request


@contextmanager
def raise_on_interrupt() -> Iterator[None]:
    """Turn the first signal into Stopped, wherever it comes; else as `stop_on_interrupt`."""
    with stop_on_interrupt() as request, request.at_once():
        yield


@contextmanager
def _handling(act: Callable[[int], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if previous[signal.SIGHUP] is signal.SIG_IGN:  # nohup
        del previous[signal.SIGHUP]

    def set_all(handler: signal.Handlers) -> None:
        for signum in previous:
            signal.signal(signum, handler)

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that was forked just now: its parent decides
            return
        set_all(signal.SIG_IGN)
        time.sleep(ECHO)
        set_all(signal.SIG_DFL)
        act(signum)

    for signum in previous:
        signal.signal(signum, on_signal)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
