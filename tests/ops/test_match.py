"""match. Tests with the argument ``match`` run on every implementation; those of the kernels alone come last."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness, LauncherError
from support.golden_loss import GOLDEN_LOSSES, GoldenLoss
from support.implementations import IMPLEMENTATIONS, KERNELS
from support.paths import ROOT
from torch import Tensor

from refinedet import ops
from refinedet.boxes import to_centers, to_corners
from refinedet.errors import InputError
from refinedet.ops import Match, reference

NAN, INF = float("nan"), float("inf")
MatchOp = Callable[..., Match]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # anchors, boxes, labels, offsets


def launch(
    harness: Harness,
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    iou_threshold: float = 0.5,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    *,
    misaligned: bool = False,
    seed: int = 0,
) -> Match:
    """The kernels on the harness; as in the operator, half types are converted to float32 first."""
    arrays = {
        "anchors": anchors.float().numpy(),
        "gt_boxes": gt_boxes.float().numpy(),
        "gt_labels": gt_labels.numpy(),
        "gt_offsets": gt_offsets.numpy(),
    }
    size = (len(gt_offsets) - 1, anchors.shape[-2])
    scalars = {
        "batch": size[0],
        "num_anchors": size[1],
        "num_truths": len(gt_boxes),
        "shared_anchors": anchors.dim() == 2,
        "iou_threshold": float(iou_threshold),
        **{f"variance_{axis}": float(value) for axis, value in zip("xywh", variances, strict=True)},
    }
    outputs = {
        "labels": (np.int64, size),
        "targets": (np.float32, (*size, 4)),
        "indices": (np.int64, size),
        "ious": (np.float32, size),
    }
    wanted = ("anchors", "gt_boxes") if misaligned else ()
    result = harness.run("match", arrays, scalars, outputs, seed=seed, misaligned=wanted)
    assert result.launches <= 2
    assert result.workspace_bytes <= 8 * len(gt_boxes) + size[0] * (size[1] / 2 + 16) + 512  # O(B N + M)
    return Match(*(torch.from_numpy(result.outputs[name].copy()) for name in outputs))


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def match(request: pytest.FixtureRequest) -> MatchOp:
    return request.param(request, ops.match, launch)


def match_one(
    match: MatchOp,
    anchors: list[list[float]],
    boxes: list[list[float]],
    labels: list[int] | None = None,
    **options: float,
) -> Match:
    """Matches of one image; anchors and boxes as corners."""
    gt = torch.tensor(boxes).reshape(-1, 4)
    gt_labels = torch.tensor(labels or [1] * len(gt), dtype=torch.int64)
    centers = to_centers(torch.tensor(anchors).reshape(-1, 4))
    return match(centers, gt, gt_labels, torch.tensor([0, len(gt)]), **options)


def test_anchor_at_the_threshold_is_matched(match: MatchOp) -> None:
    half, below = [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.4375, 1.0]
    found = match_one(match, [[0.0, 0.0, 1.0, 1.0], half, below], [[0.0, 0.0, 1.0, 1.0]], labels=[7])
    assert found.indices.tolist() == [[0, 0, -1]]
    assert found.labels.tolist() == [[7, 7, 0]]
    assert found.ious.tolist() == [[1.0, 0.5, 0.4375]]
    assert (found.targets[0, 2] == 0).all()


def test_best_anchor_is_matched_below_the_threshold(match: MatchOp) -> None:
    found = match_one(match, [[0.0, 0.0, 0.125, 1.0], [0.0, 0.0, 0.25, 1.0]], [[0.0, 0.0, 1.0, 1.0]])
    assert found.indices.tolist() == [[-1, 0]]


def test_two_boxes_that_share_a_best_anchor_get_two_anchors(match: MatchOp) -> None:
    anchors = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.25, 1.0]]
    found = match_one(match, anchors, [[0.0, 0.0, 0.75, 1.0], [0.0, 0.0, 0.875, 1.0]], labels=[3, 4])
    assert found.indices.tolist() == [[1, 0]]
    assert found.labels.tolist() == [[4, 3]]
    assert found.ious[0, 1] == pytest.approx(1 / 3)


def test_box_that_overlaps_nothing_stays_unmatched(match: MatchOp) -> None:
    found = match_one(match, [[0.0, 0.0, 0.5, 0.5]], [[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.25]])
    assert found.indices.tolist() == [[1]]


def test_iou_of_a_millionth_is_no_overlap(match: MatchOp) -> None:
    anchor = [[0.0, 0.0, 1.0, 1.0]]
    assert match_one(match, anchor, [[0.0, 0.0, 2.0**-10, 2.0**-10]]).indices.tolist() == [[-1]]
    assert match_one(match, anchor, [[0.0, 0.0, 2.0**-9, 2.0**-10]]).indices.tolist() == [[0]]
    assert match_one(match, anchor, [[0.0, 0.0, 2.0**-10, 2.0**-10]], iou_threshold=0.0).ious.tolist() == [[0.0]]


@pytest.mark.small
def test_ties_go_to_the_lowest_anchor_then_to_the_earliest_box(match: MatchOp) -> None:
    box = [0.0, 0.0, 1.0, 0.25]
    assert match_one(match, [box, box], [box, box], iou_threshold=1.0).indices.tolist() == [[0, 1]]
    assert match_one(match, [box, box, box], [box, box]).indices.tolist() == [[0, 1, 0]]
    # bipartite: both anchors overlap both boxes alike
    left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    middle = [0.25, 0.0, 0.75, 1.0]
    assert match_one(match, [middle, middle], [left, right]).indices.tolist() == [[0, 1]]


@pytest.mark.small
def test_images_do_not_mix(match: MatchOp) -> None:
    anchors = to_centers(torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]))
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    found = match(anchors, boxes, torch.tensor([1, 2, 3]), torch.tensor([0, 1, 1, 3]))
    assert found.indices.tolist() == [[-1, 0], [-1, -1], [0, 1]]
    assert found.labels.tolist() == [[0, 1], [0, 0], [2, 3]]
    assert (found.ious[1] == 0).all()


@pytest.mark.parametrize(("batch", "anchors"), [(0, 3), (0, 0), (2, 0), (2, 3)])
def test_nothing_to_match(match: MatchOp, batch: int, anchors: int) -> None:
    found = match(torch.ones(anchors, 4), torch.empty(0, 4), torch.empty(0).long(), torch.zeros(batch + 1).long())
    assert found.labels.shape == found.ious.shape == (batch, anchors)
    assert found.targets.shape == (batch, anchors, 4)
    assert (found.labels == 0).all()
    assert (found.indices == -1).all()


@pytest.mark.parametrize(
    "box",
    [[NAN, 0.0, 1.0, 1.0], [0.0, 0.0, INF, 1.0], [-INF, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.5, 1.0, 0.5]],
)
def test_unusable_boxes_and_anchors_overlap_nothing(match: MatchOp, box: list[float]) -> None:
    whole = [0.0, 0.0, 1.0, 1.0]
    assert match_one(match, [whole], [box]).indices.tolist() == [[-1]]
    assert match_one(match, [whole], [box, whole]).indices.tolist() == [[1]]
    found = match_one(match, [box, whole], [whole])
    assert found.indices.tolist() == [[-1, 0]]
    assert found.ious.tolist() == [[0.0, 1.0]]


def test_targets_decode_to_the_matched_boxes(match: MatchOp) -> None:
    case = GOLDEN_LOSSES["many_gts-difficult"]
    found = match(case.anchors, *case.targets)
    decoded = to_corners(ops.refine(case.anchors, found.targets))
    rows = found.indices + case.targets.offsets[:-1, None]
    matched = found.indices >= 0
    torch.testing.assert_close(decoded[matched], case.targets.boxes[rows[matched]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("module", ["arm", "odm"])
@pytest.mark.parametrize("case", GOLDEN_LOSSES.values(), ids=GOLDEN_LOSSES.keys())
def test_official_matches(match: MatchOp, case: GoldenLoss, module: str) -> None:
    anchors = case.anchors if module == "arm" else ops.refine(case.anchors, case.raw.arm_loc)
    assert torch.equal(match(anchors, *case.targets).indices, getattr(case, module)["match"].long())


def brute_force(anchors: Tensor, boxes: Tensor, threshold: Fraction) -> list[int]:
    """Section 7.2 of the specification word by word, in exact arithmetic, of corners that are whole numbers."""

    def iou(a: list[int], b: list[int]) -> Fraction:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return Fraction(0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return Fraction(width * height, sum(areas) - width * height)

    pairs = {
        (i, j): overlap
        for i, anchor in enumerate(anchors.int().tolist())
        for j, box in enumerate(boxes.int().tolist())
        if (overlap := iou(anchor, box)) > Fraction(1, 10**6)
    }
    matched: dict[int, int] = {}
    while free := {p: v for p, v in pairs.items() if p[0] not in matched and p[1] not in matched.values()}:
        anchor, box = min(free, key=lambda pair: (-free[pair], pair))
        matched[anchor] = box
    for i in set(range(len(anchors))) - set(matched):
        overlaps = {j: v for (k, j), v in pairs.items() if k == i and v >= threshold}
        if overlaps:
            matched[i] = min(overlaps, key=lambda j: (-overlaps[j], j))
    return [matched.get(i, -1) for i in range(len(anchors))]


@pytest.mark.small
@pytest.mark.parametrize("seed", range(60))
def test_brute_force(match: MatchOp, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 8, (40, 2), generator=generator)
    corners = torch.cat([low, low + torch.randint(1, 6, (40, 2), generator=generator)], dim=1).float()
    boxes = corners[: seed % 13]
    anchors = corners[13 : 13 + seed % 27]
    offsets = torch.tensor([0, len(boxes)])
    found = match(to_centers(anchors), boxes, torch.ones(len(boxes)).long(), offsets, iou_threshold=0.375)
    assert found.indices[0].tolist() == brute_force(anchors, boxes, Fraction(3, 8))


SPECIAL = [NAN, INF, -INF, 3e38, -3e38, 1e-42, 0.0]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Arguments of match: coarse grids for ties, inverted boxes, special values, half precision, every small size."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    counts = draw(st.lists(st.sampled_from([0, 1, 2, 5, 40]), max_size=3))
    num_anchors = draw(st.sampled_from([0, 1, 7, 63, 64, 65, 150]))
    grid = draw(st.sampled_from([3, 8, 1024]))
    smallest = draw(st.sampled_from([-1, 0, 1]))

    def boxes(*shape: int) -> Tensor:
        center = torch.randint(0, grid + 1, (*shape, 2), generator=random)
        size = torch.randint(smallest, grid + 1, (*shape, 2), generator=random)
        values = torch.cat([center, size], dim=-1) / grid
        if values.numel() and draw(st.booleans()):
            values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from(SPECIAL))
        return values

    shared = draw(st.booleans())
    anchors = boxes(num_anchors) if shared else boxes(len(counts), num_anchors)
    gt = to_corners(boxes(sum(counts)))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]))
    labels = torch.randint(1, 21, (sum(counts),), generator=random)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return anchors.to(dtype), gt.to(dtype), labels, offsets, draw(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))


@settings(max_examples=500, deadline=None)
@given(problems())
def test_equals_the_reference(match: MatchOp, problem: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    found, expected = match(*problem), reference.match(*problem)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.ious, expected.ious)
    torch.testing.assert_close(found.targets, expected.targets, rtol=1e-6, atol=1e-6)


def crowd() -> Inputs:
    """Three images of 5000 anchors, more than one work item each, and many boxes that compete for the same ones."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(3, 5000, 4, generator=generator)
    boxes = to_corners(torch.rand(20, 4, generator=generator)).repeat(15, 1)
    return anchors, boxes, torch.arange(1, 301), torch.tensor([0, 200, 210, 300])


