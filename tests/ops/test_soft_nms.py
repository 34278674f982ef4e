"""soft_nms. Tests with the argument ``soft_nms`` run on every implementation; those of the kernels alone come last."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness, LauncherError
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import threads
from support.implementations import IMPLEMENTATIONS
from torch import Tensor

from refinedet import ops
from refinedet.ops.detect import Detected
from refinedet.ops.ranked import ranked
from refinedet.ops.reference import portable

SoftNmsOp = Callable[..., Detected]
NAN, INF = math.nan, math.inf
DEFAULTS = {"method": "linear", "iou_threshold": 0.3, "sigma": 0.5, "score_threshold": 0.001, "official": False}


def launch(
    harness: Harness,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    misaligned: bool = False,
    seed: int = 0,
    **options: Any,
) -> Detected:
    """The kernel on the harness, between what the registration does before and the face after it."""
    given = DEFAULTS | options
    batch, count = scores.shape
    if boxes.dtype not in DTYPES:
        boxes = boxes.float()
    arrays = {
        "boxes": to_array(boxes.contiguous()),
        "scores": scores.float().numpy(),
        "labels": labels.numpy(),
        "order": labels.argsort(dim=1, stable=True).numpy(),
    }
    numbers = {
        "type": DTYPES.index(boxes.dtype),
        "batch": batch,
        "num_boxes": count,
        "gaussian": int(given["method"] == "gaussian"),
        "official": int(given["official"]),
        **{name: float(given[name]) for name in ("iou_threshold", "sigma", "score_threshold")},
    }
    outputs = {"decayed": (np.float32, (batch, count))}
    taken = ("boxes",) if misaligned else ()
    result = harness.run("soft_nms", arrays, numbers, outputs, seed=seed, misaligned=taken)
    assert result.launches == (1 if batch * count > 0 else 0)
    assert result.workspace_bytes <= (24 * batch * count + 512 if count > 512 else 0)
    return ranked(boxes, torch.from_numpy(result.outputs["decayed"].copy()), labels)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def soft_nms(request: pytest.FixtureRequest) -> SoftNmsOp:
    return request.param(request, ops.soft_nms, launch)


def one_image(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> tuple[Tensor, ...]:
    return (
        torch.tensor(boxes, dtype=torch.float32)[None],
        torch.tensor(scores)[None],
        torch.tensor(labels or [1] * len(scores))[None],
    )


def found(detected: Detected, image: int = 0) -> list[tuple[int, float]]:
    """Row and score, as far as they are real; the rest has to be padding."""
    count = int(detected.counts[image])
    rest = [field[image, count:] for field in detected[:4]]
    assert all((field == value).all() for field, value in zip(rest, (0, 0, 0, -1), strict=True))
    rows = detected.indices[image, :count].tolist()
    return list(zip(rows, detected.scores[image, :count].tolist(), strict=True))


def assert_equal(detected: Detected, expected: Detected) -> None:
    for one, other in zip(detected, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# --- Worked by hand ---------------------------------------------------------------------------------------------------

#  IoU of 0 and 1 is 0.5, of 0 and 2 is 0.25, of 1 and 2 is 0.5; 3 meets none.
STACK = [[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 1], [9, 9, 10, 10]]


@pytest.mark.small
def test_linear(soft_nms: SoftNmsOp) -> None:
    arguments = one_image(STACK, [1.0, 0.75, 0.5, 0.25])
    # 0 is picked: 1 falls to 0.75 * 0.5, 2 stays, as 0.25 is not above 0.3. Then 2 is picked: 1 falls by half again.
    detected = soft_nms(*arguments)
    assert found(detected) == [(0, 1.0), (2, 0.5), (3, 0.25), (1, 0.1875)]
    assert detected.boxes[0, 1].tolist() == STACK[2]
    assert detected.labels.tolist() == [[1, 1, 1, 1]]
    # The threshold itself does not decay: nothing happens.
    assert found(soft_nms(*arguments, iou_threshold=0.5)) == [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25)]
    # 2 falls to 0.5 * 0.75, and, as 1 has 0.375 too, 1 comes first: 2 falls by half.
    assert found(soft_nms(*arguments, iou_threshold=0.2)) == [(0, 1.0), (1, 0.375), (3, 0.25), (2, 0.1875)]


@pytest.mark.small
def test_gaussian(soft_nms: SoftNmsOp) -> None:
    detected = soft_nms(*one_image(STACK, [1.0, 0.75, 0.5, 0.25]), method="gaussian", sigma=0.25)
    # e^-1 of IoU 0.5, e^-0.25 of 0.25: 1 falls to 0.2759, 2 to 0.3894, which is picked: 1 falls to 0.1015.
    assert [row for row, _ in found(detected)] == [0, 2, 3, 1]
    expected = torch.tensor([1.0, 0.5 * math.exp(-0.25), 0.25, 0.75 * math.exp(-2)])
    torch.testing.assert_close(detected.scores[0], expected, rtol=1e-6, atol=0)


@pytest.mark.small
def test_score_threshold(soft_nms: SoftNmsOp) -> None:
    arguments = one_image(STACK, [1.0, 0.75, 0.5, 0.25])
    assert found(soft_nms(*arguments, score_threshold=0.1875)) == [(0, 1.0), (2, 0.5), (3, 0.25), (1, 0.1875)]
    # After both picks 1 is below.
    assert found(soft_nms(*arguments, score_threshold=0.1876)) == [(0, 1.0), (2, 0.5), (3, 0.25)]
    # 1 goes after the first pick; 3 was never above.
    assert found(soft_nms(*arguments, score_threshold=0.4)) == [(0, 1.0), (2, 0.5)]
    assert found(soft_nms(*arguments, score_threshold=1.5)) == []
    assert found(soft_nms(*arguments, score_threshold=-INF)) == [(0, 1.0), (2, 0.5), (3, 0.25), (1, 0.1875)]


@pytest.mark.small
def test_official(soft_nms: SoftNmsOp) -> None:
    """Pixels: 0 has 10 x 10, 1 half of them; 2 shares the column 9 with 0; 3 begins where 0 ends, 4 is far away."""
    boxes = [[0.0, 0, 9, 9], [0, 0, 9, 4], [9, 0, 18, 9], [10, 0, 19, 9], [50, 50, 59, 59]]
    arguments = one_image(boxes, [1.0, 0.75, 0.25, 0.125, 0.125])
    # 1 falls by half. 2 and 3 meet 0 and 2, which they do not decay; 3 meets 2 in 9 of 11 columns: 90 / 110.
    row_3 = float(np.float32(0.125) * (np.float32(1) - np.float32(90) / np.float32(110)))
    every = soft_nms(*arguments, official=True)
    assert found(every) == [(0, 1.0), (1, 0.375), (2, 0.25), (4, 0.125), (3, row_3)]
    # Below the floor: 2 meets 0 and goes. 3, which only 2 would have met, and 4 stay.
    assert found(soft_nms(*arguments, official=True, score_threshold=0.3)) == [
        (0, 1.0),
        (1, 0.375),
        (3, 0.125),
        (4, 0.125),
    ]
    assert found(soft_nms(*arguments, score_threshold=0.3)) == [
        (0, 1.0),
        (1, float(np.float32(0.75) * (np.float32(1) - np.float32(4 / 9)))),
    ]


@pytest.mark.small
def test_equal_scores_are_picked_by_row(soft_nms: SoftNmsOp) -> None:
    arguments = one_image([STACK[1], STACK[0], STACK[1], STACK[3]], [0.5, 0.5, 0.5, 0.5])
    # 0 is picked first: 1 falls by half, 2, the same box, to nothing. 3 comes before what fell.
    assert found(soft_nms(*arguments)) == [(0, 0.5), (3, 0.5), (1, 0.25)]
    assert found(soft_nms(*arguments, score_threshold=0)) == [(0, 0.5), (3, 0.5), (1, 0.25), (2, 0.0)]
    zeros = one_image([STACK[3]] * 3, [-0.0, 0.0, -0.0])
    assert [row for row, _ in found(soft_nms(*zeros, score_threshold=-1))] == [0, 1, 2]


@pytest.mark.small
def test_labels(soft_nms: SoftNmsOp) -> None:
    """Boxes of other labels never meet; 0 and below is padding."""
    arguments = one_image([STACK[0]] * 6, [0.5, 0.625, 0.75, 0.875, 1.0, 0.5], [7, 2**63 - 1, 0, -1, -(2**63), 7])
    assert found(soft_nms(*arguments, score_threshold=0)) == [(1, 0.625), (0, 0.5), (5, 0.0)]


@pytest.mark.small
def test_policy_for_troubled_boxes(soft_nms: SoftNmsOp) -> None:
    point, inverted = [1.0, 1, 1, 1], [3.0, 3, 0, 0]
    boxes = [[0.0, 0, 2, 2], point, point, inverted, inverted, [0, 0, INF, 1], [0, NAN, 1, 1], [5, 5, 6, 6]]
    scores = [8.0, 7, 6, 5, 4, 3, 2, NAN]
    for method in ("linear", "gaussian"):
        detected = soft_nms(*one_image(boxes, scores), iou_threshold=0.0, method=method)
        assert found(detected) == [(0, 8.0), (1, 7.0), (2, 6.0), (3, 5.0), (4, 4.0)]
    # With a pixel more a point has an area: it meets 0 (1 of 9 pixels) and itself.
    detected = soft_nms(*one_image(boxes, scores), iou_threshold=0.5, official=True)
    assert found(detected) == [(0, 8.0), (1, 7.0), (3, 5.0), (4, 4.0)]
    huge = [[-3e38, -3e38, 3e38, 3e38], [-2e38, -3e38, 3e38, 3e38]]  # areas overflow
    assert found(soft_nms(*one_image(huge, [2.0, 1.0]), method="gaussian")) == [(0, 2.0), (1, 1.0)]


@pytest.mark.small
def test_scores_that_are_infinite(soft_nms: SoftNmsOp) -> None:
    boxes = [STACK[3], STACK[0], STACK[0], STACK[1]]
    # The second inf becomes NaN by the weight 0, and goes; half of inf stays.
    assert found(soft_nms(*one_image(boxes, [-INF, INF, INF, INF]), score_threshold=-INF)) == [
        (1, INF),
        (3, INF),
        (0, -INF),
    ]
    only = one_image([STACK[3]] * 3, [-INF, -INF, NAN])
    assert found(soft_nms(*only, score_threshold=-INF)) == [(0, -INF)]


def test_scores_below_0_rise(soft_nms: SoftNmsOp) -> None:
    """Towards 0, as in the released code; who has risen above others is picked before them."""
    arguments = one_image([STACK[0], STACK[3], STACK[1]], [0.5, -0.25, -0.3125])
    assert found(soft_nms(*arguments, score_threshold=-1)) == [(0, 0.5), (2, -0.15625), (1, -0.25)]


@pytest.mark.small
def test_empty(soft_nms: SoftNmsOp) -> None:
    for batch, count in ((0, 3), (2, 0), (0, 0)):
        detected = soft_nms(torch.zeros(batch, count, 4), torch.zeros(batch, count), torch.ones(batch, count).long())
        assert detected.boxes.shape == (batch, count, 4)
        assert detected.counts.tolist() == [0] * batch


@pytest.mark.small
def test_padding_of_detect_goes_in_as_it_is(soft_nms: SoftNmsOp) -> None:
    boxes, scores, labels = random_case(0, 2, 20, 3)
    once = soft_nms(boxes, scores, labels, score_threshold=0.3)
    assert 0 < once.counts.min() < once.counts.max() < 20
    joined = [torch.cat([field, other], dim=1) for field, other in zip(once[:3], once[:3], strict=True)]
    again = soft_nms(*joined)
    assert_equal(again, ops.reference.soft_nms(*joined))
    real = again.indices >= 0
    assert (again.indices % 20 < once.counts[:, None])[real].all()


# --- Random problems --------------------------------------------------------------------------------------------------


def random_case(
    seed: int, batch: int, count: int, classes: int, *, steps: bool = True, trouble: float = 0.0, side: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in a square, about one in ten inverted; ties where numbers go in steps; labels from -1 on with trouble."""
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(0, 1, (batch, count, 2)), rng.uniform(-0.05, 0.5, (batch, count, 2))
    boxes, scores = np.concatenate([low, low + size], axis=2), rng.uniform(0, 1, (batch, count))
    if steps:
        boxes, scores = np.round(boxes * 8) / 8, np.round(scores * 16) / 16
    boxes, scores = (boxes * side).astype(np.float32), scores.astype(np.float32)
    for numbers in (boxes, scores):
        bad = rng.random(numbers.shape) < trouble
        numbers[bad] = rng.choice([NAN, INF, -INF, -0.5, 1e30], bad.sum())
    labels = rng.integers(-1 if trouble else 1, classes + 1, (batch, count))
    return torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)


