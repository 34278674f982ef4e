"""The record of a training run: ``log.jsonl`` (one JSON object per line) and TensorBoard event files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from refinedet.errors import RefineDetError
from refinedet.files import write_text
from refinedet.parsing import parse_json

LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class RunningMean:
    """Means of named numbers since the last `reset`."""

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        self.sums = dict(sums or {})
        self.count = count

    def add(self, values: Mapping[str, float]) -> None:
        """Count ``values`` in; every call gives the same names."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.count += 1

    def means(self) -> dict[str, float]:
        """The mean of each number."""
        return {name: value / self.count for name, value in self.sums.items()}

    def reset(self) -> None:
        """Forget everything added so far."""
        self.sums, self.count = {}, 0


class TrainingLog:
    """Appends to the logs of the run in folder ``out``; entries after ``step`` (of a run that died) are cut off first.

    Use as a context manager. Each line is flushed, so a killed run loses none that it wrote.

    Raises:
        RefineDetError: a log cannot be written (a full disk); from `write` or at the end.
    """

    def __init__(self, out: Path, step: int) -> None:
        self._path = out / LOG_FILE
        self._folder = out / TENSORBOARD_FOLDER
        self._step = step
        self._open = ExitStack()

    def __enter__(self) -> TrainingLog:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        with ExitStack() as opened:  # what is open and changed is undone when the next one fails
            opened.enter_context(_quiet_threads())
            with _explained(self._path):
                _cut(self._path, self._step)
                self._file = self._path.open("a", encoding="utf-8")
            opened.callback(_close, self._path, self._file)
            with _explained(self._folder):
                self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)
            opened.callback(_close, self._folder, self._writer)
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(RefineDetError) if kind else nullcontext():  # the first error is the one to tell
            self._open.close()

    def write(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """Log ``values`` (JSON-able) after ``step`` steps; numbers go to TensorBoard as ``group/name``, those of a
        dictionary as ``group/name/key``."""
        with _explained(self._path):
            self._file.write(json.dumps({"step": step, "group": group, **values}) + "\n")
            self._file.flush()
        with _explained(self._folder):
            for name, value in _flat(values, group):
                self._writer.add_scalar(name, value, step)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # TensorBoard's are OSErrors only where TensorFlow is not installed
        reason = str(error) or type(error).__name__
        raise RefineDetError(f"cannot write {path}: {reason}; free space, then resume the run") from error


def _close(path: Path, file: Any) -> None:
    with _explained(path):
        file.close()


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """TensorBoard writes in a thread, which keeps its error for our next call: a traceback would say it twice."""
    previous = threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            previous(failed)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = previous


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of nested dictionaries with their paths."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{name}", value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log up to the first line that is none: the last one of a killed run may be cut off."""
    entries = []
    for line in path.read_bytes().splitlines():
        try:
            entry = parse_json(line)
            if type(entry["step"]) is not int or not isinstance(entry["group"], str):
                break
        except (ValueError, TypeError, KeyError):
            break
        entries.append(entry)
    return entries


def _cut(path: Path, step: int) -> None:
    if path.exists():
        kept = [entry for entry in read_log(path) if entry["step"] <= step]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