def test_crowd_equals_the_reference(match: MatchOp) -> None:
    found, expected = match(*crowd()), reference.match(*crowd())
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.ious, expected.ious)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("anchors", [15, 16, 17, 255, 2047, 2048, 2049, 4100])
def test_any_number_of_anchors_on_the_cpu(anchors: int, shared: bool) -> None:
    """Numbers around the lanes of a vector and the anchors of a work item; small boxes touch few of them."""
    generator = torch.Generator().manual_seed(anchors)
    centers = torch.rand(*(() if shared else (2,)), anchors, 4, generator=generator) * torch.tensor(
        [8.0, 8.0, 2.0, 2.0]
    )
    boxes = to_corners(torch.rand(19, 4, generator=generator) * torch.tensor([8.0, 8.0, 2.0, 2.0]))
    inputs = centers, boxes, torch.arange(1, 20), torch.tensor([0, 18, 19])
    found, expected = ops.match(*inputs), reference.match(*inputs)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.ious, expected.ious)
    assert (found.indices >= 0).any()


def test_order_of_distinct_boxes_does_not_matter(match: MatchOp) -> None:
    generator = torch.Generator().manual_seed(1)
    anchors = torch.rand(700, 4, generator=generator)
    boxes = to_corners(torch.rand(25, 4, generator=generator))
    labels, offsets = torch.arange(1, 26), torch.tensor([0, 25])
    expected = match(anchors, boxes, labels, offsets)
    order = torch.randperm(25, generator=generator)
    assert torch.equal(match(anchors, boxes[order], labels[order], offsets).labels, expected.labels)
    order = torch.randperm(700, generator=generator)
    assert torch.equal(match(anchors[order], boxes, labels, offsets).labels, expected.labels[:, order])


