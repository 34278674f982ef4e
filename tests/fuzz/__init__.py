"""Seeded fuzzers of everything that reads a file: ``make fuzz`` (tests/fuzz/README.md)."""

from importlib import import_module
from pathlib import Path

from fuzz.engine import Target


def find_targets() -> dict[str, Target]:
    """Every kind of input by name: a file in targets/ each."""
    names = sorted(path.stem for path in (Path(__file__).parent / "targets").glob("[a-z]*.py"))
    return {name: import_module(f"fuzz.targets.{name}").TARGET for name in names}
