"""vote. Tests with the argument ``vote`` run on every implementation; those of the kernels alone come last."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness, LauncherError
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import random_tensor, threads
from support.implementations import IMPLEMENTATIONS
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError
from refinedet.ops.ranked import ranked

VoteOp = Callable[..., ops.Detected]
TILE = 64  # rows that find_tops_kernel looks at together, kTile of csrc/cuda/suppress.h
NAN, INF = float("nan"), float("inf")


def launch(
    harness: Harness,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float = 0.45,
    soft: bool = False,
    score_threshold: float = 0.05,
    official: bool = False,
    misaligned: bool = False,
    seed: int = 0,
) -> ops.Detected:
    """The kernels on the harness, between the sorts that the registration does before and the face after."""
    batch, count = scores.shape
    if boxes.dtype not in DTYPES:
        boxes = boxes.float()
    scores = scores.float()
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    by_label = labels.gather(1, by_score).argsort(dim=1, stable=True)
    result = harness.run(
        "vote",
        {
            "boxes": to_array(boxes.contiguous()),
            "scores": scores.numpy(),
            "labels": labels.numpy(),
            "by_score": by_score.numpy(),
            "by_label": by_label.numpy(),
        },
        {
            "type": DTYPES.index(boxes.dtype),
            "batch": batch,
            "num_boxes": count,
            "iou_threshold": float(iou_threshold),
            "soft": int(soft),
            "score_threshold": float(score_threshold),
            "official": int(official),
        },
        {"found_boxes": (np.float32, (batch, count, 4)), "found_scores": (np.float32, (batch, count))},
        seed=seed,
        misaligned=("boxes",) if misaligned else (),
    )
    assert result.launches == (3 if batch * count > 0 else 0)
    found_boxes, found_scores = (
        torch.from_numpy(result.outputs[f"found_{name}"].copy()) for name in ("boxes", "scores")
    )
    return ranked(found_boxes, found_scores, labels)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def vote(request: pytest.FixtureRequest) -> VoteOp:
    return request.param(request, ops.vote, launch)


def bits(tensor: Tensor) -> Tensor:
    """What has to be equal: -0 is not 0."""
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def assert_equal(found: ops.Detected, expected: ops.Detected) -> None:
    for name, one, other in zip(found._fields, found, expected, strict=True):
        assert torch.equal(bits(one), bits(other)), name


def rows(found: ops.Detected, image: int = 0) -> list[tuple[int, float, list[float]]]:
    """Index, score and box of what comes out of an image."""
    count = int(found.counts[image])
    assert (found.indices[image, count:] == -1).all()
    return [
        (index, score, box)
        for index, score, box in zip(
            found.indices[image, :count].tolist(),
            found.scores[image, :count].tolist(),
            found.boxes[image, :count].tolist(),
            strict=True,
        )
    ]


def of_one_class(boxes: list[list[float]], scores: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """One image of one class."""
    return torch.tensor([boxes]), torch.tensor([scores]), torch.full((1, len(scores)), 3)


# --- Worked by hand ---------------------------------------------------------------------------------------------------

# The first two meet the third, the best, with IoUs of 3/4 and 1/2; the last is far away.
NESTED = [[0.0, 0, 16, 12], [0.0, 0, 16, 8], [0.0, 0, 16, 16], [32.0, 32, 48, 48]]
SCORES = [0.25, 0.25, 0.5, 0.125]


@pytest.mark.small
def test_hard_voting(vote: VoteOp) -> None:
    """(16 / 2 + 12 / 4 + 8 / 4) / 1 = 13; the singleton passes through."""
    found = vote(*of_one_class(NESTED, SCORES))
    assert rows(found) == [(2, 0.5, [0, 0, 16, 13]), (3, 0.125, NESTED[3])]
    assert found.labels.tolist() == [[3, 3, 0, 0]]
    assert found.boxes[0, 2:].eq(0).all()
    assert found.scores[0, 2:].eq(0).all()


@pytest.mark.small
def test_soft_voting(vote: VoteOp) -> None:
    """Members come out again with 1/4 * (1 - 3/4) and 1/4 * (1 - 1/2), the top does not; row 3 has 1/8, too."""
    expected = [(2, 0.5, [0, 0, 16, 13]), (1, 0.125, NESTED[1]), (3, 0.125, NESTED[3]), (0, 0.0625, NESTED[0])]
    assert rows(vote(*of_one_class(NESTED, SCORES), soft=True)) == expected
    assert rows(vote(*of_one_class(NESTED, SCORES), soft=True, score_threshold=0.0625)) == expected
    assert rows(vote(*of_one_class(NESTED, SCORES), soft=True, score_threshold=0.063)) == expected[:3]
    assert rows(vote(*of_one_class(NESTED, SCORES), soft=True, score_threshold=1.0)) == [expected[0], expected[2]]


def test_the_floor_is_for_what_joined_a_top_alone(vote: VoteOp) -> None:
    inputs = of_one_class([NESTED[2], NESTED[2], NESTED[3]], [0.01, 0.01, 0.001])
    expected = [(0, 0.01, NESTED[2]), (2, 0.001, NESTED[3])]
    for soft in (False, True):
        assert rows(vote(*inputs, soft=soft)) == [(i, pytest.approx(score), box) for i, score, box in expected]
    left = rows(vote(*inputs, soft=True, score_threshold=0.0))  # 0.01 * (1 - 1) is not below 0
    assert left == [*rows(vote(*inputs)), (1, 0.0, NESTED[2])]


@pytest.mark.small
def test_official_boxes_are_a_pixel_larger(vote: VoteOp) -> None:
    """10 * 10 and 10 * 5 pixels: IoU 1/2. With borders 36 / 81 = 4/9 of a threshold of 0.45."""
    inputs = of_one_class([[0.0, 0, 9, 9], [0.0, 0, 9, 4]], [0.5, 0.5])
    assert rows(vote(*inputs)) == [(0, 0.5, [0, 0, 9, 9]), (1, 0.5, [0, 0, 9, 4])]
    assert rows(vote(*inputs, official=True)) == [(0, 0.5, [0, 0, 9, 6.5])]
    soft = rows(vote(*inputs, official=True, soft=True))
    assert soft == [(0, 0.5, [0, 0, 9, 6.5]), (1, 0.25, [0, 0, 9, 4])]
    touching = of_one_class([[0.0, 0, 1, 0], [1.0, 0, 2, 0]], [0.5, 0.5])  # a pixel of three in common
    assert len(rows(vote(*touching, official=True, iou_threshold=0.33))) == 1
    assert len(rows(vote(*touching, official=True, iou_threshold=0.34))) == 2


@pytest.mark.small
def test_the_threshold_itself_joins(vote: VoteOp) -> None:
    for shared, threshold in ((9, 0.45), (10, 0.5), (14, 0.7), (2, 0.1)):
        inputs = of_one_class([[0.0, 0, 20, 1], [0.0, 0, shared, 1]], [0.5, 0.25])
        assert len(rows(vote(*inputs, iou_threshold=threshold))) == 1
        assert len(rows(vote(*inputs, iou_threshold=threshold + 1e-6))) == 2


def test_a_box_joins_the_first_top_it_reaches_not_the_nearest(vote: VoteOp) -> None:
    """IoUs of the last: 5/11 with the first, 7/9 with the second, which is 1/3 away from the first."""
    inputs = of_one_class([[0.0, 0, 8, 1], [4.0, 0, 12, 1], [3.0, 0, 11, 1]], [0.75, 0.5, 0.25])
    assert rows(vote(*inputs)) == [(0, 0.75, [0.75, 0, 8.75, 1]), (1, 0.5, [4, 0, 12, 1])]


def test_a_member_is_no_top(vote: VoteOp) -> None:
    """The third overlaps the second, which is merged already, and not the first."""
    inputs = of_one_class([[0.0, 0, 4, 1], [1.0, 0, 5, 1], [2.0, 0, 6, 1]], [0.75, 0.25, 0.125])
    assert rows(vote(*inputs, iou_threshold=0.5)) == [(0, 0.75, [0.25, 0, 4.25, 1]), (2, 0.125, [2, 0, 6, 1])]


def test_of_equal_scores_the_lower_row_is_the_top(vote: VoteOp) -> None:
    boxes = [NESTED[1], NESTED[2], NESTED[0]]
    assert rows(vote(*of_one_class(boxes, [0.5, 0.5, 0.5]))) == [(0, 0.5, [0, 0, 16, 12])]
    assert rows(vote(*of_one_class(boxes, [0.0, -0.0, 0.0]))) == [(0, 0.0, NESTED[1])]


@pytest.mark.small
def test_classes_and_images_do_not_meet(vote: VoteOp) -> None:
    boxes = torch.tensor([NESTED, NESTED[::-1]])
    scores = torch.tensor([SCORES, SCORES[::-1]])
    labels = torch.tensor([[1, 2**62, 1, 1], [7, 7, 7, 7]])
    found = vote(boxes, scores, labels)
    mean = [0, 0, 16, pytest.approx(44 / 3)]
    assert rows(found) == [(2, 0.5, mean), (1, 0.25, NESTED[1]), (3, 0.125, NESTED[3])]
    assert found.labels[0].tolist() == [1, 2**62, 1, 0]
    assert rows(found, 1) == [(1, 0.5, [0, 0, 16, 13]), (0, 0.125, NESTED[3])]
    assert found.counts.tolist() == [3, 2]


@pytest.mark.small
def test_what_is_dropped(vote: VoteOp) -> None:
    boxes = [NESTED[2], [0, 0, INF, 1], [0, NAN, 1, 1], NESTED[2], NESTED[2], NESTED[2], [0, -INF, 1, 1]]
    scores = [0.5, 0.75, 0.75, NAN, 0.75, 0.75, 0.75]
    labels = torch.tensor([[1, 1, 1, 1, 0, -1, 1]])
    for soft in (False, True):
        assert rows(vote(torch.tensor([boxes]), torch.tensor([scores]), labels, soft=soft)) == [(0, 0.5, NESTED[2])]
    assert vote(torch.tensor([boxes]), torch.tensor([scores]), torch.zeros_like(labels)).counts.tolist() == [0]


@pytest.mark.small
def test_boxes_without_area_overlap_nothing(vote: VoteOp) -> None:
    point, line, inverted = [1.0, 1, 1, 1], [0.0, 0, 4, 0], [4.0, 4, 0, 0]
    boxes = [[0.0, 0, 4, 4], point, point, line, line, inverted, inverted]
    scores = [0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
    inputs = of_one_class(boxes, scores)
    expected = [(i, scores[i], box) for i, box in enumerate(boxes)]
    assert rows(vote(*inputs, iou_threshold=1e-30)) == expected
    pixels = rows(vote(*inputs, official=True))  # equal points and lines are equal rows of pixels
    assert pixels == [expected[0], expected[1], expected[3], expected[5], expected[6]]


@pytest.mark.small
def test_a_threshold_of_0_makes_a_class_one_cluster(vote: VoteOp) -> None:
    inputs = of_one_class([NESTED[2], NESTED[3], [1.0, 1, 1, 1]], [0.5, 0.25, 0.25])
    assert rows(vote(*inputs, iou_threshold=0.0)) == [(0, 0.5, [8.25, 8.25, 20.25, 20.25])]
    soft = rows(vote(*inputs, iou_threshold=0.0, soft=True))
    assert soft == [(0, 0.5, [8.25, 8.25, 20.25, 20.25]), (1, 0.25, NESTED[3]), (2, 0.25, [1, 1, 1, 1])]
    assert len(rows(vote(*inputs, iou_threshold=1e-30))) == 3
    assert len(rows(vote(*of_one_class([NESTED[2]] * 2, [1.0, 1.0]), iou_threshold=1.01))) == 2


@pytest.mark.small
@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ([0.0, 0.0], 1),  # no weight
        ([-0.0, -1.0], 1),
        ([-1.0, -2.0], 1),
        ([-INF, -INF], 1),
        ([INF, 1.0], 1),
        ([INF, -INF], 1),
        ([3e38, 3e38], 1e-3),  # the sum of the scores overflows, that of the products does not
        ([1e30, 1e30], 1e10),  # products overflow
        ([1e38, 1e38], 2.0),  # sums of products overflow
    ],
)
def test_a_mean_that_is_not_finite_is_the_box_of_the_top(vote: VoteOp, scores: list[float], scale: float) -> None:
    boxes = torch.tensor([[[1.0, 1, 2, 2], [1.0, 1, 2, 1.75]]]) * scale
    found = vote(boxes, torch.tensor([scores]), torch.ones(1, 2).long())
    assert found.indices.tolist() == [[0, -1]]
    assert torch.equal(found.boxes[0, 0], boxes[0, 0])
    assert found.scores[0, 0] == torch.tensor(scores)[0]


def test_a_score_below_0_has_no_weight(vote: VoteOp) -> None:
    found = rows(vote(*of_one_class([NESTED[2], NESTED[0], NESTED[0]], [0.5, 0.5, -0.75]), soft=True))
    assert found == [(0, 0.5, [0, 0, 16, 14]), (1, 0.125, NESTED[0])]
    single = rows(vote(*of_one_class([NESTED[2]], [-0.5])))
    assert single == [(0, -0.5, NESTED[2])]


@pytest.mark.small
@pytest.mark.parametrize(("batch", "count"), [(0, 3), (2, 0), (0, 0)])
def test_nothing(vote: VoteOp, batch: int, count: int) -> None:
    found = vote(torch.zeros(batch, count, 4), torch.zeros(batch, count), torch.ones(batch, count).long())
    assert found.boxes.shape == (batch, count, 4)
    assert found.counts.tolist() == [0] * batch


# --- Random problems --------------------------------------------------------------------------------------------------


def random_problem(
    rng: np.random.Generator, batch: int, count: int, classes: int, *, steps: bool = False, trouble: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, about one in ten without area; scores, some below 0; labels, about one in ``classes`` + 1 padding."""
    low, size = rng.uniform(0, 1, (batch, count, 2)), rng.uniform(-0.05, 0.6, (batch, count, 2))
    boxes, scores = np.concatenate([low, low + size], axis=-1), rng.uniform(-0.2, 1, (batch, count))
    if steps:
        boxes, scores = np.round(boxes * 8), np.round(scores * 8) / 8
    noise = [random_tensor(rng, shape, scale=0, steps=False, trouble=trouble) for shape in (boxes.shape, scores.shape)]
    labels = torch.from_numpy(rng.integers(0, classes + 1, (batch, count)))
    return torch.from_numpy(boxes).float() + noise[0], torch.from_numpy(scores).float() + noise[1], labels


