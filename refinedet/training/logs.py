"""The record of a training run: ``log.jsonl`` (one JSON object per line) and TensorBoard event files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refinedet.errors import RefineDetError
from refinedet.files import write_text

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
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        self._path = out / LOG_FILE
        _cut(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._excepthook = threading.excepthook
        threading.excepthook = self._report_thread
        self._writer = SummaryWriter(str(out / TENSORBOARD_FOLDER), purge_step=step + 1)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            try:
                self._file.close()
            finally:
                self._writer.close()
        except OSError as error:
            if kind is None:  # else the first error is the one to tell
                raise self._unwritable(error) from error
        finally:
            threading.excepthook = self._excepthook

    def write(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """Log ``values`` (JSON-able) after ``step`` steps; numbers go to TensorBoard as ``group/name``, those of a
        dictionary as ``group/name/key``."""
        try:
            self._file.write(json.dumps({"step": step, "group": group, **values}) + "\n")
            self._file.flush()
            for name, value in _flat(values, group):
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RefineDetError:
        return RefineDetError(f"cannot write {self._path}: {error}; free space, then resume the run")

    def _report_thread(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread, which keeps an OSError for our next call: a traceback would say it twice."""
        if not (failed.exc_type is not None and issubclass(failed.exc_type, OSError)):
            self._excepthook(failed)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of nested dictionaries with their paths."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{name}", value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line that was cut off while being written is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def _cut(path: Path, step: int) -> None:
    if path.exists():
        kept = [entry for entry in read_log(path) if entry["step"] <= step]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