def brute_force(
    boxes: np.ndarray, scores: np.ndarray, method: str, iou_threshold: float, score_threshold: float, official: bool
) -> dict[int, float]:
    """Scores that are left of the rows of one class, by the definition, from the matrix of all IoUs."""
    low, high = boxes[:, :2], boxes[:, 2:]
    area = (high - low + np.float32(official)).clip(min=0).prod(axis=1)
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low) + np.float32(official)
    both = sides.clip(min=0).prod(axis=2)
    iou = np.nan_to_num(both / (area[:, None] + area - both), nan=0.0)
    if method == "gaussian":
        weights = portable.exp(torch.from_numpy(-(iou * iou) / np.float32(0.5))).numpy()
    else:
        weights = np.where(iou > np.float32(iou_threshold), 1 - iou, np.float32(1))
    current, left = scores.copy(), np.isfinite(boxes).all(axis=1) & ~np.isnan(scores)
    if not official:
        left &= scores >= np.float32(score_threshold)
    final = {}
    while left.any():
        best = max(left.nonzero()[0], key=lambda i: (current[i], -i))
        final[int(best)] = float(current[best])
        left[best] = False
        current[left] *= weights[best, left]
        left &= (iou[best] == 0) | (current >= np.float32(score_threshold))
    return final


@cache  # the problems are the same for every implementation
def solved(
    seed: int,
    count: int,
    classes: int,
    options: tuple[tuple[str, Any], ...],
    steps: bool,
    trouble: float,
    dtype: torch.dtype,
) -> tuple[tuple[Tensor, ...], Detected, list[tuple[int, float]]]:
    """A random problem, what the twin finds and what brute force finds."""
    given = dict(options)
    side = 32.0 if given["official"] else 1.0
    boxes, scores, labels = random_case(seed, 1, count, classes, steps=steps, trouble=trouble, side=side)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    final = {}
    for label in range(1, classes + 1):
        rows = (labels[0] == label).nonzero().squeeze(1)
        with np.errstate(all="ignore"):
            left = brute_force(boxes[0, rows].float().numpy(), scores[0, rows].float().numpy(), **given)
        final |= {int(rows[i]): score for i, score in left.items()}
    ranking = sorted(final.items(), key=lambda pick: (-pick[1], pick[0]))
    return (boxes, scores, labels), ops.reference.soft_nms(boxes, scores, labels, **given), ranking