def test_unit_of_length_does_not_matter(match: MatchOp) -> None:
    anchors, boxes, labels, offsets = crowd()
    found, scaled = match(anchors, boxes, labels, offsets), match(anchors * 512, boxes * 512, labels, offsets)
    assert all(torch.equal(a, b) for a, b in zip(found, scaled, strict=True))


@pytest.mark.parametrize("match", KERNELS, indirect=True)
def test_offsets_are_not_trusted(match: MatchOp) -> None:
    """Nobody has looked at offsets on the device: whatever they are, nothing outside the arrays is touched."""
    anchors, boxes, labels, _ = random_inputs(3, 20, [5], shared=True)
    far, lowest, highest = 2**62, -(2**63), 2**63 - 1
    for offsets in (
        [-far, 9, far],
        [5, 2, -1],
        [far, far, 0],
        [-1, -far, 3],
        [lowest, highest, lowest],
        [highest, lowest, highest],
    ):
        found = match(anchors, boxes, labels, torch.tensor(offsets))
        assert found.indices.min() >= -1
        assert found.indices.max() < 5


@pytest.mark.parametrize("offsets", [[0, 5, 2, 7, 9], [0, 9, 0, 9, 9], [3, 1, 4, 0, 9], [0, 9, -5, 12, 4]])
@pytest.mark.parametrize("seed", range(5))
def test_images_that_own_the_same_boxes(harness: Harness, offsets: list[int], seed: int) -> None:
    """They get in each other's way, so their matches are any; but the kernels end, touch nothing outside the arrays,
    write every anchor, and the images beside them have their own matches."""
    anchors, boxes, labels, _ = random_inputs(4, 300, [9], shared=True, copies=3)
    found = launch(harness, anchors, boxes, labels, torch.tensor(offsets), seed=seed)
    starts = torch.tensor(offsets).clamp(0, 9)[:-1, None]
    matched = found.indices >= 0
    assert torch.equal(found.labels, torch.where(matched, labels[(starts + found.indices).clamp(0, 8)], 0))
    assert found.targets.isfinite().all()
    ranges = [range(max(0, first), max(0, min(last, 9))) for first, last in pairwise(offsets)]
    for image, rows in enumerate(ranges):
        if any(set(rows) & set(other) for other in ranges[:image] + ranges[image + 1 :]):
            continue
        own = [*rows]
        alone = ops.match(anchors, boxes[own], labels[own], torch.tensor([0, len(own)]))
        assert all(torch.equal(a[image], b[0]) for a, b in zip(found, alone, strict=True))


