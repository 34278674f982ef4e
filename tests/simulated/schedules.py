"""How many schedules the tests of the operators see on the harness: `make test` one, `make test-cuda` several."""

from collections.abc import Callable
from itertools import count, islice
from typing import Any

import pytest
import torch

SCHEDULES = [pytest.param(1, id="one"), pytest.param(5, id="five", marks=pytest.mark.long)]


def under_schedules(number: int, operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator, run in each call with so many seeds that no call before had: all have to give the same bits."""
    seeds = count()

    def run(*arguments: Any, **options: Any) -> Any:
        first, *others = (operator(*arguments, **options, seed=seed) for seed in islice(seeds, number))
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
        return first

    return run
