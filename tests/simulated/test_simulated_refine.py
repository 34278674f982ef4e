"""The CUDA kernel of refine on the harness: the tests of the operator; sizes and schedules that matter to kernels."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from simulated import cases_refine
from simulated.cases_refine import check_case
from simulated.harness import Harness
from simulated.schedules import SCHEDULES, under_schedules
from test_refine import (  # noqa: F401  these run here too, with the fixture `refine` of this file
    RefineOp,
    test_both_stages_of_the_published_vector,
    test_equals_reference,
    test_literal,
)

SEEDS = range(5)  # of schedules


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness("refine", "address") as harness:
        yield harness


@pytest.fixture(scope="module", params=SCHEDULES)
def refine(harness: Harness, request: pytest.FixtureRequest) -> RefineOp:
    """The kernel under AddressSanitizer."""
    return under_schedules(request.param, partial(cases_refine.refine, harness))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("anchors", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025])
def test_number_of_anchors(harness: Harness, anchors: int, seed: int) -> None:
    dtype = (torch.float32, torch.float16, torch.bfloat16)[seed % 3]
    check_case(harness, 2, anchors, shared=seed % 2 == 0, dtype=dtype, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_views_need_not_be_aligned(harness: Harness, dtype: torch.dtype, shared: bool) -> None:
    check_case(harness, 2, 40, shared=shared, dtype=dtype, misaligned=True)


def test_every_half_number(harness: Harness) -> None:
    """Conversion is ours: all 65,536 float16 and bfloat16 numbers, as the offset of a unit anchor."""
    anchors = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2**14, 4)
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 2**14, 4)
        moved = cases_refine.refine(harness, anchors, numbers, variances=(1.0, 1.0, 1.0, 1.0))
        torch.testing.assert_close(moved[..., :2], numbers[..., :2].float() + 0, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shared", [True, False])
def test_more_images_than_the_grid_has_rows(shared: bool) -> None:
    with Harness("refine") as harness:
        check_case(harness, 1026, 3, shared=shared)


def test_no_race() -> None:
    with Harness("refine", "thread") as harness:
        check_case(harness, 2, 200)