@pytest.mark.small
@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 24),
    classes=st.integers(1, 3),
    method=st.sampled_from(["linear", "gaussian"]),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    score_threshold=st.sampled_from([-INF, 0.0, 0.001, 0.25]),
    official=st.booleans(),
    steps=st.booleans(),
    trouble=st.sampled_from([0.0, 0.05]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_equals_reference_and_brute_force(
    soft_nms: SoftNmsOp,
    seed: int,
    count: int,
    classes: int,
    method: str,
    iou_threshold: float,
    score_threshold: float,
    official: bool,
    steps: bool,
    trouble: float,
    dtype: torch.dtype,
) -> None:
    options = {
        "method": method,
        "iou_threshold": iou_threshold,
        "score_threshold": score_threshold,
        "official": official,
    }
    arguments, by_twin, ranking = solved(seed, count, classes, tuple(options.items()), steps, trouble, dtype)
    detected = soft_nms(*arguments, **options)
    assert_equal(detected, by_twin)
    assert found(detected) == ranking


def released_code(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, floor: float) -> dict[int, np.float32]:
    """What the released ``cpu_soft_nms`` does (spec section 10.2): the best of the rest is swapped to the front, who
    falls below the floor is overwritten by the last one."""
    table = [(row, boxes[row], scores[row]) for row in range(len(boxes))]
    one, front = np.float32(1), 0
    while front < len(table):
        best = max(range(front, len(table)), key=lambda i: table[i][2])
        table[front], table[best] = table[best], table[front]
        _, a, _ = table[front]
        place = front + 1
        while place < len(table):
            row, b, score = table[place]
            width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + one for i in (0, 1))
            if width > 0 and height > 0:
                area_a, area_b = ((box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b))
                overlap = width * height / (area_a + area_b - width * height)
                score *= one - overlap if overlap > np.float32(iou_threshold) else one
                table[place] = (row, b, score)
                if score < np.float32(floor):
                    table[place] = table[-1]
                    table.pop()
                    continue
            place += 1
        front += 1
    return {row: score for row, _, score in table}


