"""What the tests of an operator run on. Its fixture, in tests/ops/test_<op>.py, is

    @pytest.fixture(scope="module", params=IMPLEMENTATIONS)
    def refine(request: pytest.FixtureRequest) -> RefineOp:
        return request.param(request, ops.refine, launch)

so that every test that asks for it runs on every implementation. `launch(harness, ..., seed=0)` calls the launcher of
the kernels with the arguments of the operator. Another implementation is another function and another line of the list.
"""

from collections.abc import Callable
from functools import partial
from itertools import count, islice
from typing import Any

import pytest
import torch
from support.gpu import on_gpu

Operator = Callable[..., Any]


def cpu(request: pytest.FixtureRequest, operator: Operator, launch: Operator) -> Operator:
    return operator


def simulated(schedules: int, request: pytest.FixtureRequest, operator: Operator, launch: Operator) -> Operator:
    """The kernels on the harness, under AddressSanitizer: tests/simulated/README.md."""
    return under_schedules(schedules, partial(launch, request.getfixturevalue("harness")))


def ptx(architecture: str, request: pytest.FixtureRequest, operator: Operator, launch: Operator) -> Operator:
    """The kernels' PTX, interpreted: tests/ptx_on_cpu/README.md."""
    return under_schedules(1, partial(launch, request.getfixturevalue("ptx_harness")(architecture)))


def gpu(request: pytest.FixtureRequest, operator: Operator, launch: Operator) -> Operator:
    return on_gpu(operator)


def under_schedules(number: int, launch: Operator) -> Operator:
    """Runs each call with so many seeds that no call before had: all have to give the same bits."""
    seeds = count()

    def run(*arguments: Any, **options: Any) -> Any:
        first, *others = (launch(*arguments, **options, seed=seed) for seed in islice(seeds, number))
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
        return first

    return run


KERNELS = [
    pytest.param(partial(simulated, 1), id="simulated", marks=pytest.mark.simulated),
    pytest.param(partial(simulated, 5), id="five-schedules", marks=[pytest.mark.simulated, pytest.mark.long]),
    *(
        pytest.param(partial(ptx, architecture), id=f"ptx-{architecture}", marks=[pytest.mark.ptx, *marks])
        for architecture, marks in (("7.5", []), *((other, [pytest.mark.long]) for other in ("5.2", "9.0", "12.0")))
    ),
    pytest.param(gpu, id="gpu", marks=pytest.mark.gpu),
]
IMPLEMENTATIONS = [pytest.param(cpu, id="cpu"), *KERNELS]