def brute_force(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    soft: bool,
    score_threshold: float,
    official: bool,
) -> list[list[tuple[int, float, list[float]]]]:
    """Voting as one writes it down, one number at a time in float32: what ``rows`` gives of every image."""
    one = np.float32(official)
    found = []
    for image in range(len(boxes)):
        box, score, label = boxes[image].numpy(), scores[image].numpy(), labels[image].numpy()
        left = [i for i in range(len(box)) if label[i] > 0 and score[i] == score[i] and np.isfinite(box[i]).all()]
        left.sort(key=lambda i: (-score[i], i))
        out = []
        while left:
            top = left[0]
            members = [i for i in left if label[i] == label[top]]
            ious = {i: naive_iou(box[top], box[i], one) for i in members}
            members = [i for i in members if i == top or ious[i] >= np.float32(iou_threshold)]
            left = [i for i in left if i not in members]
            out.append((top, score[top], naive_mean(box[members], score[members])))
            for i in members[1:] if soft else []:
                decayed = score[i] * (np.float32(1) - ious[i])
                if decayed >= np.float32(score_threshold):
                    out.append((i, decayed, box[i]))
        out.sort(key=lambda row: (-row[1], row[0]))
        found.append([(i, float(value), corners.tolist()) for i, value, corners in out])
    return found


