"""Every operator beside its peers: the cases of `matrix`, the peers of `contestants`.

    pytest benchmarks/ops/bench_operators.py --benchmark-enable -m quick
    pytest benchmarks/ops/bench_operators.py --benchmark-enable -k "detect and VOC-320 and float16"

Results are compared before anything is timed: with the peers; those of a narrow type with those of the same numbers in
float32, and those of a GPU with the CPU's, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import contestants
import matrix
import pytest
import torch
from matrix import Case
from support.gpu import assert_same, to
from torch import Tensor

from refinedet.profiling.calibration import find_device
from refinedet.profiling.cost import Device


@pytest.mark.parametrize("case", matrix.parameters())
def test_operator(case: Case, compare: Callable[..., None]) -> None:
    given = matrix.arguments(case)
    ours = matrix.ours(case, given)
    found = ours()
    if case.device == "cuda":
        assert_same(found, matrix.ours(case, to("cpu", given))())
    if case.dtype != "float32":
        assert_same(found, matrix.ours(case, widened(given))())
    calls, bars = {}, {}
    for peer in contestants.peers_of(case, given):
        if peer.installed:
            calls[peer.name], bars[peer.name] = peer.prepare(case, given), contestants.bar(case, peer.name)
            peer.check(case, given, found, calls[peer.name]())
    row = (case.operator, case.scenario, case.dtype, str(case.batch), case.device)
    compare(ours, calls, bars, row=row, device=case.device, floor=matrix.floor(case, gpu(case)))


def widened(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for value in given)


def gpu(case: Case) -> Device | None:
    """As the cost model knows it."""
    if case.device == "cpu":
        return None
    here = torch.cuda.get_device_properties(case.device)
    return find_device(here.name, here.multi_processor_count)
