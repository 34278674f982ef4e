"""Every barrier in the PTX of the kernels is needed: without any one of them an operator's check fails.

Each goes alone. Where the compiler has unrolled a loop, the copies beside it may do for one of the barrier's copies:
then all copies go together, and that has to be missed. A barrier that no check misses is either needless, and goes from
the source, or lacks a case in `check` of tests/ops/test_<op>.py.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_budget import cuda_build
from ptx_on_cpu import harness as ptx_on_cpu
from simulated.harness import OPERATORS, Harness

pytestmark = pytest.mark.ptx

BARRIER = re.compile(r"\s*(?:bar|barrier)\.(?:sync|red|warp\.sync)\b")
HALF_TYPES = {"4Half": torch.float16, "8BFloat16": torch.bfloat16}


@dataclass(frozen=True)
class Site:
    """A barrier in the PTX of an operator."""

    line: int  # of the file, from 0
    kernel: str  # mangled
    source: str  # the last .loc before it: file, line, column

    def __str__(self) -> str:
        return f"{self.kernel}, line {self.line + 1} of the PTX, {self.source}"


def sites_of(lines: list[str]) -> Iterator[Site]:
    kernel = source = ""
    for number, line in enumerate(lines):
        if entry := re.search(r"\.entry (\w+)", line):
            kernel = entry[1]
        elif ".loc" in line:
            source = line.strip()
        elif BARRIER.match(line):
            yield Site(number, kernel, source)


def check_in(operator: ModuleType, dtype: torch.dtype, harness: Harness) -> None:
    """An operator's `check`, of the kernels for a type."""
    if dtype == torch.float32:
        operator.check(harness)
    elif operator.__name__ in ("test_detect", "test_soft_nms"):
        operator.check(harness, dtype)
    elif operator.__name__ == "test_mine":
        logits, *conditions = operator.near_ties(1, 300, 41)
        operator.check_case(harness, (logits.to(dtype), *conditions), negative_ratio=1.0, seed=3)


def dtype_of(site: Site) -> torch.dtype:
    return next((dtype for name, dtype in HALF_TYPES.items() if name in site.kernel), torch.float32)


def is_missed(op: str, architecture: str, ptx: Path, dtype: torch.dtype) -> bool:
    """Does the check fail with this PTX?"""
    try:
        with ptx_on_cpu.start(op, architecture, ptx=ptx, timeout=20) as harness:
            check_in(importlib.import_module(f"test_{op}"), dtype, harness)
    except AssertionError:
        return True
    return False


@pytest.mark.long
@pytest.mark.parametrize("architecture", ptx_on_cpu.ARCHITECTURES)
@pytest.mark.parametrize("op", OPERATORS)
def test_without_any_barrier_a_check_fails(op: str, architecture: str, tmp_path: Path) -> None:
    try:
        _, whole = ptx_on_cpu.build(op, architecture)
    except cuda_build.ToolkitError as error:
        pytest.skip(f"there is no PTX: {error}")
    lines = whole.read_text().splitlines()
    sites = list(sites_of(lines))
    for dtype in {dtype_of(site) for site in sites}:
        assert not is_missed(op, architecture, whole, dtype), "the check fails with all barriers"
    mutant = tmp_path / whole.name

    def is_needed(removed: list[Site]) -> bool:
        gone = {site.line for site in removed}
        mutant.write_text("\n".join(line for number, line in enumerate(lines) if number not in gone) + "\n")
        return is_missed(op, architecture, mutant, dtype_of(removed[0]))

    def copies_of(site: Site) -> list[Site]:
        return [other for other in sites if (other.kernel, other.source) == (site.kernel, site.source)]

    alone = [site for site in sites if not is_needed([site])]
    assert [str(site) for site in alone if not is_needed(copies_of(site))] == []
