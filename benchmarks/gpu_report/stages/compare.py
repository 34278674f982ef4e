"""Every operator on the device against the CPU, bit for bit. Needs no more than torch, so that it runs anywhere.

``--small`` of `main` runs what is little work: compute-sanitizer runs that (stages.sanitizer).
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from support.detect_cases import GOLDEN_NAMES, load_golden, random_anchors, random_tensor
from support.gpu import assert_same, to
from support.gpu_cases import OPERATORS, inputs

from gpu_report.worker import Job
from refinedet import ops

SIZES = [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097]
SMALL_SIZES = [1, 33, 257]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SEEDS = 5


@dataclass(frozen=True)
class Case:
    group: str  # what is counted together
    name: str
    operator: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def differs(self, device: torch.device) -> str | None:
        """What is not the same on the device."""
        expected = self.operator(*self.arguments, **self.options)
        try:
            assert_same(self.operator(*to(device, self.arguments), **self.options), expected)
        except AssertionError as error:
            return f"{self.name}: {error}"
        return None


def run(job: Job) -> None:
    cases = small_cases() if job.dry_run else all_cases()
    for group, members in groupby(cases, lambda case: case.group):
        found = [case.differs(job.device) for case in members]
        differences = [difference for difference in found if difference is not None]
        for difference in differences:
            job.fail(difference)
        job.figures(group, "count", {"cases": len(found), "different": len(differences)})


def small_cases() -> Iterator[Case]:
    """Every kernel, in every type."""
    yield from _golden(["ties", "empty_one"])
    for name in OPERATORS:
        yield from (_sized(name, count) for count in SMALL_SIZES)
        yield from (_typed(name, dtype, 0, 257) for dtype in TYPES)


def all_cases() -> Iterator[Case]:
    yield from _golden(GOLDEN_NAMES)
    for name in OPERATORS:
        yield from (_sized(name, count) for count in SIZES)
        yield from (_typed(name, dtype, seed, 1000) for dtype in TYPES for seed in range(SEEDS))
    yield from (_troubled(seed) for seed in range(SEEDS))


def _golden(names: list[str]) -> Iterator[Case]:
    for name in names:
        arguments, runs = load_golden(name)
        for run in runs:
            yield Case("detect, golden cases", f"detect, {name}, {run.tag}", ops.detect, arguments, run.options)


def _sized(name: str, count: int) -> Case:
    return Case(f"{name}, sizes", f"{name}, {count} rows", OPERATORS[name], inputs(name, count=count))


def _typed(name: str, dtype: torch.dtype, seed: int, count: int) -> Case:
    tensors = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs(name, seed, count=count))
    kind = str(dtype).removeprefix("torch.")
    return Case(f"{name}, {kind}", f"{name}, {kind}, seed {seed}", OPERATORS[name], tuple(tensors))


def _troubled(seed: int) -> Case:
    """NaN, infinities, ties, boxes of no size."""
    rng = np.random.default_rng(seed)
    tensor = partial(random_tensor, rng, scale=3, steps=True, trouble=0.02)
    heads = tuple(tensor((2, 1000, width)) for width in (4, 2, 4, 21))
    return Case("detect, troubled", f"detect, troubled, seed {seed}", ops.detect, (*heads, random_anchors(rng, 1000)))


def main(device: str) -> None:
    """The small cases alone, for a tool that watches them."""
    different = [found for case in small_cases() if (found := case.differs(torch.device(device)))]
    if different:
        sys.exit("\n".join(different))


if __name__ == "__main__":
    main(sys.argv[1])
