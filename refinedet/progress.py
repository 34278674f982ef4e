"""How far long work is, on stderr: a bar at a terminal and in a notebook, elsewhere (a log of Slurm, Docker, CI) a line
now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, cast

from tqdm import tqdm

SHORT = 2.0  # seconds: what takes no longer needs no progress
INTERVAL = 30.0  # seconds from line to line

T = TypeVar("T")

_silent = ContextVar("silent", default=False)


class Progress(Protocol):
    """The progress of one piece of work; its context shows the last state at the end."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int = 1) -> object:
        """Count ``n`` more units, and show it when it is time to."""

    def set_postfix_str(self, text: str, refresh: bool) -> object:
        """What is shown beside the count; with ``refresh`` at once, where that is possible."""


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Show no progress in the block, whoever makes it (``on`` False: as around it)."""
    token = _silent.set(_silent.get() or on)
    try:
        yield
    finally:
        _silent.reset(token)


def show_progress(
    desc: str,
    unit: str,
    total: int | None,
    *,
    done: int = 0,
    delay: float = 0.0,
    leave: bool = True,
    shown: bool = True,
) -> Progress:
    """The progress of ``total`` (None: unknown) units of work, of which ``done`` are done already.

    Nothing is shown before ``delay`` seconds, and nothing at all without ``shown``. ``leave``: the last state stays.
    """
    shown = _is_shown(shown)
    if shown and not _has_bars():
        return _Lines(desc, unit, total, done, delay, leave)
    options = {"initial": done, "delay": delay, "leave": leave, "dynamic_ncols": True, "disable": not shown}
    return cast(Progress, tqdm(desc=desc, unit=unit, total=total, **options))


def track(items: Collection[T], desc: str, unit: str = "file") -> Iterator[T]:
    """``items``, with their progress while they take long."""
    with show_progress(desc, unit, len(items), delay=SHORT, leave=False) as shown:
        for item in items:
            yield item
            shown.update()


@contextmanager
def busy(desc: str, *, shown: bool = True) -> Iterator[None]:
    """Say what is going on while nobody can tell how far it is."""
    shown = _is_shown(shown)
    if shown and not _has_bars():
        write(f"{desc} ...")
        yield
    else:
        with tqdm(total=1, desc=desc, bar_format="{desc}: {elapsed} {postfix}", disable=not shown) as bar:
            yield
            bar.set_postfix_str("done")


def write(text: str) -> None:
    """A line on stderr, above the bars that are shown; it is lost where stderr is closed or full, and ends no work."""
    with contextlib.suppress(OSError, ValueError), tqdm.external_write_mode(file=sys.stderr):
        print(text, file=sys.stderr, flush=True)


class _Lines:
    """Progress in lines: one after two seconds, one every half minute, and one at the end."""

    def __init__(self, desc: str, unit: str, total: int | None, done: int, delay: float, leave: bool) -> None:
        self._desc, self._unit, self._total, self._leave = desc, unit, total, leave
        self._first = self._done = self._shown = done
        self._postfix = ""
        self._start = time.monotonic()
        self._due = self._start + max(delay, SHORT)
        self._silent_until = self._start + delay

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._leave and self._done > self._shown and time.monotonic() >= self._silent_until:
            self._show()

    def update(self, n: int = 1) -> None:
        self._done += n
        if time.monotonic() >= self._due:
            self._show()

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self._postfix = text

    def _show(self) -> None:
        now = time.monotonic()
        self._due, self._shown = now + INTERVAL, self._done
        write(self._line(now - self._start))

    def _line(self, seconds: float) -> str:
        units, interval = f"{self._unit}s", tqdm.format_interval
        rate = (self._done - self._first) / max(seconds, 1e-9)
        parts = [f"{self._desc}: {self._done} {units}"]
        if self._total:
            parts = [f"{self._desc}: {self._done} of {self._total} {units} ({100 * self._done / self._total:.0f} %)"]
        if self._postfix:
            parts.append(self._postfix)
        parts += [f"{rate:.3g} {units}/s", f"{interval(seconds)} passed"]
        if self._total and rate and self._done < self._total:
            parts.append(f"{interval((self._total - self._done) / rate)} left")
        return ", ".join(parts)


def _is_shown(wanted: bool) -> bool:
    return wanted and not _silent.get() and sys.stderr is not None and not getattr(sys.stderr, "closed", False)


def _has_bars() -> bool:
    """Whether a line can be written over. A notebook's stderr says that it is no terminal, but it can; what a program
    put in stderr's place may only know ``write``."""
    is_terminal = getattr(sys.stderr, "isatty", lambda: False)
    return is_terminal() or "ipykernel" in sys.modules
