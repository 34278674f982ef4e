"""The CUDA kernels of match on the harness: the tests of the operator, and what matters to kernels."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from simulated import cases_match
from simulated.cases_match import check_case, random_inputs
from simulated.harness import Harness, LauncherError
from simulated.schedules import SCHEDULES, under_schedules
from test_match import (  # noqa: F401  these run here too, with the fixture `match` of this file
    MatchOp,
    test_anchor_at_the_threshold_is_matched,
    test_best_anchor_is_matched_below_the_threshold,
    test_box_that_overlaps_nothing_stays_unmatched,
    test_brute_force,
    test_crowd_equals_the_reference,
    test_equals_the_reference,
    test_images_do_not_mix,
    test_iou_of_a_millionth_is_no_overlap,
    test_nothing_to_match,
    test_official_matches,
    test_order_of_distinct_boxes_does_not_matter,
    test_targets_decode_to_the_matched_boxes,
    test_ties_go_to_the_lowest_anchor_then_to_the_earliest_box,
    test_two_boxes_that_share_a_best_anchor_get_two_anchors,
    test_unit_of_length_does_not_matter,
    test_unusable_boxes_and_anchors_overlap_nothing,
)

SEEDS = range(5)  # of schedules


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness("match", "address") as harness:
        yield harness


@pytest.fixture(scope="module", params=SCHEDULES)
def match(harness: Harness, request: pytest.FixtureRequest) -> MatchOp:
    """The kernels under AddressSanitizer."""
    return under_schedules(request.param, partial(cases_match.match, harness))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("anchors", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025])
def test_number_of_anchors(harness: Harness, anchors: int, seed: int) -> None:
    check_case(harness, random_inputs(seed, anchors, [3, 0, 9], shared=seed % 2 == 0, copies=3), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("boxes", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257])
def test_number_of_boxes(harness: Harness, boxes: int, seed: int) -> None:
    check_case(harness, random_inputs(seed, 300, [boxes, 1]), seed=seed)


@pytest.mark.parametrize("boxes", [1023, 1024, 1025])
def test_many_boxes(harness: Harness, boxes: int) -> None:
    check_case(harness, random_inputs(boxes, 400, [boxes, 3], usable=100))


@pytest.mark.parametrize("seed", SEEDS)
def test_crowd_of_equal_boxes(harness: Harness, seed: int) -> None:
    """All boxes have the same best anchor, then the same second best: each but the first has to look further."""
    check_case(harness, random_inputs(seed, 2100, [40], copies=40), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_drifting_boxes(harness: Harness, seed: int) -> None:
    """Boxes shifted bit by bit, which take each other's anchors from them."""
    cells = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)) / 12
    anchors = torch.cat([cells, torch.full_like(cells, 0.25)], dim=1)
    shifts = torch.arange(20)[:, None] * torch.tensor([0.0004, 0.0001, 0.0004, 0.0001])
    boxes = torch.tensor([0.4, 0.41, 0.66, 0.65]) + (shifts if seed % 2 else -shifts)
    check_case(harness, (anchors, boxes, torch.arange(1, 21), torch.tensor([0, 20])), seed=seed)


def test_many_images(harness: Harness) -> None:
    check_case(harness, random_inputs(0, 40, [*range(8)] * 32))


def test_views_need_not_be_aligned(harness: Harness) -> None:
    check_case(harness, random_inputs(1, 300, [40, 3], copies=2), misaligned=True)


def test_variances_and_threshold(harness: Harness) -> None:
    check_case(harness, random_inputs(2, 300, [9]), iou_threshold=0.3, variances=(0.2, 0.3, 0.4, 0.5))


def test_offsets_are_not_trusted(match: MatchOp) -> None:
    """Nobody has looked at offsets on the device: whatever they are, nothing outside the arrays is touched."""
    anchors, boxes, labels, _ = random_inputs(3, 20, [5], shared=True)
    far = 2**62
    for offsets in ([-far, 9, far], [5, 2, -1], [far, far, 0], [-1, -far, 3]):
        found = match(anchors, boxes, labels, torch.tensor(offsets))
        assert found.indices.min() >= -1
        assert found.indices.max() < 5


def test_largest_image() -> None:
    """300,000 anchors, where indices leave 16 bits and a search takes many rounds."""
    with Harness("match") as harness:
        check_case(harness, random_inputs(4, 300_000, [4, 2], shared=True, copies=2))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(seed: int) -> None:
    with Harness("match", "thread") as harness:
        check_case(harness, random_inputs(seed, 70, [6, 3], copies=3), seed=seed)
        check_case(harness, random_inputs(seed, 40, [270], usable=5), seed=seed)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((65536, 1, 1), "the batch size is 65536, on CUDA at most 65535"),
        ((1, 2**31, 1), "the number of anchors is 2147483648, on CUDA at most 2147483647"),
        ((1, 1, 2**31), "the number of ground truths is 2147483648, on CUDA at most 2147483647"),
    ],
)
def test_refused_sizes(harness: Harness, sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        harness.run("size", {}, dict(zip(("batch", "num_anchors", "num_truths"), sizes, strict=True)), {})
    harness.run("size", {}, {"batch": 256, "num_anchors": 300_000, "num_truths": 256_000}, {})