def naive_iou(a: np.ndarray, b: np.ndarray, one: np.float32) -> np.float32:
    def area(x1: np.float32, y1: np.float32, x2: np.float32, y2: np.float32) -> np.float32:
        width, height = x2 - x1 + one, y2 - y1 + one
        return (width if width > 0 else np.float32(0)) * (height if height > 0 else np.float32(0))

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    iou = shared / (area(*a) + area(*b) - shared)
    return iou if iou > 0 else np.float32(0)


def naive_mean(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    if len(boxes) == 1:
        return boxes[0]
    weights = [score if score > 0 else np.float32(0) for score in scores]
    total, mean = np.float32(0), np.zeros(4, np.float32)
    for weight in weights:
        total = total + weight
    for corner in range(4):
        products = [weight * box[corner] for weight, box in zip(weights, boxes, strict=True)]
        value = products[0]
        for product in products[1:]:
            value = value + product
        mean[corner] = value / total
    return mean if np.isfinite(total) and np.isfinite(mean).all() else boxes[0]


@pytest.mark.small
@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 2),
    count=st.integers(0, 30),
    classes=st.integers(1, 4),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.7, 1.0, 1.45]),
    soft=st.booleans(),
    official=st.booleans(),
    score_threshold=st.sampled_from([-1.0, 0.0, 0.05, 0.5]),
    steps=st.booleans(),
    trouble=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_equals_reference_and_brute_force(
    vote: VoteOp,
    seed: int,
    batch: int,
    count: int,
    classes: int,
    steps: bool,
    trouble: float,
    dtype: torch.dtype,
    **options: Any,
) -> None:
    boxes, scores, labels = random_problem(
        np.random.default_rng(seed), batch, count, classes, steps=steps, trouble=trouble
    )
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    found = vote(boxes, scores, labels, **options)
    assert_equal(found, ops.reference.vote(boxes, scores, labels, **options))
    with np.errstate(all="ignore"):
        expected = brute_force(boxes.float(), scores.float(), labels, **options)
    assert [rows(found, image) for image in range(batch)] == expected


