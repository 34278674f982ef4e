"""The CUDA kernels of detect on the harness: the tests of the operator; sizes and schedules that matter to kernels."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from simulated import cases_detect
from simulated.cases_detect import check_case, random_inputs
from simulated.harness import Harness, LauncherError
from simulated.schedules import SCHEDULES, under_schedules
from support.detect_cases import GOLDEN_NAMES, load_golden, random_tensor
from test_detect import (  # noqa: F401  these run here too, with the fixture `detect` of this file
    DetectOp,
    clusters,
    test_equals_reference,
    test_fewer_rows_are_the_first_rows,
    test_images_do_not_meet,
    test_levels_of_any_size,
    test_levels_of_the_network,
    test_literal,
    test_official_layer,
    test_official_layer_with_ties,
    test_order_of_the_anchors_does_not_matter,
    test_the_cascade_moves_twice,
)

SEEDS = range(5)  # of schedules
SIZES = [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025]
ALL = {"objectness_threshold": 0.0, "score_threshold": -1.0}  # every anchor is a candidate of every class


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness("detect", "address") as harness:
        yield harness


@pytest.fixture(scope="module")
def fast_harness() -> Iterator[Harness]:
    """Without AddressSanitizer, for what is large."""
    with Harness("detect") as harness:
        yield harness


@pytest.fixture(scope="module", params=SCHEDULES)
def detect(harness: Harness, request: pytest.FixtureRequest) -> DetectOp:
    """The kernels under AddressSanitizer."""
    return under_schedules(request.param, lambda *inputs, **options: cases_detect.detect(harness, inputs, **options))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("anchors", SIZES)
def test_number_of_anchors(harness: Harness, anchors: int, seed: int) -> None:
    inputs = random_inputs(seed, 1 + seed % 2, anchors, 4, steps=seed % 3 == 0)
    check_case(harness, inputs, **(ALL if seed % 2 else {}), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [1, 2, 3, 21, 32, 64, 81, 127, 128, 129])
def test_number_of_classes(harness: Harness, classes: int, seed: int) -> None:
    check_case(harness, random_inputs(seed, 1, 70, classes), score_threshold=0.001, seed=seed)


@pytest.mark.parametrize("classes", [2048, 2049, 4095])
def test_many_classes(fast_harness: Harness, classes: int) -> None:
    """Exponentials of one anchor, or two, fill the block's memory."""
    inputs = random_inputs(classes, 1, 5, classes, arm_conf=False)
    found = check_case(fast_harness, inputs, score_threshold=1e-4, keep_top_k=1024)
    assert found.counts.item() > 100


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("top_k", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257])
def test_top_k(harness: Harness, top_k: int, seed: int) -> None:
    """Selection among 300 candidates of a class, with ties at the cut for some seeds."""
    inputs = random_inputs(seed, 1, 300, 3, steps=seed % 2 == 1)
    check_case(harness, inputs, **ALL, top_k=top_k, iou_threshold=0.9, keep_top_k=1024, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep_top_k", [1, 31, 32, 33, 255, 256, 257, 1023, 1024])
def test_keep_top_k(harness: Harness, keep_top_k: int, seed: int) -> None:
    inputs = random_inputs(seed, 1, 300, 5, steps=seed % 2 == 1)
    found = check_case(harness, inputs, **ALL, keep_top_k=keep_top_k, iou_threshold=0.95, seed=seed)
    assert found.counts.item() == keep_top_k


@pytest.mark.parametrize("top_k", [1023, 1024, 1025, 2048])
def test_large_selection(harness: Harness, top_k: int) -> None:
    inputs = random_inputs(top_k, 1, 2500, 2)
    found = check_case(harness, inputs, **ALL, top_k=top_k, keep_top_k=1024, iou_threshold=0.95)
    assert found.counts.item() > 500


def test_equal_scores(harness: Harness) -> None:
    """All scores are the same: the cuts and the order follow the anchors and classes alone."""
    arm_loc, arm_conf, odm_loc, odm_conf, anchors = random_inputs(0, 2, 600, 3)
    inputs = (arm_loc, torch.zeros_like(arm_conf), odm_loc, torch.zeros_like(odm_conf), anchors)
    found = check_case(harness, inputs, top_k=100, keep_top_k=150, iou_threshold=1.0)
    assert found.counts.tolist() == [150, 150]
    assert found.indices[0, :4].tolist() == [0, 0, 1, 1]


def test_suppression_of_nearly_everything(harness: Harness) -> None:
    rng = np.random.default_rng(5)
    anchors = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(3000, 1)
    odm_loc = random_tensor(rng, (1, 3000, 4), scale=0.3, steps=False, trouble=0)
    odm_conf = random_tensor(rng, (1, 3000, 3), scale=1, steps=False, trouble=0)
    for top_k in (100, 2048):
        options = {"top_k": top_k, "keep_top_k": 20, "iou_threshold": 0.3}
        assert check_case(harness, (None, None, odm_loc, odm_conf, anchors), **options).counts.item() < 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stages", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("levels", [[300], [256, 44], [0, 257, 0, 43], [200, 60, 30, 10], [300, 0]])
def test_head_maps(harness: Harness, dtype: torch.dtype, stages: tuple[bool, bool], levels: list[int]) -> None:
    with_arm_loc, with_arm_conf = stages
    inputs = random_inputs(1, 2, 300, 5, arm_loc=with_arm_loc, arm_conf=with_arm_conf, dtype=dtype)
    check_case(harness, inputs, levels=levels)


@pytest.mark.parametrize("name", [name for name in GOLDEN_NAMES if "320" in name])
def test_head_maps_of_the_network(fast_harness: Harness, name: str) -> None:
    check_case(fast_harness, load_golden(name)[0], levels=[4800, 1200, 300, 75])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_views_need_not_be_aligned(harness: Harness, dtype: torch.dtype) -> None:
    check_case(harness, random_inputs(2, 2, 70, 4, dtype=dtype), levels=[60, 10], misaligned=True)


def test_many_images(fast_harness: Harness) -> None:
    check_case(fast_harness, random_inputs(3, 256, 20, 3), top_k=5, keep_top_k=7)


@pytest.mark.parametrize("shape", [(0, 10, 3), (2, 0, 3), (2, 10, 1), (2, 0, 1), (0, 0, 1)])
def test_empty(harness: Harness, shape: tuple[int, int, int]) -> None:
    found = check_case(harness, random_inputs(0, *shape))
    assert found.counts.tolist() == [0] * shape[0]


def test_largest_image(fast_harness: Harness) -> None:
    """300,000 anchors of four levels, a few thousand of which pass the filter."""
    inputs = random_inputs(0, 1, 300_000, 3)
    check_case(fast_harness, inputs, levels=[240_000, 45_000, 12_000, 3_000], objectness_threshold=0.999)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(seed: int) -> None:
    with Harness("detect", "thread") as harness:
        check_case(harness, random_inputs(seed, 1, 250, 2), **ALL, top_k=150, keep_top_k=40, seed=seed)


LARGEST = {"batch": 256, "num_anchors": 300_000, "num_classes": 600, "top_k": 1000, "keep_top_k": 500}


def workspace_bytes(harness: Harness, **sizes: int) -> int:
    result = harness.run("size", {}, LARGEST | sizes, {"workspace_bytes": (np.int64, (1,))})
    return int(result.outputs["workspace_bytes"][0])


def test_workspace(harness: Harness) -> None:
    """Sizes are counted in 64 bits; the lists of candidates dominate."""
    lists = 8 * 256 * 599 * 300_000
    assert lists < workspace_bytes(harness) < 1.02 * lists
    assert workspace_bytes(harness, batch=1, num_anchors=6375, num_classes=21) < 1.3e6


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch": 65536}, "the batch size is 65536, on CUDA at most 65535"),
        ({"num_classes": 4096}, "the number of classes is 4096, on CUDA at most 4095"),
        ({"top_k": 2049}, "top_k is 2049, on CUDA at most 2048"),
        ({"keep_top_k": 1025}, "keep_top_k is 1025, on CUDA at most 1024"),
    ],
)
def test_refused_sizes(harness: Harness, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        workspace_bytes(harness, **sizes)


def test_top_k_beyond_the_anchors_is_all_of_them(harness: Harness) -> None:
    assert workspace_bytes(harness, num_anchors=2000, top_k=10**9) > 0