@pytest.mark.parametrize("floor", [0.016, 0.3])
def test_official_is_what_the_released_code_does(soft_nms: SoftNmsOp, floor: float) -> None:
    """On clipped boxes in pixels without equal scores, whose order the swaps decide there."""
    for seed in range(10):
        boxes, scores, labels = random_case(seed, 1, 60, 1, steps=False, side=100.0)
        boxes = torch.cat([boxes[..., :2].minimum(boxes[..., 2:]), boxes[..., :2].maximum(boxes[..., 2:])], dim=2)
        detected = soft_nms(boxes, scores, labels, score_threshold=floor, official=True)
        expected = released_code(boxes[0].numpy(), scores[0].numpy(), 0.3, floor)
        assert dict(found(detected)) == {row: float(score) for row, score in expected.items()}


def test_images_and_order_of_the_input_do_not_matter(soft_nms: SoftNmsOp) -> None:
    boxes, scores, labels = random_case(1, 3, 100, 4, steps=False)
    detected = soft_nms(boxes, scores, labels)
    assert detected.counts.min() > 20
    for image in range(3):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(image))
        alone = soft_nms(boxes[image, order][None], scores[image, order][None], labels[image, order][None])
        assert torch.equal(alone.scores[0], detected.scores[image])
        real = slice(int(alone.counts[0]))
        assert torch.equal(order[alone.indices[0, real]], detected.indices[image, real])


