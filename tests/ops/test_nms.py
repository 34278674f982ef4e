"""nms. Tests with the argument ``nms`` run on every implementation; those of the kernels alone come last."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import random_tensor, threads
from support.implementations import IMPLEMENTATIONS
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError

NmsOp = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]  # boxes, scores, labels, iou_threshold
BAND = 4096  # boxes that are resolved together, kBandTiles of csrc/ops/nms/nms_cuda.cu


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    """``ops.nms`` and ``ops.batched_nms`` with one face."""
    if labels is None:
        return ops.nms(boxes, scores, iou_threshold)
    return ops.batched_nms(boxes, scores, labels, iou_threshold)


def launch(
    harness: Harness,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    iou_threshold: float,
    *,
    misaligned: bool = False,
    seed: int = 0,
) -> Tensor:
    """The kernels on the harness, after the sort that the registration does."""
    count = len(boxes)
    if boxes.dtype not in DTYPES:
        boxes = boxes.float()
    scores = scores.float()
    arrays = {
        "boxes": to_array(boxes.contiguous()),
        "scores": scores.numpy(),
        "order": scores.argsort(descending=True, stable=True).numpy(),
    }
    if labels is not None:
        arrays["labels"] = labels.numpy()
    result = harness.run(
        "nms",
        arrays,
        {"type": DTYPES.index(boxes.dtype), "num_boxes": count, "iou_threshold": float(iou_threshold)},
        {"kept": (np.int64, (count,)), "count": (np.int64, (1,))},
        seed=seed,
        misaligned=("boxes",) if misaligned else (),
    )
    bands = -(-count // BAND)
    assert result.launches == (3 * bands if bands > 0 else 0)
    return torch.from_numpy(result.outputs["kept"][: result.outputs["count"][0]].copy())


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def nms(request: pytest.FixtureRequest) -> NmsOp:
    return request.param(request, suppress, launch)


def random_boxes(rng: np.random.Generator, count: int, *, steps: bool, trouble: float) -> Tensor:
    """[count,4] corners, about one in ten inverted."""
    low, size = rng.uniform(0, 1, (count, 2)), rng.uniform(-0.05, 0.5, (count, 2))
    boxes = np.concatenate([low, low + size], axis=1)
    if steps:
        boxes = np.round(boxes * 8) / 8
    noise = random_tensor(rng, (count, 4), scale=0, steps=False, trouble=trouble)
    return torch.from_numpy(boxes.astype(np.float32)) + noise


def brute_force(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> list[int]:
    """Greedy suppression by the definition, from the matrix of all pairs, in float32."""
    rows, order = boxes.numpy(), np.lexsort((np.arange(len(scores)), -scores.numpy()))
    low, high = rows[:, :2], rows[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        area = (high - low).clip(min=0).prod(axis=1)
        sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
        intersection = sides.clip(min=0).prod(axis=2)
        suppress = intersection > np.float32(iou_threshold) * (area[:, None] + area - intersection)
    suppress &= (labels[:, None] == labels).numpy()
    kept: list[int] = []
    for i in order[np.isfinite(rows).all(axis=1)[order] & ~np.isnan(scores.numpy())[order]]:
        if not suppress[kept, i].any():
            kept.append(int(i))
    return kept


@pytest.mark.small
def test_literal(nms: NmsOp) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.8], [3, 3, 4, 4], [0, 0, 2, 2]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.5])
    assert nms(boxes, scores, None, 0.5).tolist() == [1, 2]
    assert nms(boxes, scores, None, 0.9).tolist() == [1, 0, 2]  # box 3 equals box 0: the lower index wins
    assert nms(boxes, scores, None, 1.45).tolist() == [1, 0, 3, 2]
    assert nms(boxes, scores, torch.tensor([7, -1, 7, 7]), 0.5).tolist() == [1, 0, 2]


def test_the_threshold_itself_does_not_suppress(nms: NmsOp) -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.5]])
    assert nms(boxes, torch.tensor([2.0, 1.0]), None, 0.5).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([2.0, 1.0]), None, 0.4999).tolist() == [0]


@pytest.mark.small
def test_policy_for_troubled_boxes(nms: NmsOp) -> None:
    nan, inf = float("nan"), float("inf")
    point, inverted = [1.0, 1, 1, 1], [2.0, 2, 0, 0]
    boxes = torch.tensor(
        [[0.0, 0, 2, 2], point, point, inverted, inverted, [0, 0, inf, 1], [0, nan, 1, 1], [5, 5, 6, 6]]
    )
    scores = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, nan])
    assert nms(boxes, scores, None, 0.0).tolist() == [0, 1, 2, 3, 4]
    assert nms(boxes, torch.tensor([-inf, inf, 0, -0.0, 0, 0, 0, 0]), None, 0.0).tolist() == [1, 2, 3, 4, 7, 0]


@pytest.mark.small
@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    classes=st.integers(1, 4),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.7, 1.0, 1.45]),
    steps=st.booleans(),
    trouble=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_equals_reference_and_brute_force(
    nms: NmsOp,
    seed: int,
    count: int,
    classes: int,
    iou_threshold: float,
    steps: bool,
    trouble: float,
    dtype: torch.dtype,
) -> None:
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, count, steps=steps, trouble=trouble).to(dtype)
    scores = random_tensor(rng, (count,), scale=1, steps=steps, trouble=trouble).to(dtype)
    labels = torch.from_numpy(rng.integers(-2, classes - 2, count))
    kept = nms(boxes, scores, labels, iou_threshold)
    assert kept.tolist() == ops.reference.batched_nms(boxes, scores, labels, iou_threshold).tolist()
    assert kept.tolist() == brute_force(boxes.float(), scores.float(), labels, iou_threshold)
    one_class = nms(boxes, scores, None, iou_threshold)
    assert one_class.tolist() == ops.reference.nms(boxes, scores, iou_threshold).tolist()


@pytest.fixture
def crowd() -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 3000, steps=False, trouble=0)
    return boxes, torch.from_numpy(rng.random(3000).astype(np.float32)), torch.from_numpy(rng.integers(0, 20, 3000))


def test_survivors_survive_again(nms: NmsOp, crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, scores, labels = crowd
    kept = nms(boxes, scores, labels, 0.45)
    again = nms(boxes[kept], scores[kept], labels[kept], 0.45)
    assert 20 < len(kept) < 3000
    assert torch.equal(again, torch.arange(len(kept)))


def test_order_of_the_input_does_not_matter(nms: NmsOp, crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, scores, labels = crowd
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))
    shuffled = nms(boxes[order], scores[order], labels[order], 0.45)
    assert torch.equal(order[shuffled], nms(boxes, scores, labels, 0.45))


def test_size_and_place_of_the_boxes_do_not_matter(nms: NmsOp, crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, scores, labels = crowd
    kept = nms(boxes, scores, labels, 0.45)
    assert torch.equal(nms(boxes * 1024, scores, labels, 0.45), kept)
    mirrored = boxes[:, [1, 0, 3, 2]]
    assert torch.equal(nms(mirrored, scores, labels, 0.45), kept)


# --- The operator in torch: threads, strides, refusals, tracing -------------------------------------------------------


def test_thread_count_does_not_matter(crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    many = (*random_case(0, 20_000, 9, size=0.02),)
    for case in (crowd, many):
        with threads(2):
            on_two = ops.batched_nms(*case, 0.45)
        with threads(1):
            assert torch.equal(on_two, ops.batched_nms(*case, 0.45))


KINDS = ["anywhere", "small", "large", "far", "pixels", "tiny", "outlier", "equal", "flat", "steps", "trouble"]


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iou_threshold", [0.0, 0.05, 0.3, 0.45, 0.5, 0.7, 1.0, 1.45])
def test_more_boxes_than_need_a_grid(kind: str, iou_threshold: float) -> None:
    """The CPU compares a box with those of its cells only: the same as with all, whatever is rounded."""
    rng = np.random.default_rng(len(kind))
    boxes = random_boxes(rng, 400, steps=kind == "steps", trouble=0.02 if kind == "trouble" else 0.0)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    size = {"small": 0.1, "large": 20.0, "equal": 0.0, "tiny": 1e-22, "flat": 1.0}.get(kind, 1.0)
    half = half * size + (0.2 if kind == "equal" else 0.0)
    if kind in ("equal", "tiny"):
        center = center * (0.1 if kind == "equal" else 1e-22)
    boxes = torch.cat([center - half, center + half], dim=1)
    if kind == "far":
        boxes = boxes + 3e5  # coordinates 1/32 apart
    if kind == "pixels":
        boxes = (boxes * 1000).round()
    if kind == "outlier":
        boxes[7] = torch.tensor([-1e30, -1e30, 1e30, 1e30])
        boxes[9] = torch.tensor([2e38, 2e38, 3e38, 3e38])
    if kind == "flat":
        boxes[:, 3] = boxes[:, 1] + 1e-30
    scores = torch.from_numpy(rng.permutation(400).astype(np.float32))
    one = torch.zeros(400, dtype=torch.int64)
    assert ops.nms(boxes, scores, iou_threshold).tolist() == brute_force(boxes, scores, one, iou_threshold)
    far_apart = torch.from_numpy(rng.integers(0, 3, 400)) * 2**61 - 2**61
    for labels in (far_apart, far_apart // 2**61 + 5):
        kept = ops.batched_nms(boxes, scores, labels, iou_threshold).tolist()
        assert kept == brute_force(boxes, scores, labels, iou_threshold)


def test_inputs_need_not_be_contiguous(crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, scores, _ = crowd
    strided = boxes.t().contiguous().t()
    assert not strided.is_contiguous()
    assert torch.equal(ops.nms(strided, scores.flip(0).flip(0), 0.5), ops.nms(boxes, scores, 0.5))


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "threshold", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3), None, 0.5, r"boxes has shape \[3, 5\], expected \[\*, 4\]"),
        (torch.zeros(3, 4), torch.zeros(2), None, 0.5, r"scores has shape \[2\], expected \[3\]"),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(2).long(), 0.5, r"labels has shape \[2\], expected \[3\]"),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(3), 0.5, "labels must hold int64"),
        (torch.zeros(3, 4).long(), torch.zeros(3), None, 0.5, "boxes must hold floating-point numbers"),
        (torch.zeros(3, 4), torch.zeros(3), None, -0.1, "iou_threshold must be at least 0, got -0.1"),
        (torch.zeros(3, 4), torch.zeros(3), None, float("nan"), "iou_threshold must be at least 0, got nan"),
    ],
)
def test_bad_input(boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        suppress(boxes, scores, labels, threshold)


def test_opcheck() -> None:
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 20, steps=False, trouble=0), torch.rand(20)
    for labels in (None, torch.arange(20) % 3):
        torch.library.opcheck(torch.ops.refinedet.nms.default, (boxes, scores, labels, 0.5))


def test_compile_and_export(crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    class Suppress(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
            return boxes[ops.batched_nms(boxes, scores, labels, 0.45)]

    expected = Suppress()(*crowd)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(torch.compile(Suppress(), fullgraph=True, backend="aot_eager")(*crowd), expected)
    assert torch.equal(torch.export.export(Suppress(), crowd).module()(*crowd), expected)


# --- The kernels on the harness: sizes, schedules, views that matter to them ------------------------------------------

SEEDS = range(5)  # of schedules


def check_case(
    harness: Harness, boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, *, seed: int = 0
) -> Tensor:
    """Runs the kernels and the CPU operator, which must agree."""
    kept = launch(harness, boxes, scores, labels, iou_threshold, seed=seed)
    assert torch.equal(kept, suppress(boxes, scores, labels, iou_threshold))
    return kept


def random_case(seed: int, count: int, classes: int, *, size: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in the unit square with sides up to ``size``, scores with ties, labels."""
    rng = np.random.default_rng(seed)
    low, sides = rng.uniform(0, 1, (count, 2)), rng.uniform(0, size, (count, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + sides], axis=1).astype(np.float32))
    scores = torch.from_numpy(rng.integers(0, 4 * count + 1, count).astype(np.float32))
    return boxes, scores, torch.from_numpy(rng.integers(0, classes, count))


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    check_case(harness, *random_case(0, 200, 2), 0.3, seed=1)
    if harness.variant == "plain":
        check_case(harness, *random_case(1, BAND + 100, 2), 0.3, seed=2)


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
    kept = launch(harness, boxes, scores, labels, 0.4, misaligned=True)
    assert torch.equal(kept, launch(harness, boxes, scores, labels, 0.4))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(racing_harness: Harness, seed: int) -> None:
    check_case(racing_harness, *random_case(seed, 130, 2), 0.3, seed=seed)