def test_what_joined_a_top_and_the_top_are_all_there_is(vote: VoteOp) -> None:
    """With a floor that all scores reach, soft voting gives every box back, tops with their score, others with less."""
    boxes, scores, labels = random_problem(np.random.default_rng(1), 2, 300, 3)
    hard = vote(boxes, scores, labels)
    soft = vote(boxes, scores, labels, soft=True, score_threshold=-1.0)
    assert torch.equal(soft.counts, (labels > 0).sum(dim=1))
    for image in range(2):
        found = {index: (score, box) for index, score, box in rows(soft, image)}
        tops = rows(hard, image)
        assert 20 < len(tops) < 200
        assert all(found[index] == (score, box) for index, score, box in tops)
        positive = [index for index in found if scores[image, index] > 0]
        assert all(found[index][0] <= scores[image, index] for index in positive)


def test_order_of_the_input_does_not_matter(vote: VoteOp) -> None:
    boxes, scores, labels = random_problem(np.random.default_rng(2), 1, 300, 3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = vote(boxes[:, order], scores[:, order], labels[:, order], soft=True)
    found = vote(boxes, scores, labels, soft=True)
    assert torch.equal(order[shuffled.indices[0, : shuffled.counts[0]]], found.indices[0, : found.counts[0]])
    assert torch.equal(bits(shuffled.boxes), bits(found.boxes))


# --- The operator in torch: threads, strides, refusals, tracing -------------------------------------------------------


@pytest.fixture
def crowd() -> tuple[Tensor, Tensor, Tensor]:
    return random_problem(np.random.default_rng(3), 2, 1000, 20, trouble=0.01)


def test_detections_of_several_passes_go_in_as_they_are() -> None:
    """Also one after the other: padding in between is padding."""
    passes = [ops.vote(*random_problem(np.random.default_rng(seed), 2, 40, 2)) for seed in range(3)]
    assert all((found.counts < 40).all() for found in passes)
    boxes, scores, labels = (
        torch.cat([getattr(found, name) for found in passes], dim=1) for name in passes[0]._fields[:3]
    )
    merged = ops.vote(boxes, scores, labels)
    for image in range(2):
        real = labels[image] > 0
        alone = ops.vote(boxes[image, real][None], scores[image, real][None], labels[image, real][None])
        count = int(merged.counts[image])
        assert torch.equal(merged.boxes[image, :count], alone.boxes[0, :count])
        assert alone.counts[0] == count


def test_thread_count_does_not_matter(crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    with threads(2):
        on_two = ops.vote(*crowd, soft=True)
    with threads(1):
        assert_equal(on_two, ops.vote(*crowd, soft=True))


def test_inputs_need_not_be_contiguous(crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in crowd]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert_equal(ops.vote(*strided), ops.vote(*crowd))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(3, 4)}, r"boxes has shape \[3, 4\], expected \[\*, \*, 4\]"),
        ({"boxes": torch.zeros(1, 3, 5)}, r"boxes has shape \[1, 3, 5\], expected \[\*, \*, 4\]"),
        ({"scores": torch.zeros(1, 2)}, r"scores has shape \[1, 2\], expected \[1, 3\]"),
        ({"labels": torch.zeros(2, 3).long()}, r"labels has shape \[2, 3\], expected \[1, 3\]"),
        ({"labels": torch.zeros(1, 3)}, "labels must hold int64"),
        ({"boxes": torch.zeros(1, 3, 4).long()}, "boxes must hold floating-point numbers"),
        ({"iou_threshold": -0.1}, "iou_threshold must be at least 0, got -0.1"),
        ({"iou_threshold": NAN}, "iou_threshold must be at least 0, got nan"),
        ({"score_threshold": NAN}, "score_threshold must be a number, got nan"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    good = {"boxes": torch.zeros(1, 3, 4), "scores": torch.zeros(1, 3), "labels": torch.ones(1, 3).long()}
    with pytest.raises(InputError, match=message):
        ops.vote(**(good | change))


def test_opcheck() -> None:
    """With something in every row: it takes no NaN for equal."""
    boxes, scores, labels = random_problem(np.random.default_rng(0), 2, 20, 3)
    for threshold, soft in ((1.45, False), (0.45, True)):
        torch.library.opcheck(
            torch.ops.refinedet.vote.default, (boxes, scores, labels + 1, threshold, soft, -1.0, not soft)
        )


def test_compile_and_export(crowd: tuple[Tensor, Tensor, Tensor]) -> None:
    class Merge(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> ops.Detected:
            return ops.vote(boxes * 2, scores, labels, soft=True)

    expected = Merge()(*crowd)
    assert_equal(torch.compile(Merge(), fullgraph=True, backend="aot_eager")(*crowd), expected)
    assert_equal(torch.export.export(Merge(), crowd).module()(*crowd), expected)


# --- The kernels on the harness: sizes, schedules, views that matter to them ------------------------------------------

SEEDS = range(5)  # of schedules


def check_case(
    harness: Harness, boxes: Tensor, scores: Tensor, labels: Tensor, *, seed: int = 0, **options: Any
) -> ops.Detected:
    """Runs the kernels and the CPU operator, which must agree."""
    found = launch(harness, boxes, scores, labels, **options, seed=seed)
    assert_equal(found, ops.vote(boxes, scores, labels, **options))
    return found


def small_boxes(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image of one class whose boxes overlap few others."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1, count, 2, generator=generator)
    labels = torch.ones(1, count, dtype=torch.int64)
    return torch.cat([low, low + 0.02], dim=2), torch.rand(1, count, generator=generator), labels


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    check_case(harness, *random_problem(np.random.default_rng(0), 2, 100, 2, trouble=0.02), soft=True, seed=1)
    boxes, scores, labels = random_problem(np.random.default_rng(3), 1, 96, 1)
    labels[0] = (
        torch.arange(96) >= 32
    )  # the class ends with the image and a tile of the walk, but with no tile of the grid
    check_case(harness, boxes, scores, labels)
    boxes, scores, labels = random_problem(np.random.default_rng(4), 1, 150, 1)
    labels[0] = 1 + (torch.arange(150) >= 70)  # the second block lists its tops where the first one's end
    check_case(harness, boxes, scores, labels)
    if harness.variant != "thread":
        check_case(harness, *random_problem(np.random.default_rng(1), 1, 70, 40), official=True, seed=2)
        # Boxes that reach tops of several tiles; images that end with the class with which the next one begins.
        boxes, scores, labels = random_problem(np.random.default_rng(2), 2, 200, 1)
        check_case(harness, boxes, scores, torch.ones_like(labels), iou_threshold=0.1, seed=3)
        check_case(harness, *small_boxes(1000), iou_threshold=0.2, seed=4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257])
def test_number_of_boxes(harness: Harness, count: int, seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed), 1 + seed % 2, count, 1 + seed)
    check_case(harness, *problem, soft=seed % 2 == 0, seed=seed)


@pytest.mark.parametrize("members", [1, 31, 32, 33, 63, 64, 65, 96, 97, 200])
def test_clusters_of_any_size(harness: Harness, members: int) -> None:
    """Beside a class before and after it, so that where it ends matters."""
    boxes = (
        torch.tensor([0.0, 0, 1, 1]) + torch.rand(1, members + 20, 4, generator=torch.Generator().manual_seed(0)) / 8
    )
    scores, labels = (
        torch.rand(1, members + 20, generator=torch.Generator().manual_seed(1)),
        torch.full((1, members + 20), 2),
    )
    labels[0, :10], labels[0, -10:] = 1, 3
    found = check_case(harness, boxes, scores, labels)
    assert found.counts.tolist() == [3]


@pytest.mark.parametrize("classes", [2, 20, 63, 64, 65, 400])
def test_number_of_classes(harness: Harness, classes: int) -> None:
    check_case(harness, *random_problem(np.random.default_rng(classes), 2, 300, classes), soft=True)


@pytest.mark.parametrize("count", [TILE - 1, TILE, TILE + 1, 3 * TILE])
def test_a_class_may_begin_anywhere_in_a_tile(harness: Harness, count: int) -> None:
    """Padding comes first in the order of labels."""
    boxes, scores, labels = random_problem(np.random.default_rng(count), 1, count, 2)
    for padding in (0, 1, 31, 32, 62, count - 2, count - 1, count):
        labels[0] = 1 + torch.arange(count) % 2
        labels[0, :padding] = 0
        check_case(harness, boxes, scores, labels)


def test_many_tops(fast_harness: Harness) -> None:
    """Every tile meets the tops of all before it."""
    found = check_case(fast_harness, *small_boxes(1500), iou_threshold=0.2)
    assert 700 < found.counts[0] < 1400


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_views_need_not_be_aligned(harness: Harness, dtype: torch.dtype) -> None:
    boxes, scores, labels = random_problem(np.random.default_rng(0), 2, 150, 2)
    boxes = boxes.to(dtype)
    found = launch(harness, boxes, scores, labels, misaligned=True)
    assert_equal(found, launch(harness, boxes, scores, labels))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(racing_harness: Harness, seed: int) -> None:
    check_case(racing_harness, *random_problem(np.random.default_rng(seed), 2, 130, 2), soft=True, seed=seed)


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
    bytes_of = {"workspace_bytes": (np.int64, (1,))}
    result = harness.run("size", {}, {"batch": 8, "num_boxes": 20_000}, bytes_of)
    assert result.outputs["workspace_bytes"][0] <= 60 * 8 * 20_000 + 7 * 256