# --- The operator in torch: threads, strides, tracing -----------------------------------------------------------------


def test_thread_count_does_not_matter() -> None:
    arguments = random_case(0, 3, 2000, 20)
    with threads(2):
        on_two = ops.soft_nms(*arguments)
    with threads(1):
        assert_equal(on_two, ops.soft_nms(*arguments))


def test_inputs_need_not_be_contiguous() -> None:
    boxes, scores, labels = random_case(0, 2, 100, 3)
    strided = boxes.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    views = strided, scores.t().contiguous().t(), labels.t().contiguous().t()
    assert_equal(ops.soft_nms(*views), ops.soft_nms(boxes, scores, labels))


@pytest.mark.parametrize("count", [100, 1000])
def test_large_classes_equal_the_twin(count: int) -> None:
    """So many that blocks of the CPU's kernel are moved together."""
    for method in ("linear", "gaussian"):
        arguments = random_case(count, 1, count, 2, steps=False)
        options = {"method": method, "score_threshold": 0.1}
        assert_equal(ops.soft_nms(*arguments, **options), ops.reference.soft_nms(*arguments, **options))


def test_opcheck() -> None:
    """Nothing is dropped: opcheck takes a NaN for different from itself."""
    arguments = random_case(0, 2, 20, 3)
    for gaussian in (False, True):
        options = (gaussian, 0.3, 0.5, -1.0, gaussian)
        torch.library.opcheck(torch.ops.refinedet.soft_nms.default, (*arguments, *options))