# --- The operator in torch: threads, strides, gradients, refusals, tracing, memory ------------------------------------


def test_any_number_of_threads_gives_the_same_bits() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(ops.match(*crowd()))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_inputs_need_not_be_contiguous() -> None:
    anchors, boxes, labels, offsets = crowd()
    strided = anchors.transpose(0, 1).contiguous().transpose(0, 1)
    spread = torch.stack([labels, labels], dim=1)[:, 0]
    found = ops.match(strided, boxes.t().contiguous().t(), spread, offsets)
    assert all(torch.equal(a, b) for a, b in zip(found, ops.match(anchors, boxes, labels, offsets), strict=True))


def test_no_gradient() -> None:
    anchors, boxes, labels, offsets = crowd()
    assert not ops.match(anchors.requires_grad_(), boxes.requires_grad_(), labels, offsets).targets.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": torch.ones(5, 3)}, r"anchors has shape \[5, 3\], expected \[\*, 4\]"),
        ({"anchors": torch.ones(3, 5, 4)}, r"anchors has shape \[3, 5, 4\], expected \[1, \*, 4\]"),
        ({"anchors": torch.ones(5, 4).long()}, "anchors must hold floating-point numbers"),
        ({"gt_boxes": torch.ones(2, 5)}, r"gt_boxes has shape \[2, 5\]"),
        ({"gt_labels": torch.ones(3).long()}, r"gt_labels has shape \[3\], expected \[2\]"),
        ({"gt_labels": torch.ones(2)}, "gt_labels must hold int64"),
        pytest.param(
            {"gt_offsets": torch.tensor([0, 3])},
            "gt_offsets runs from 0 to 3, expected from 0 to .* 2",
            marks=pytest.mark.cpu_only,
        ),
        *(
            pytest.param(
                {"gt_labels": torch.tensor([1, label])},
                rf"gt_labels\[1\] is {label}, expected 1 or more: 0 is the background",
                marks=pytest.mark.cpu_only,
            )
            for label in (0, -1)
        ),
        pytest.param(
            {"gt_offsets": torch.tensor([0, 3, 2]), "anchors": torch.ones(5, 4)},
            "must ascend, but 3 is before 2",
            marks=pytest.mark.cpu_only,
        ),
        ({"gt_offsets": torch.empty(0).long(), "anchors": torch.ones(5, 4)}, "gt_offsets is empty"),
        ({"variances": (0.1, 0.2)}, "variances must be 4 numbers, got 2"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    arguments = {
        "anchors": torch.ones(1, 5, 4),
        "gt_boxes": torch.ones(2, 4),
        "gt_labels": torch.ones(2).long(),
        "gt_offsets": torch.tensor([0, 2]),
    }
    with pytest.raises(InputError, match=message):
        ops.match(**{**arguments, **change})


def test_the_twin_refuses_the_background_as_a_label() -> None:
    with pytest.raises(InputError, match=r"^refinedet\.match: gt_labels\[1\] is 0, expected 1 or more"):
        reference.match(torch.ones(5, 4), torch.ones(2, 4), torch.tensor([1, 0]), torch.tensor([0, 2]))


@pytest.mark.parametrize("shared", [True, False])
def test_opcheck(shared: bool) -> None:
    anchors, boxes, labels, offsets = crowd()
    anchors = anchors[0, :90] if shared else anchors[:, :90]
    arguments = (anchors, boxes, labels, offsets, 0.5, [0.1, 0.1, 0.2, 0.2])
    torch.library.opcheck(torch.ops.refinedet.match.default, arguments)


def test_compile() -> None:
    compiled = torch.compile(ops.match, fullgraph=True)(*crowd())
    assert all(torch.equal(a, b) for a, b in zip(compiled, ops.match(*crowd()), strict=True))


class MatchModule(torch.nn.Module):
    def forward(self, anchors: Tensor, boxes: Tensor, labels: Tensor, offsets: Tensor) -> Match:
        return ops.match(anchors, boxes, labels, offsets)


def test_export_with_any_number_of_boxes() -> None:
    boxes, images, anchors = torch.export.Dim("boxes"), torch.export.Dim("images"), torch.export.Dim("anchors")
    batch = {"anchors": {0: images, 1: anchors}, "boxes": {0: boxes}, "labels": {0: boxes}, "offsets": {0: images + 1}}
    program = torch.export.export(MatchModule(), crowd(), dynamic_shapes=batch)
    anchors, boxes, labels, offsets = crowd()
    fewer = anchors[:2, :777], boxes[:210], labels[:210], offsets[:3]
    assert all(torch.equal(a, b) for a, b in zip(program.module()(*fewer), ops.match(*fewer), strict=True))


PEAK_MEMORY = """
import ctypes, sys, torch
from refinedet import ops
from refinedet.boxes import to_corners
from refinedet.ops import reference

def memory(name):  # of this process, in MiB; VmRSS is what it holds, VmHWM the most it has held
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))

match = {"op": ops, "reference": reference}[sys.argv[1]].match
num_anchors, num_boxes = int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
anchors = torch.rand(num_anchors, 4) * torch.tensor([1.0, 1.0, 0.2, 0.2])
boxes = to_corners(torch.rand(num_boxes // 4, 4) * torch.tensor([1.0, 1.0, 0.2, 0.2])).repeat(4, 1)
labels, offsets = torch.ones(num_boxes).long(), torch.tensor([0, num_boxes])
match(anchors[:8], boxes[:4], labels[:4], torch.tensor([0, 4]))
ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide growth
before = memory("VmRSS")
match(anchors, boxes, labels, offsets)
print(memory("VmHWM") - before)
"""


def peak_growth(which: str, num_anchors: int, num_boxes: int) -> float:
    """MiB by which the peak memory of a new process is above what it holds before it matches."""
    command = [sys.executable, "-c", PEAK_MEMORY, which, str(num_anchors), str(num_boxes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # the package is found from there
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.cpu_only
def test_memory_is_linear() -> None:
    """300,000 anchors and 1,000 boxes, each four times so that they compete: the matrix would take 1,144 MiB."""
    outputs = 300_000 * 36 / 2**20
    growth = peak_growth("op", 300_000, 1_000)
    assert growth < 4 * outputs
    assert growth < peak_growth("op", 300_000, 4) + outputs


@pytest.mark.cpu_only
def test_memory_measure_shows_its_error_and_works_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    with pytest.raises(AssertionError, match="KeyError: 'no such'"):  # it came as far as that
        peak_growth("no such", 8, 4)


@pytest.mark.cpu_only
def test_memory_measure_sees_a_matrix() -> None:
    assert peak_growth("reference", 20, 500_000) > 20 * 500_000 * 4 / 2**20


KEPT_MEMORY = """
import ctypes, resource, torch
from refinedet import ops

torch.set_num_threads(1)
results = 32 * 6375 * 36  # bytes of one call
arguments = torch.rand(6375, 4), torch.rand(64, 4), torch.ones(64).long(), torch.arange(0, 65, 2)
for call in range(40):
    if call == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ops.match(*arguments)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
allocate = ctypes.CDLL(None).malloc
allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
address = allocate(2 * results - 4096)
with open("/proc/self/maps") as file:
    heap = next(line.split()[0] for line in file if line.endswith("[heap]\\n"))
first, last = (int(end, 16) for end in heap.split("-"))
print(first <= address < last)
"""


@pytest.mark.cpu_only
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they like")
def test_memory_is_kept_for_the_next_call() -> None:
    """Batch 32 at 320: its results are 1,793 pages, which a loop does not get anew, zeroed, in every call."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", KEPT_MEMORY], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    faults, from_the_heap = done.stdout.split()
    assert float(faults) < 600
    assert from_the_heap == "True"  # glibc has learned it: without that it keeps enough by chance only


# --- The kernels on the harness: sizes, schedules, views that matter to them ------------------------------------------

SEEDS = range(5)  # of schedules


def check_case(harness: Harness, inputs: Inputs, **arguments: Any) -> Match:
    """Runs the kernels and the CPU operator: the same matches and IoUs, targets within a rounding of the logarithm."""
    found = launch(harness, *inputs, **arguments)
    options = {name: value for name, value in arguments.items() if name not in ("misaligned", "seed")}
    expected = ops.match(*inputs, **options)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.ious, expected.ious)
    torch.testing.assert_close(found.targets, expected.targets, rtol=1e-6, atol=1e-6)
    return found


def random_inputs(
    seed: int, anchors: int, counts: Sequence[int], *, shared: bool = False, copies: int = 1, usable: int | None = None
) -> Inputs:
    """Boxes of all sizes; each box of an image ``copies`` times in a row, so that they compete for anchors.

    Of all boxes only about ``usable`` overlap anything; the others are inverted.
    """
    random = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=random) * torch.tensor([1.0, 1.0, 0.5, 0.5])

    gt = [to_corners(boxes(-(-count // copies))).repeat_interleave(copies, dim=0)[:count] for count in counts]
    gt_boxes, total = torch.cat(gt).reshape(-1, 4), sum(counts)
    if usable is not None:
        inverted = torch.rand(total, generator=random) > usable / total
        gt_boxes[inverted] = gt_boxes[inverted].roll(2, dims=1)
    labels = torch.randint(1, 21, (total,), generator=random)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return boxes(anchors) if shared else boxes(len(counts), anchors), gt_boxes, labels, offsets


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    # More boxes than a tile holds, in an image that is not the last; anchors that end within a block.
    check_case(harness, random_inputs(0, 300, [290, 0, 40], copies=2), seed=1)
    # One block of anchors, for ThreadSanitizer; boxes compete.
    check_case(harness, random_inputs(1, 70, [20], copies=4), seed=2)
    # A ground truth that moves on to an anchor of another warp's search, again and again.
    check_case(harness, random_inputs(2, 600, [30], copies=30), seed=3)
    # Offsets are not trusted.
    anchors, boxes, labels, _ = random_inputs(3, 20, [5])
    launch(harness, anchors.expand(3, -1, -1), boxes, labels, torch.tensor([-7, 3, 1, 12]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("anchors", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025])
def test_number_of_anchors(harness: Harness, anchors: int, seed: int) -> None:
    check_case(harness, random_inputs(seed, anchors, [3, 0, 9], shared=seed % 2 == 0, copies=3), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("boxes", [1, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257])
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


def test_largest_image(fast_harness: Harness) -> None:
    """300,000 anchors, where indices leave 16 bits and a search takes many rounds."""
    check_case(fast_harness, random_inputs(4, 300_000, [4, 2], shared=True, copies=2))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(racing_harness: Harness, seed: int) -> None:
    check_case(racing_harness, random_inputs(seed, 70, [6, 3], copies=3), seed=seed)
    check_case(racing_harness, random_inputs(seed, 40, [270], usable=5), seed=seed)


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
