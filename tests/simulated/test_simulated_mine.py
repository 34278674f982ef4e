"""The CUDA kernels of mine on the harness: the tests of the operator, and what matters to kernels."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from simulated import cases_mine
from simulated.cases_mine import check_case, near_ties, random_inputs
from simulated.harness import Harness, LauncherError
from simulated.schedules import SCHEDULES, under_schedules
from test_mine import (  # noqa: F401  these run here too, with the fixture `mine` of this file
    MineOp,
    test_brute_force,
    test_equals_the_reference,
    test_fewer_eligible_than_wanted,
    test_ignored_anchors_are_neither_selected_nor_counted,
    test_images_do_not_mix,
    test_iou_is_exclusive_and_objectness_inclusive,
    test_loss_of_logits_is_capped,
    test_mining_the_losses_is_mining_the_logits,
    test_nan_loss_is_never_selected,
    test_no_positive_no_negative,
    test_nothing_to_mine,
    test_number_of_negatives_is_rounded_down,
    test_official_negatives,
    test_the_hardest_three_per_positive,
    test_ties_go_to_the_lowest_anchor,
)

SEEDS = range(5)  # of schedules
SIZES = [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025]


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness("mine", "address") as harness:
        yield harness


@pytest.fixture(scope="module", params=SCHEDULES)
def mine(harness: Harness, request: pytest.FixtureRequest) -> MineOp:
    """The kernels under AddressSanitizer."""
    return under_schedules(request.param, partial(cases_mine.mine, harness))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("anchors", SIZES)
def test_number_of_anchors(harness: Harness, anchors: int, seed: int) -> None:
    check_case(harness, random_inputs(seed, 2, anchors), seed=seed)
    check_case(harness, random_inputs(seed, 2, anchors, 3, objectness=False), seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 8, 9, 16, 17, 21, 31, 32, 33, 63, 64, 65, 81, 128, 129, 600, 4095])
def test_number_of_classes(harness: Harness, classes: int, dtype: torch.dtype) -> None:
    check_case(harness, random_inputs(classes, 1, 40, classes, positives=0.2, dtype=dtype), seed=classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [3, 21, 81, 600])
def test_softmax_is_the_same_bit_for_bit(harness: Harness, classes: int, dtype: torch.dtype) -> None:
    check_case(harness, near_ties(classes, 300, classes, dtype), negative_ratio=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [None, 21])
def test_views_need_not_be_aligned(harness: Harness, classes: int | None, dtype: torch.dtype) -> None:
    check_case(harness, random_inputs(7, 2, 300, classes, dtype=dtype), misaligned=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ratio", [0.01, 0.1, 1.0, 7.5, 30.0])
def test_number_of_negatives(harness: Harness, ratio: float, seed: int) -> None:
    """From none to all of the candidates, most of which have the same loss as others."""
    check_case(harness, random_inputs(seed, 2, 700), negative_ratio=ratio, seed=seed)


def test_all_losses_are_equal(harness: Harness) -> None:
    _, *others = random_inputs(0, 2, 3000)
    mask = check_case(harness, (torch.zeros(2, 3000), *others))
    assert 0 < mask.sum() < (others[0] == 0).sum()


def test_many_images(harness: Harness) -> None:
    check_case(harness, random_inputs(1, 256, 40, positives=0.1))


def test_largest_image() -> None:
    """300,000 anchors, whose keys differ in all but the first byte of the index."""
    with Harness("mine") as harness:
        check_case(harness, random_inputs(2, 1, 300_000, positives=0.001))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(seed: int) -> None:
    with Harness("mine", "thread") as harness:
        check_case(harness, random_inputs(seed, 2, 70), seed=seed)
        check_case(harness, random_inputs(seed, 1, 100, 100), seed=seed)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((65536, 1, 1), "the batch size is 65536, on CUDA at most 65535"),
        ((1, 2**31, 1), "the number of anchors is 2147483648, on CUDA at most 2147483647"),
        ((1, 1, 4096), "the number of classes is 4096, on CUDA at most 4095"),
    ],
)
def test_refused_sizes(harness: Harness, sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        harness.run("size", {}, dict(zip(("batch", "num_anchors", "num_classes"), sizes, strict=True)), {})
    harness.run("size", {}, {"batch": 256, "num_anchors": 300_000, "num_classes": 600}, {})
