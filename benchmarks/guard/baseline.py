"""What was accepted, and what has become of it since. Nothing here measures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refinedet.files import write_text

FILE = Path(__file__).resolve().parent / "baseline.json"
ACCEPT = 'make bench-accept REASON="..."'

Values = dict[str, dict[str, float]]
"""Operator, kernel or function: case: number; more is worse."""


@dataclass(frozen=True)
class Measured:
    """The numbers of a part of the guard, and what they hang on beside the project: name: version."""

    values: Values
    made_with: dict[str, str]


@dataclass(frozen=True)
class Accepted(Measured):
    """Numbers that changes are compared with, and why they are what they are."""

    reason: str


@dataclass(frozen=True)
class Finding:
    """A number that is worth a line: name, case, what it was and what it is; None where it was or is not there."""

    name: str
    case: str
    old: float | None
    new: float | None
    limit: float

    @property
    def growth(self) -> float:
        """0.1: a tenth more. Infinity where a zero has grown, or there is nothing to compare with."""
        if self.old is None or self.new is None:
            return float("inf")
        if self.old == 0:
            return float("inf") if self.new > 0 else 0.0
        return self.new / self.old - 1

    @property
    def moved(self) -> bool:
        """By more than the limit."""
        if self.old is None or self.new is None:
            return True
        return abs(self.new - self.old) > self.limit * self.old

    @property
    def better(self) -> bool:
        return self.growth < 0

    def __str__(self) -> str:
        place = f"{self.name}, {self.case}"
        if self.old is None:
            return f"{place}: is {show(self.new)}, but the baseline does not have it"
        if self.new is None:
            return f"{place}: was {show(self.old)}, but is no longer measured"
        change = f" ({self.growth:+.1%})" if self.old else ""
        verdict = "better" if self.better else f"FAILED, at most {self.limit:.0%} is allowed"
        return f"{place}: was {show(self.old)}, is {show(self.new)}{change}: {verdict}"


def show(number: float | None) -> str:
    if number is None:
        return "nothing"
    return f"{number:,}" if isinstance(number, int) else f"{number:.3f}"


def compare(old: Values, new: Values, limit: float) -> list[Finding]:
    """Every number that has moved by more than `limit`, is new, or is gone."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name, {}), new.get(name, {})
        for case in dict.fromkeys([*before, *after]):
            finding = Finding(name, case, before.get(case), after.get(case), limit)
            if finding.moved:
                found.append(finding)
    return found


def differences_of_tools(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Why two measurements cannot be compared: one line for each tool that differs."""
    names = dict.fromkeys([*old, *new])
    return [
        f"{name} is {new.get(name, 'absent')}, the baseline was made with {old.get(name, 'none')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def renewed(old: Accepted | None, new: Measured, limit: float, reason: str) -> Accepted:
    """The numbers with those that have moved replaced: what stayed within its limit stays, or small steps would add up
    unseen. Everything is replaced where the tools differ."""
    if old is None or differences_of_tools(old.made_with, new.made_with):
        return Accepted(new.values, new.made_with, reason)
    moved = {(finding.name, finding.case) for finding in compare(old.values, new.values, limit)}
    if not moved:
        return old
    values = {
        name: {case: value if (name, case) in moved else old.values[name][case] for case, value in cases.items()}
        for name, cases in new.values.items()
    }
    return Accepted(values, new.made_with, reason)


def read(file: Path) -> dict[str, Accepted]:
    """The accepted numbers by part; none where there is no file."""
    if not file.exists():
        return {}
    parts = json.loads(file.read_text())
    return {name: Accepted(part["values"], part["made_with"], part["reason"]) for name, part in parts.items()}


def write(file: Path, parts: Mapping[str, Accepted]) -> None:
    """One number a line, so that a commit shows what it changes."""
    content = {
        name: {"reason": part.reason, "made_with": part.made_with, "values": part.values}
        for name, part in sorted(parts.items())
    }
    write_text(file, json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Report:
    """What the comparison of a part says."""

    lines: list[str]
    failed: bool = False
    comparable: bool = True
    improved: bool = False


def report(name: str, old: Accepted | None, new: Measured, limit: float) -> Report:
    """The lines of a part: what has moved, and how many numbers there are."""
    differ = ["there is no baseline"] if old is None else differences_of_tools(old.made_with, new.made_with)
    if old is None or differ:
        return Report([f"{name}: NOT COMPARABLE: {line}" for line in differ], comparable=False)
    found = compare(old.values, new.values, limit)
    count = sum(len(cases) for cases in new.values.values())
    better = sum(finding.better for finding in found)
    failed = len(found) - better
    summary = f"{name}: {count} numbers, {failed} failed, {better} better by more than {limit:.0%}"
    return Report([*map(str, found), summary], failed=failed > 0, improved=better > 0)


def advice(reports: Sequence[Report]) -> list[str]:
    """What to do about it."""
    lines = []
    if not all(one.comparable for one in reports):
        lines.append(
            "Without a baseline of these tools nothing is known. To compare two commits here: on the older one "
            'make bench-accept REASON="other tools"; on the newer, with the file that it wrote, make bench-check'
        )
    if any(one.failed for one in reports):
        lines.append(f"If a growth is meant: {ACCEPT}")
    if any(one.improved for one in reports):
        lines.append(f"What is better may grow back unseen, until: {ACCEPT}")
    return lines
