"""The report as a document: `Report` in memory, one JSON file on disk. Standard library only."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = "refinedet-gpu-report/1"  # another number where a reader of the old one would go wrong

PASSED, FAILED, SKIPPED, CUT_OFF = "passed", "failed", "skipped", "cut off"
RUNNING, WAITING = "running", "not started"
STATES = (PASSED, FAILED, SKIPPED, CUT_OFF, RUNNING, WAITING)
UNITS = ("us", "ms", "s", "B", "MiB", "GB/s", "GHz", "%", "1", "1/s", "count")  # "1" is a ratio


class ReportError(Exception):
    """What is wrong with a report, and what to do."""


@dataclass(frozen=True)
class Figure:
    """One number: ``name`` of ``case``."""

    case: str
    name: str
    value: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ReportError(
                f"{self.case}, {self.name}: the unit is {self.unit!r}, expected one of {', '.join(UNITS)}"
            )
        if not math.isfinite(self.value):
            raise ReportError(f"{self.case}, {self.name}: the value is {self.value}, expected a finite number")


@dataclass
class PartReport:
    """What one part has found. ``seconds`` is None until it ends."""

    name: str
    title: str
    limit: int
    state: str = WAITING
    reason: str = ""  # of a failure or a skip
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ReportError(f"part {self.name}: the state is {self.state!r}, expected one of {', '.join(STATES)}")


@dataclass
class Report:
    """One run. ``machine``: device, driver, versions, commit, as words."""

    dry_run: bool
    started: str  # UTC, ISO 8601
    machine: dict[str, str]
    parts: list[PartReport]
    schema: str = SCHEMA

    def part(self, name: str) -> PartReport:
        return next(part for part in self.parts if part.name == name)

    def value(self, part: str, case: str, name: str) -> float | None:
        """A figure's value; None where it was not measured."""
        values = (f.value for p in self.parts if p.name == part for f in p.figures if (f.case, f.name) == (case, name))
        return next(values, None)

    @property
    def broken(self) -> list[PartReport]:
        """The parts that did not do what they should."""
        return [part for part in self.parts if part.state in (FAILED, CUT_OFF)]

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Report:
    """Reads what `Report.save` has written.

    Raises:
        ReportError: it cannot be read, or is no report of this schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read ({error})") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ReportError(f"{path} has the schema {schema!r}, expected {SCHEMA!r}: make it anew by `make gpu-report`")
    try:
        parts = [_record(PartReport, part) for part in content["parts"]]
        for part in parts:
            part.figures = [_record(Figure, figure) for figure in part.figures]
        return _record(Report, {**content, "parts": parts})
    except (ReportError, TypeError, KeyError) as error:
        raise ReportError(f"{path} is no whole report: {error}") from None


def _record(kind: type, content: Any) -> Any:
    """A record from its JSON: all fields and no others, each of its type."""
    if not isinstance(content, dict) or content.keys() != {f.name for f in fields(kind)}:
        found = ", ".join(content) if isinstance(content, dict) else repr(content)
        raise ReportError(f"a {kind.__name__} has the fields {', '.join(f.name for f in fields(kind))}, not {found}")
    for name, types in _TYPES[kind.__name__].items():
        if not isinstance(content[name], types):
            raise ReportError(f"{name} of a {kind.__name__} is {content[name]!r}")
    return kind(**content)


_TYPES: dict[str, dict[str, Any]] = {
    "Figure": {"case": str, "name": str, "value": (int, float), "unit": str},
    "PartReport": {
        "name": str,
        "title": str,
        "limit": int,
        "state": str,
        "reason": str,
        "seconds": (int, float, type(None)),
        "notes": list,
        "figures": list,
    },
    "Report": {"dry_run": bool, "started": str, "machine": dict, "parts": list},
}


def write_text(path: Path, text: str) -> None:
    """Whole or not at all, as `refinedet.files` does it, which is not imported here: torch would come along."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Lines:
    """The records that a part's process appends to its file, one JSON object a line, as far as they are whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Those that came since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield json.loads(line)
