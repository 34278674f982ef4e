"""The CUDA kernels of nms on the harness: the tests of the operator, and sizes and schedules that matter to kernels."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from simulated import cases_nms
from simulated.cases_nms import BAND, check_case, random_case
from simulated.harness import Harness
from simulated.schedules import SCHEDULES, under_schedules
from test_nms import (  # noqa: F401  these run here too, with the fixture `nms` of this file
    NmsOp,
    crowd,
    test_equals_reference_and_brute_force,
    test_literal,
    test_order_of_the_input_does_not_matter,
    test_policy_for_troubled_boxes,
    test_size_and_place_of_the_boxes_do_not_matter,
    test_survivors_survive_again,
    test_the_threshold_itself_does_not_suppress,
)

SEEDS = range(5)  # of schedules


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness("nms", "address") as harness:
        yield harness


@pytest.fixture(scope="module")
def fast_harness() -> Iterator[Harness]:
    """Without AddressSanitizer, for several bands."""
    with Harness("nms") as harness:
        yield harness


@pytest.fixture(scope="module", params=SCHEDULES)
def nms(harness: Harness, request: pytest.FixtureRequest) -> NmsOp:
    """The kernels under AddressSanitizer."""
    return under_schedules(request.param, partial(cases_nms.nms, harness))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "boxes", [0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025]
)
def test_number_of_boxes(harness: Harness, boxes: int, seed: int) -> None:
    classes = 1 + 2 * (seed % 2)
    boxes, scores, labels = random_case(seed, boxes, classes)
    kept = check_case(harness, boxes, scores, labels if classes > 1 else None, 0.3, seed=seed)
    assert len(kept) <= len(boxes)


@pytest.mark.parametrize("boxes", [BAND - 1, BAND, BAND + 1, 2 * BAND + 65])
def test_number_of_bands(fast_harness: Harness, boxes: int) -> None:
    boxes, scores, labels = random_case(boxes, boxes, 2, size=0.1)
    kept = check_case(fast_harness, boxes, scores, labels, 0.3)
    assert len(kept) > len(boxes) / 10  # of every band


@pytest.mark.parametrize("seed", SEEDS)
def test_a_later_band_is_suppressed_by_an_earlier_one(harness: Harness, seed: int) -> None:
    boxes, _, _ = random_case(seed, 100, 1, size=0.5)
    many = boxes.repeat(50, 1)
    falling = torch.arange(len(many), 0, -1).float()
    kept = check_case(harness, many, falling, None, 0.9, seed=seed)
    assert len(kept) > 50
    assert kept.max() < 100


def test_nothing_survives_and_everything_survives(harness: Harness) -> None:
    boxes, scores, labels = random_case(0, 300, 3)
    assert len(check_case(harness, torch.full_like(boxes, float("nan")), scores, labels, 0.5)) == 0
    assert len(check_case(harness, boxes, torch.full_like(scores, float("nan")), labels, 0.5)) == 0
    assert len(check_case(harness, boxes, scores, labels, 1.45)) == 300
    assert len(check_case(harness, boxes, scores, torch.arange(300) - 2**62, 0.0)) == 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_views_need_not_be_aligned(harness: Harness, dtype: torch.dtype) -> None:
    boxes, scores, labels = random_case(0, 150, 2)
    boxes = boxes.to(dtype)
    kept = cases_nms.nms(harness, boxes, scores, labels, 0.4, misaligned=True)
    assert torch.equal(kept, cases_nms.nms(harness, boxes, scores, labels, 0.4))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(seed: int) -> None:
    with Harness("nms", "thread") as harness:
        check_case(harness, *random_case(seed, 130, 2), 0.3, seed=seed)
