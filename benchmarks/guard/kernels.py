"""What the kernels execute, counted in their PTX: the quick cases of tools/count_kernels.py, beside its table.

The table is the baseline: docs/kernels/counts.json. Of its numbers those are compared that a slowdown moves.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import count_kernels
from ptx_on_cpu import harness
from support.counted_cases import CASES

from cuda_build import ToolkitError
from guard.baseline import Accepted, Measured, Values
from guard.instructions import ROOT
from guard.processes import GuardError

NUMBERS = {
    "instructions": "warp_instructions",
    "sectors": "global_sectors",
    "conflicts": "bank_conflicts",
    "longest block": "longest_block_cycles",
}
QUICK = tuple(case for case in CASES if case.quick)


def measure() -> Measured:
    try:
        version = harness.toolkit().version
    except ToolkitError as error:
        raise GuardError(f"the kernels cannot be counted without nvcc: {error}") from None
    return Measured(values_of(count_kernels.count_all(QUICK)), {"nvcc": version})


def accepted(file: Path = count_kernels.TABLE) -> Accepted:
    table = json.loads(file.read_text())
    quick = {(case.operator, case.name) for case in QUICK}
    operators = {
        operator: {name: entry for name, entry in entries.items() if (operator, name) in quick}
        for operator, entries in table["operators"].items()
    }
    return Accepted(values_of(operators), {"nvcc": table["nvcc"]}, table["reason"])


def values_of(operators: dict[str, dict[str, Any]]) -> Values:
    """Kernel: operator, case and number: value, of all launches of the kernel."""
    values: Values = {}
    for operator, entries in operators.items():
        for name, entry in entries.items():
            for kernel, launches in by_kernel(entry["launches"]).items():
                for number, key in NUMBERS.items():
                    total = sum(launch[key] for launch in launches)
                    values.setdefault(kernel, {})[f"{operator}, {name}: {number}"] = total
    return values


def by_kernel(launches: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for launch in launches:
        found.setdefault(launch["kernel"], []).append(launch)
    return found


def renew(reason: str) -> None:
    """All tables of the kernels anew, in minutes."""
    command = [sys.executable, str(ROOT / "tools" / "count_kernels.py"), "--write", "--reason", reason]
    if subprocess.run(command).returncode != 0:
        raise GuardError("the tables of the kernels could not be renewed: see above")