def test_compile_and_export() -> None:
    class Rescore(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detected:
            return ops.soft_nms(boxes, scores, labels, method="gaussian")

    arguments = random_case(0, 2, 50, 3)
    expected = Rescore()(*arguments)
    assert_equal(torch.compile(Rescore(), fullgraph=True, backend="aot_eager")(*arguments), expected)
    assert_equal(torch.export.export(Rescore(), arguments).module()(*arguments), expected)


# --- The kernel on the harness: sizes, schedules, views that matter to it ---------------------------------------------

SEEDS = range(3)  # of schedules
THREADS, NEAR = 256, 512  # of a block; boxes of a class that it has in registers, csrc/ops/soft_nms/soft_nms_cuda.cu


def check_case(harness: Harness, *arguments: Tensor, seed: int = 0, **options: Any) -> Detected:
    """Runs the kernel and the CPU operator, which must agree."""
    detected = launch(harness, *arguments, seed=seed, **options)
    assert_equal(detected, ops.soft_nms(*arguments, **options))
    return detected


def check(harness: Harness, dtype: torch.dtype = torch.float32) -> None:
    """Quick cases in which the barrier and every bounds check matters."""

    def case(boxes: Tensor, scores: Tensor, labels: Tensor, **options: Any) -> None:
        check_case(harness, boxes.to(dtype), scores, labels, **options)

    case(*random_case(0, 2, 70, 3, trouble=0.05), seed=1)
    case(*random_case(1, 1, 300, 2, steps=False), seed=2, iou_threshold=0.5, score_threshold=0.5)
    if harness.variant == "thread":
        return
    case(*random_case(2, 2, NEAR + 200, 1, steps=False), seed=3, score_threshold=0.3)
    if harness.variant == "plain":
        case(*random_case(3, 2, 40, 2), seed=4, method="gaussian", official=True, score_threshold=0.2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("boxes", [1, 31, 32, 33, 64, 65, THREADS - 1, THREADS, THREADS + 1, NEAR - 1, NEAR, NEAR + 1])
def test_number_of_boxes(fast_harness: Harness, boxes: int, seed: int) -> None:
    detected = check_case(fast_harness, *random_case(seed, 1, boxes, 1), seed=seed, score_threshold=0.3)
    assert detected.counts[0] >= boxes // 8


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_boxes_beyond_the_registers(fast_harness: Harness, method: str) -> None:
    """Of several classes and images, each with its part of the workspace."""
    arguments = random_case(5, 2, 2000, 2, steps=False)
    detected = check_case(fast_harness, *arguments, method=method, score_threshold=0.6)
    assert detected.counts.min() > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_classes_that_begin_anywhere(harness: Harness, seed: int) -> None:
    """Every label once, and labels whose runs begin and end around the places a block looks at."""
    boxes, scores, _ = random_case(seed, 2, 97, 1)
    each_its_own = torch.arange(97).flip(0).expand(2, 97).contiguous()
    assert check_case(harness, boxes, scores, each_its_own, seed=seed).counts.tolist() == [
        int((scores[image, :96] >= 0.001).sum()) for image in range(2)
    ]
    check_case(harness, boxes, scores, (each_its_own + 63) // 32, seed=seed)


def test_nothing_is_left_and_everything_is_left(harness: Harness) -> None:
    boxes, scores, labels = random_case(0, 2, 300, 3)
    for none in (
        (boxes * NAN, scores, labels),
        (boxes, scores * NAN, labels),
        (boxes, scores, labels * 0),
        (boxes, scores, labels - 10),
    ):
        assert check_case(harness, *none).counts.tolist() == [0, 0]
    everything = check_case(harness, boxes, scores, labels, iou_threshold=1.0, score_threshold=0.0)
    assert everything.counts.tolist() == [300, 300]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_views_need_not_be_aligned(harness: Harness, dtype: torch.dtype) -> None:
    boxes, scores, labels = random_case(0, 1, 100, 2)
    arguments = boxes.to(dtype), scores, labels
    assert_equal(launch(harness, *arguments, misaligned=True), launch(harness, *arguments))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(racing_harness: Harness, seed: int) -> None:
    check_case(racing_harness, *random_case(seed, 2, 90, 2), seed=seed)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((65536, 1), "the batch size is 65536, on CUDA at most 65535"),
        ((1, 2**31), "the number of boxes is 2147483648, on CUDA at most 2147483647"),
    ],
)
def test_refused_sizes(harness: Harness, sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        harness.run("size", {}, dict(zip(("batch", "num_boxes"), sizes, strict=True)), {})
    harness.run("size", {}, {"batch": 256, "num_boxes": 300_000}, {})
