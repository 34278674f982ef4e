"""detect. Tests with the argument ``detect`` run on every implementation; those of the kernels alone come last."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness, LauncherError
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import (
    GOLDEN_NAMES,
    in_levels,
    load_golden,
    official_rows,
    random_anchors,
    random_tensor,
    threads,
)
from support.implementations import IMPLEMENTATIONS
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError
from refinedet.ops import Detected
from refinedet.ops.reference import portable

DetectOp = Callable[..., Detected]
HEADS = ("arm_loc", "arm_conf", "odm_loc", "odm_conf")
Output = Tensor | Sequence[Tensor]  # whole or in levels
Inputs = tuple[Output | None, Output | None, Output, Output, Tensor]  # HEADS, then anchors
SAME_CORNERS = {"rtol": 1e-5, "atol": 1e-6}  # corners near 0 are differences: absolute, in units of the image side


def launch(
    harness: Harness,
    *inputs: Output | None,  # HEADS, then anchors
    misaligned: bool = False,
    seed: int = 0,
    objectness_threshold: float = 0.01,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 1000,
    keep_top_k: int = 500,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
) -> Detected:
    """The kernels on the harness."""
    *heads, anchors = ([value] if isinstance(value, Tensor) else value for value in inputs)
    batch, dtype = len(heads[2][0]), heads[2][0].dtype
    dtype = dtype if dtype in DTYPES else torch.float32
    arrays = {"anchors": anchors[0].float().numpy()}
    for name, levels in zip(HEADS, heads, strict=True):
        for i, level in enumerate(levels or ()):
            arrays[f"{name}{i}"] = to_array(level.to(dtype).contiguous())
    scalars = {
        "type": DTYPES.index(dtype),
        "batch": batch,
        "num_anchors": len(anchors[0]),
        "num_classes": heads[3][0].shape[2],
        "num_levels": len(heads[2]),
        **{f"num_anchors{i}": level.shape[1] for i, level in enumerate(heads[2])},
        "objectness_threshold": float(objectness_threshold),
        "score_threshold": float(score_threshold),
        "iou_threshold": float(iou_threshold),
        "top_k": top_k,
        "keep_top_k": keep_top_k,
        **{f"variance_{axis}": float(value) for axis, value in zip("xywh", variances, strict=True)},
    }
    outputs = {
        "boxes": (np.float32, (batch, keep_top_k, 4)),
        "scores": (np.float32, (batch, keep_top_k)),
        "labels": (np.int64, (batch, keep_top_k)),
        "indices": (np.int64, (batch, keep_top_k)),
        "counts": (np.int64, (batch,)),
    }
    result = harness.run("detect", arrays, scalars, outputs, seed=seed, misaligned=tuple(arrays) if misaligned else ())
    assert result.launches <= 3
    return Detected(*(torch.from_numpy(result.outputs[name].copy()) for name in outputs))


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def detect(request: pytest.FixtureRequest) -> DetectOp:
    return request.param(request, ops.detect, launch)


def assert_same(detected: Detected, expected: Detected) -> None:
    for name, ours, theirs in zip(Detected._fields, detected, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


@pytest.mark.small
def test_literal(detect: DetectOp) -> None:
    """Three anchors: the first two on the same object, the third rejected by the ARM."""
    anchors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.48], [0.75, 0.75, 0.5, 0.5]])
    arm_conf = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.995, 0.005]]).log()[None]
    odm_conf = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.8, 0.0], [0.0, 1.0, 0.0]]).log()[None]
    zeros = torch.zeros(1, 3, 4)
    found = detect(zeros, arm_conf, zeros, odm_conf, anchors, keep_top_k=4)
    assert found.counts.tolist() == [2]
    assert found.indices.tolist() == [[1, 0, -1, -1]]
    assert found.labels.tolist() == [[1, 2, 0, 0]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.8, 0.2, 0.0, 0.0]]))
    torch.testing.assert_close(found.boxes[0, 1], torch.tensor([0.0, 0.0, 0.5, 0.5]))
    assert (found.boxes[0, 2:] == 0).all()
    unfiltered = detect(zeros, None, zeros, odm_conf, anchors, keep_top_k=4)
    assert unfiltered.indices.tolist() == [[2, 1, 0, -1]]


def test_the_cascade_moves_twice(detect: DetectOp) -> None:
    anchors = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    shift = torch.tensor([[[1.0, 0, 0, 0]]])  # 0.1 * width
    odm_conf = torch.tensor([[[0.0, 5.0]]])
    twice = detect(shift, None, shift, odm_conf, anchors, keep_top_k=1).boxes[0, 0]
    once = detect(None, None, shift, odm_conf, anchors, keep_top_k=1).boxes[0, 0]
    torch.testing.assert_close(twice, torch.tensor([0.44, 0.4, 0.64, 0.6]))
    torch.testing.assert_close(once, torch.tensor([0.42, 0.4, 0.62, 0.6]))


@pytest.mark.parametrize("name", [name for name in GOLDEN_NAMES if name != "ties"])
def test_official_layer(detect: DetectOp, name: str) -> None:
    inputs, runs = load_golden(name)
    for run in runs:
        detected = detect(*inputs, **run.options)
        rows, anchors = official_rows(detected)
        assert np.array_equal(anchors, run.anchors), run.tag
        assert np.array_equal(rows[:, :2], run.rows[:, :2]), run.tag
        np.testing.assert_allclose(rows[:, 2], run.rows[:, 2], rtol=1e-5, err_msg=run.tag)
        np.testing.assert_allclose(rows[:, 3:], run.rows[:, 3:], **SAME_CORNERS, err_msg=run.tag)
        assert_same(detected, ops.reference.detect(*inputs, **run.options))


@pytest.mark.small
def test_official_layer_with_ties(detect: DetectOp) -> None:
    """Its probabilities are multiples of 1/16 that do not sum to 1, and tie exactly.

    A softmax shows the same ties when the background is so strong that the sum rounds to 1: then every score is the
    probability times 2^-40.
    """
    (arm_loc, arm_conf, odm_loc, odm_conf, anchors), (run,) = load_golden("ties")
    odm_conf[..., 0] = 40 * np.log(2)
    options = run.options | {"score_threshold": run.options["score_threshold"] * 2.0**-40}
    detected = detect(arm_loc, arm_conf, odm_loc, odm_conf, anchors, **options)
    rows, indices = official_rows(detected)
    assert len(np.unique(run.rows[:, 2])) < 16 < len(run.rows)
    assert np.array_equal(indices, run.anchors)
    assert np.array_equal(rows[:, :2], run.rows[:, :2])
    np.testing.assert_allclose(rows[:, 2] * 2.0**40, run.rows[:, 2], rtol=1e-5)
    np.testing.assert_allclose(rows[:, 3:], run.rows[:, 3:], **SAME_CORNERS)
    assert_same(detected, ops.reference.detect(arm_loc, arm_conf, odm_loc, odm_conf, anchors, **options))


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 2),
    count=st.integers(0, 40),
    classes=st.integers(1, 4),
    stages=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    steps=st.booleans(),
    trouble=st.sampled_from([0.0, 0.02]),
    transposed=st.booleans(),
    cuts=st.none() | st.lists(st.integers(0, 40), max_size=3),
    options=st.fixed_dictionaries(
        {
            "objectness_threshold": st.sampled_from([0.0, 0.01, 0.5]),
            "score_threshold": st.sampled_from([-1.0, 0.01, 0.25]),
            "iou_threshold": st.sampled_from([0.0, 0.45, 0.7, 1.45]),
            "top_k": st.sampled_from([1, 7, 1000]),
            "keep_top_k": st.sampled_from([1, 5, 300]),
        }
    ),
)
def test_equals_reference(
    detect: DetectOp,
    seed: int,
    batch: int,
    count: int,
    classes: int,
    stages: tuple[bool, bool],
    dtype: torch.dtype,
    steps: bool,
    trouble: float,
    transposed: bool,
    cuts: list[int] | None,
    options: dict,
) -> None:
    rng = np.random.default_rng(seed)

    def tensor(width: int, scale: float) -> Tensor:
        values = random_tensor(rng, (batch, count, width), scale=scale, steps=steps, trouble=trouble).to(dtype)
        return values.transpose(0, 1).contiguous().transpose(0, 1) if transposed else values

    with_arm_loc, with_arm_conf = stages
    arm_loc = tensor(4, 1) if with_arm_loc else None
    arm_conf = tensor(2, 3) if with_arm_conf else None
    inputs = (arm_loc, arm_conf, tensor(4, 1), tensor(classes, 3), random_anchors(rng, count).to(dtype))
    expected = ops.reference.detect(*inputs, **options)
    if cuts is not None:
        borders = [0, *sorted(min(cut, count) for cut in cuts), count]
        inputs = in_levels(inputs, np.diff(borders).tolist())
        assert_same(ops.reference.detect(*inputs, **options), expected)
    assert_same(detect(*inputs, **options), expected)


@pytest.fixture(scope="module")
def clusters() -> tuple[Tensor, ...]:
    return load_golden("clusters_voc320")[0]


def test_fewer_rows_are_the_first_rows(detect: DetectOp, clusters: tuple[Tensor, ...]) -> None:
    many, few = detect(*clusters), detect(*clusters, keep_top_k=37)
    for name in ("boxes", "scores", "labels", "indices"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:, :37])


def test_order_of_the_anchors_does_not_matter(detect: DetectOp, clusters: tuple[Tensor, ...]) -> None:
    order = torch.randperm(len(clusters[4]), generator=torch.Generator().manual_seed(0))
    found = detect(*clusters)
    shuffled = detect(*(tensor[:, order] for tensor in clusters[:4]), clusters[4][order])
    scores = found.scores[found.scores > 0]
    assert len(scores.unique()) == len(scores)
    assert_same(shuffled._replace(indices=order[shuffled.indices]), found)


def test_images_do_not_meet(detect: DetectOp, clusters: tuple[Tensor, ...]) -> None:
    together = detect(*clusters)
    for image in range(2):
        alone = detect(*(tensor[image : image + 1] for tensor in clusters[:4]), clusters[4])
        for ours, theirs in zip(alone, together, strict=True):
            assert torch.equal(ours[0], theirs[image])


LEVELS = (4800, 1200, 300, 75)  # anchors of strides 8, 16, 32, 64 at 320x320


def test_levels_of_the_network(detect: DetectOp, clusters: tuple[Tensor, ...]) -> None:
    whole = detect(*clusters)
    assert_same(detect(*in_levels(clusters, LEVELS)), whole)
    without_arm = (None, None, *clusters[2:])
    assert_same(detect(*in_levels(without_arm, LEVELS)), detect(*without_arm))


@pytest.mark.parametrize("sizes", [[600], [511, 89], [1, 512, 0, 87], [0, 513, 86, 1], [15, 16, 17, 552], [600, 0]])
def test_levels_of_any_size(detect: DetectOp, clusters: tuple[Tensor, ...], sizes: list[int]) -> None:
    """Borders beside those of the blocks of anchors, 256 and 512, and levels without anchors."""
    inputs = (*(tensor[:, :600] for tensor in clusters[:4]), clusters[4][:600])
    options = {"objectness_threshold": 0.0, "score_threshold": 0.02}
    assert_same(detect(*in_levels(inputs, sizes), **options), ops.detect(*inputs, **options))


# --- The operator in torch: copies, threads, gradients, refusals, tracing ---------------------------------------------


@pytest.mark.cpu_only
def test_more_candidates_than_one_chunk() -> None:
    """Suppression that kills nearly everything walks through all candidates: many sorted chunks, top_k binding."""
    rng = np.random.default_rng(5)
    anchors = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(3000, 1)
    odm_loc = random_tensor(rng, (1, 3000, 4), scale=0.3, steps=False, trouble=0)
    odm_conf = random_tensor(rng, (1, 3000, 3), scale=1, steps=False, trouble=0)
    for top_k in (100, 10_000):
        found = ops.detect(None, None, odm_loc, odm_conf, anchors, top_k=top_k, keep_top_k=20, iou_threshold=0.3)
        assert found.counts.item() < 20
        expected = ops.reference.detect(
            None, None, odm_loc, odm_conf, anchors, top_k=top_k, keep_top_k=20, iou_threshold=0.3
        )
        assert_same(found, expected)


FILTER_THRESHOLDS = [-float("inf"), -1, -0.0, 0, 1e-45, 1e-39, 2e-38, 1e-30, 1.1e-30, 1e-20, 1e-7, 0.01, 0.5, 0.99]
FILTER_THRESHOLDS += [1 - 2**-20, 1 - 2**-24, 1, 1 + 2**-23, 2, float("inf")]


@pytest.mark.cpu_only
@pytest.mark.parametrize("threshold", FILTER_THRESHOLDS)
def test_filter_without_exponentials(threshold: float) -> None:
    """The CPU decides by the difference of the logits where rounding leaves no doubt: every anchor as by its number."""
    rng = np.random.default_rng(0)
    wide = np.concatenate([rng.normal(0, scale, 400) for scale in (1e-40, 1e-5, 1, 5, 30, 1e4, 1e38)])
    special = np.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 88.72, 88.73, 89.0, 89.1, -104.0, -104.1, 1e-45, 3e38, -3e38]
    )
    border = np.log(1 / threshold - 1) if 0 < threshold < 1 else 16.6 if threshold < 1 else -16.6
    near = np.float32(border).view(np.int32) + np.arange(-400, 400, dtype=np.int32)
    spread = border + np.linspace(-2e-5, 2e-5, 400)
    background = np.concatenate([wide, special, near.view(np.float32), spread]).astype(np.float32)
    objects = np.zeros_like(background)
    shifted = rng.normal(0, 5, len(background)).astype(np.float32)
    pairs = np.stack([np.concatenate([background, background + shifted]), np.concatenate([objects, shifted])], axis=1)
    arm_conf = torch.from_numpy(pairs)[None]
    count = arm_conf.shape[1]
    assert count % 8  # answers are looked through by eights
    found = ops.detect(
        None,
        arm_conf,
        torch.zeros(1, count, 4),
        torch.zeros(1, count, 2),
        torch.tensor([0.5, 0.5, 0.1, 0.1]).repeat(count, 1),
        objectness_threshold=threshold,
        iou_threshold=5.0,
        top_k=count,
        keep_top_k=count,
    )
    expected = (portable.objectness(arm_conf[0]) >= np.float32(threshold)).nonzero().squeeze(1)
    assert torch.equal(found.indices[0, : found.counts.item()], expected)


@pytest.mark.cpu_only
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 97])
def test_candidates_without_divisions(classes: int) -> None:
    """The CPU divides only where a score may be above the threshold; here it is some score, or its neighbour."""
    count = 40
    *outputs, odm_conf, anchors = random_inputs(classes, 1, count, classes, arm_conf=False, trouble=0.001)
    outputs = [None if output is None else torch.zeros_like(output) for output in outputs]
    scores = portable.softmax(odm_conf[0])[:, 1:].flatten()
    chosen = scores[~scores.isnan()][:: classes + 1].numpy()
    around = [np.nextafter(chosen, np.float32(0)), chosen, np.nextafter(chosen, np.float32(1))]
    for threshold in (*np.concatenate(around).tolist(), -1.0, 0.0, 1e-45, 1e-30, 2e-30, 1.0, float("inf")):
        options = {"score_threshold": threshold, "iou_threshold": 5.0, "keep_top_k": count * classes}
        found = ops.detect(*outputs, odm_conf, anchors, **options)
        order = scores.nan_to_num(-1.0).argsort(descending=True, stable=True)
        order = order[scores[order] > threshold]
        assert found.counts.item() == len(order)
        assert torch.equal(found.indices[0, : len(order)], order // (classes - 1))
        assert torch.equal(found.labels[0, : len(order)], order % (classes - 1) + 1)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", ["equal", "close but for one", "two values", "falling", "spread"])
def test_order_of_many_candidates(kind: str) -> None:
    """More than are sorted at once, in buckets of one key, of all keys, and of what lies between."""
    count = 5000
    logits = {
        "equal": torch.zeros(count),
        "close but for one": torch.linspace(1, 1.0001, count),
        "two values": (torch.arange(count) % 7 == 0).float(),
        "falling": torch.linspace(3, -3, count),
        "spread": torch.randn(count, generator=torch.Generator().manual_seed(0)) * 4,
    }[kind]
    logits[17] = -60
    odm_conf = torch.stack([torch.zeros(count), logits], dim=1)[None]
    anchors = torch.tensor([0.5, 0.5, 0.1, 0.1]).repeat(count, 1)
    options = {"score_threshold": -1.0, "iou_threshold": 5.0, "top_k": count, "keep_top_k": 300}
    for rows in (300, count):
        options["keep_top_k"] = rows
        found = ops.detect(None, None, torch.zeros(1, count, 4), odm_conf, anchors, **options)
        scores = portable.softmax(odm_conf[0])[:, 1]
        order = scores.argsort(descending=True, stable=True)[:rows]
        assert torch.equal(found.indices[0], order)
        assert torch.equal(found.scores[0], scores[order])


@pytest.mark.cpu_only
def test_what_a_thread_keeps_does_not_matter(clusters: tuple[Tensor, ...]) -> None:
    """A call with more memory than a thread keeps, between small ones of other sizes."""
    dense, _ = load_golden("dense_voc320")
    many = random_inputs(0, 1, 20_000, 40, arm_conf=False)
    expected = [ops.reference.detect(*clusters), ops.reference.detect(*random_inputs(1, 2, 30, 5))]
    for _ in range(2):
        ops.detect(*many, score_threshold=-1.0)
        assert_same(ops.detect(*clusters), expected[0])
        ops.detect(*dense)
        assert_same(ops.detect(*random_inputs(1, 2, 30, 5)), expected[1])


def head_map(rows: Tensor, width: int, memory_format: torch.memory_format) -> Tensor:
    """[B,3*values,h,w] as a convolution puts it out, from [B,n,values]."""
    cells = rows.reshape(len(rows), -1, width, 3 * rows.shape[2])
    return cells.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def copies(operation: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        operation()
    return sum(event.name in ("aten::copy_", "aten::cat") for event in profile.events())


def test_head_maps_in_nhwc_order_are_read_where_they_lie(clusters: tuple[Tensor, ...]) -> None:
    *outputs, anchors = in_levels(clusters, LEVELS)
    expected = ops.detect(*clusters)

    def run(memory_format: torch.memory_format) -> int:
        maps = [
            [head_map(level, width, memory_format) for level, width in zip(output, (40, 20, 10, 5), strict=True)]
            for output in outputs
        ]

        def detect() -> None:
            levels = [[x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1] // 3) for x in output] for output in maps]
            assert_same(ops.detect(*levels, anchors), expected)

        return copies(detect)

    assert run(torch.channels_last) == 0
    assert run(torch.contiguous_format) == 16
    assert copies(lambda: ops.detect(*outputs, anchors)) == 16  # slices of whole outputs


@pytest.mark.parametrize("name", ["typical_voc320", "dense_voc320"])
@pytest.mark.parametrize("images", [1, 2])
def test_thread_count_does_not_matter(name: str, images: int) -> None:
    """The images are shared out, the scores of one alone too."""
    *outputs, anchors = load_golden(name)[0]
    inputs = (*(output[:images] for output in outputs), anchors)
    with threads(2):
        on_two = ops.detect(*inputs)
    with threads(1):
        assert_same(ops.detect(*inputs), on_two)


def test_no_gradient_flows_through(clusters: tuple[Tensor, ...]) -> None:
    found = ops.detect(*(tensor.clone().requires_grad_() for tensor in clusters))
    assert not found.boxes.requires_grad
    assert not found.scores.requires_grad


def test_no_gradient_flows_through_a_program(clusters: tuple[Tensor, ...]) -> None:
    """Nor in a program, nor where the operator is called without its face."""
    inputs = tuple(tensor[..., :50, :].clone().requires_grad_() for tensor in clusters)
    expected = ops.detect(*(tensor.detach() for tensor in inputs))
    for found in (
        torch.compile(ops.detect, fullgraph=True, backend="aot_eager")(*inputs),
        Detected(*OPERATOR(*([tensor] for tensor in inputs[:4]), inputs[4], *OPTIONS[:3], 1000, 500, OPTIONS[5])),
    ):
        assert_same(found, expected)
        assert not any(tensor.requires_grad for tensor in found)


BATCH = (torch.zeros(2, 5, 4), torch.zeros(2, 5, 2), torch.zeros(2, 5, 4), torch.zeros(2, 5, 21), torch.zeros(5, 4))


@pytest.mark.parametrize(
    ("position", "tensor", "message"),
    [
        (0, torch.zeros(2, 4, 4), r"arm_loc has shape \[2, 4, 4\], expected \[2, 5, 4\]"),
        (1, torch.zeros(2, 5, 3), r"arm_conf has shape \[2, 5, 3\], expected \[2, 5, 2\]"),
        (2, torch.zeros(5, 4), r"odm_loc has shape \[5, 4\], expected \[\*, \*, 4\]"),
        (3, torch.zeros(1, 5, 21), r"odm_conf has shape \[1, 5, 21\], expected \[2, 5, \*\]"),
        (3, torch.zeros(2, 5, 0), "odm_conf must have at least one class"),
        (3, torch.zeros(2, 5, 21).long(), "odm_conf must hold floating-point numbers"),
        (4, torch.zeros(2, 5, 4), r"anchors has shape \[2, 5, 4\], expected \[5, 4\]"),
    ],
)
def test_bad_tensor(position: int, tensor: Tensor, message: str) -> None:
    inputs = [*BATCH]
    inputs[position] = tensor
    with pytest.raises(InputError, match=message):
        ops.detect(*inputs)


@pytest.mark.parametrize(
    ("position", "level", "tensor", "message"),
    [
        (0, 1, torch.zeros(2, 3, 5), r"arm_loc\[1\] has shape \[2, 3, 5\], expected \[2, 3, 4\]"),
        (1, 0, torch.zeros(2, 3, 2), r"arm_conf\[0\] has shape \[2, 3, 2\], expected \[2, 2, 2\]"),
        (2, 1, torch.zeros(3, 3, 4), r"odm_loc\[1\] has shape \[3, 3, 4\], expected \[2, \*, 4\]"),
        (3, 1, torch.zeros(2, 3, 20), r"odm_conf\[1\] has shape \[2, 3, 20\], expected \[2, 3, 21\]"),
        (3, 1, torch.zeros(2, 3, 21).long(), r"odm_conf\[1\] must hold floating-point numbers"),
    ],
)
def test_bad_level(position: int, level: int, tensor: Tensor, message: str) -> None:
    inputs = [list(output) for output in in_levels(BATCH, (2, 3))[:4]]
    inputs[position][level] = tensor
    with pytest.raises(InputError, match=rf"^refinedet\.detect: {message}"):
        ops.detect(*inputs, BATCH[4])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (in_levels(BATCH, (1, 1, 1, 1, 1)), "odm_loc has 5 levels, expected 1 to 4"),
        ((None, None, [], [], BATCH[4]), "odm_loc has 0 levels, expected 1 to 4"),
        ((*BATCH[:2], None, *BATCH[3:]), "odm_loc has 0 levels, expected 1 to 4"),
        ((*BATCH[:3], None, BATCH[4]), "the number of levels differs: odm_conf has 0, odm_loc 1"),
        ((*BATCH[:2], *in_levels(BATCH, (2, 3))[2:]), "the number of levels differs: arm_loc has 1, odm_loc 2"),
        ((*BATCH[:3], *in_levels(BATCH, (2, 3))[3:]), "the number of levels differs: odm_conf has 2, odm_loc 1"),
        ((*in_levels(BATCH, (2, 3))[:4], BATCH[4][:4]), r"anchors has shape \[4, 4\], expected \[5, 4\]"),
    ],
)
def test_bad_levels(inputs: tuple, message: str) -> None:
    with pytest.raises(InputError, match=rf"^refinedet\.detect: {message}$"):
        ops.detect(*inputs)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("top_k", 0, "top_k must be at least 1, got 0"),
        ("keep_top_k", -3, "keep_top_k must be at least 1, got -3"),
        ("iou_threshold", -0.5, "iou_threshold must be at least 0, got -0.5"),
        ("variances", (0.1, 0.2), "variances must be 4 numbers, got 2"),
    ],
)
def test_bad_option(option: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.detect(*BATCH, **{option: value})


OPERATOR = torch.ops.refinedet.detect.default
WHOLE = torch.ops.refinedet.detect.whole
OPTIONS = (0.01, 0.01, 0.45, 100, 20, [0.1, 0.1, 0.2, 0.2])


def test_opcheck() -> None:
    rng = np.random.default_rng(0)
    inputs = [random_tensor(rng, (2, 30, width), scale=1, steps=False, trouble=0) for width in (4, 2, 4, 5)]
    anchors = random_anchors(rng, 30)
    *levels, _ = in_levels((*inputs, anchors), (20, 0, 10))
    for arm_loc, arm_conf, odm_loc, odm_conf in ([[tensor] for tensor in inputs], levels):
        torch.library.opcheck(OPERATOR, (arm_loc, arm_conf, odm_loc, odm_conf, anchors, *OPTIONS))
        torch.library.opcheck(OPERATOR, ([], [], odm_loc, odm_conf, anchors, *OPTIONS))
    torch.library.opcheck(WHOLE, (*inputs, anchors, *OPTIONS))
    torch.library.opcheck(WHOLE, (None, None, *inputs[2:], anchors, *OPTIONS))
    assert_same(Detected(*WHOLE(*inputs, anchors, *OPTIONS)), Detected(*OPERATOR(*levels, anchors, *OPTIONS)))


class Decode(torch.nn.Module):
    """A network's tail: something before the operator and something after it."""

    def __init__(self, levels: tuple[int, ...] | None) -> None:
        super().__init__()
        self.levels = levels

    def forward(
        self, arm_loc: Tensor | None, arm_conf: Tensor | None, odm_loc: Tensor, odm_conf: Tensor, anchors: Tensor
    ) -> Detected:
        inputs = (arm_loc, arm_conf, odm_loc, odm_conf - 1, anchors)
        found = ops.detect(*(in_levels(inputs, self.levels) if self.levels else inputs), keep_top_k=50)
        return found._replace(boxes=found.boxes.clamp(0, 1))


WHOLE_AND_IN_LEVELS = pytest.mark.parametrize("levels", [None, LEVELS], ids=["whole", "levels"])


@WHOLE_AND_IN_LEVELS
def test_compile(clusters: tuple[Tensor, ...], levels: tuple[int, ...] | None) -> None:
    compiled = torch.compile(Decode(levels), fullgraph=True, backend="aot_eager")
    assert_same(compiled(*clusters), Decode(None)(*clusters))
    without_arm = (None, None, *clusters[2:])
    assert_same(compiled(*without_arm), Decode(None)(*without_arm))


@WHOLE_AND_IN_LEVELS
def test_export_with_any_batch_size(clusters: tuple[Tensor, ...], levels: tuple[int, ...] | None) -> None:
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(Decode(levels), clusters, dynamic_shapes=(*[{0: batch}] * 4, None))
    assert_same(exported.module()(*clusters), Decode(None)(*clusters))
    single = (*(tensor[:1] for tensor in clusters[:4]), clusters[4])
    assert_same(exported.module()(*single), Decode(None)(*single))


# --- The kernels on the harness: sizes, schedules, views that matter to them ------------------------------------------

SEEDS = range(5)  # of schedules
SIZES = [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025]
ALL = {"objectness_threshold": 0.0, "score_threshold": -1.0}  # every anchor is a candidate of every class


def check_case(harness: Harness, inputs: Inputs, *, levels: Sequence[int] | None = None, **arguments: Any) -> Detected:
    """Runs the kernels, with outputs in levels of so many anchors, and the CPU operator, with whole ones; the results
    must be the same bit for bit."""
    found = launch(harness, *(inputs if levels is None else in_levels(inputs, levels)), **arguments)
    options = {name: value for name, value in arguments.items() if name not in ("misaligned", "seed")}
    expected = ops.detect(*inputs, **options)
    assert_same(found, expected)
    return found


def random_inputs(
    seed: int,
    batch: int,
    count: int,
    classes: int,
    *,
    arm_loc: bool = True,
    arm_conf: bool = True,
    dtype: torch.dtype = torch.float32,
    steps: bool = False,
    trouble: float = 0.0,
) -> Inputs:
    """Random numbers like those of test_equals_reference."""
    rng = np.random.default_rng(seed)

    def tensor(width: int, scale: float) -> Tensor:
        return random_tensor(rng, (batch, count, width), scale=scale, steps=steps, trouble=trouble).to(dtype)

    return (
        tensor(4, 1) if arm_loc else None,
        tensor(2, 3) if arm_conf else None,
        tensor(4, 1),
        tensor(classes, 3),
        random_anchors(rng, count).to(dtype),
    )


def check(harness: Harness, dtype: torch.dtype = torch.float32) -> None:
    """Quick cases in which every barrier and every bounds check matters."""

    def case(inputs: tuple[int, ...], *, arm_conf: bool = True, **arguments: Any) -> None:
        check_case(harness, random_inputs(*inputs, arm_conf=arm_conf, dtype=dtype), **arguments)

    # Two levels that end within a block; more candidates than top_k, more survivors than rows.
    case((0, 2, 300, 3), levels=[290, 10], top_k=20, keep_top_k=9, seed=1)
    # More exponentials than a block has room for, two tiles of candidates, fewer survivors than rows.
    case((1, 1, 230, 21), arm_conf=False, score_threshold=0.0, iou_threshold=0.1, top_k=100, keep_top_k=900, seed=2)
    # More candidates than a list holds: more than are gathered at once; in two goes, without a selection between them.
    case((2, 1, 1100, 6), **ALL, levels=[700, 400], top_k=500, keep_top_k=20, seed=3)
    two_goes = {"objectness_threshold": 0.2, "score_threshold": -1.0, "top_k": 500, "keep_top_k": 100}
    case((2, 1, 1100, 11), **two_goes, seed=4)
    # A list that is selected from; more kept boxes of an image than are sorted; more classes than a warp counts.
    case((3, 1, 700, 2), **ALL, top_k=100, seed=5)
    case((4, 1, 115, 21), **ALL, iou_threshold=5.0, keep_top_k=30, seed=6)
    case((5, 1, 6, 300), arm_conf=False, score_threshold=1e-3, seed=7)
    # As many kept boxes of a class as there is room for, not in whole tiles.
    case((6, 1, 1300, 2), **ALL, iou_threshold=0.8, top_k=2048, keep_top_k=1024, seed=8)
    # So many kept boxes of an image that they come in three goes, the last without a selection before it; sorted in
    # whole parts of a run, behind which others lie.
    case((7, 1, 1000, 12), **ALL, iou_threshold=5.0, top_k=1000, keep_top_k=768, seed=9)
    # More keys than kept boxes.
    case((8, 1, 1100, 2), **ALL, top_k=1000, keep_top_k=20, seed=10)


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


LIST = 571  # room of a list for 1500 anchors, 7 classes, 500 kept boxes of a class: 5 * 1500 / 7 - 500


@pytest.mark.parametrize(
    "count", [63, 64, 65, 127, 128, 129, 511, 512, 513, LIST - 1, LIST, LIST + 1, 1024, 1025, 1500]
)
def test_number_of_candidates(harness: Harness, count: int) -> None:
    """Of one class: sorted in runs, listed as they come, selected from the list, or scored again for want of room."""
    arm_loc, _, odm_loc, odm_conf, anchors = random_inputs(count, 1, 1500, 8, steps=count % 2 == 0)
    likely = torch.from_numpy(np.random.default_rng(count).permutation(1500)[:count])
    odm_conf[..., 1] = -30
    odm_conf[0, likely, 1] = torch.linspace(0, 2, count).round(decimals=2)  # ties
    check_case(
        harness, (arm_loc, None, odm_loc, odm_conf, anchors), score_threshold=1e-4, iou_threshold=0.8, seed=count
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 100, 700, 2048])
@pytest.mark.parametrize("steps", [False, True])
def test_more_candidates_than_room(fast_harness: Harness, dtype: torch.dtype, top_k: int, steps: bool) -> None:
    """All scores are taken again, in levels and half types; with ties at the cut."""
    inputs = random_inputs(top_k, 2, 1400, 9, dtype=dtype, steps=steps)
    options = {"objectness_threshold": 0.05, "score_threshold": -1.0, "iou_threshold": 0.9, "top_k": top_k}
    check_case(fast_harness, inputs, levels=[1000, 257, 0, 143], **options, keep_top_k=1024, seed=top_k)


@pytest.mark.parametrize("classes", [2, 12])
@pytest.mark.parametrize("order", [1, -1])
def test_every_candidate_is_better_than_the_one_before(fast_harness: Harness, classes: int, order: int) -> None:
    """The selection starts anew as often as it can, or never; from a list and from scores taken again."""
    *boxes, odm_conf, anchors = random_inputs(0, 1, 3000, classes, arm_loc=False, arm_conf=False)
    odm_conf[0, :, 1] = torch.linspace(-2, 2, 3000) * order
    check_case(fast_harness, (*boxes, odm_conf, anchors), top_k=500, iou_threshold=0.9, keep_top_k=700)


@pytest.mark.parametrize("classes", [3, 12])
def test_equal_scores_of_many(fast_harness: Harness, classes: int) -> None:
    """Which of 1400 equal candidates are wanted follows the anchors alone, whether they have room or not."""
    *boxes, odm_conf, anchors = random_inputs(0, 1, 1400, classes, arm_conf=False)
    found = check_case(fast_harness, (*boxes, torch.zeros_like(odm_conf), anchors), top_k=600, iou_threshold=1.0)
    assert found.counts.item() == 500


@pytest.mark.parametrize("classes", [4, 7, 21])
@pytest.mark.parametrize("keep_top_k", [1, 513, 1024])
def test_many_kept_boxes(fast_harness: Harness, classes: int, keep_top_k: int) -> None:
    """Of 900, 1800 and 6000 kept boxes of an image, fewer or more than are gathered at once, the best are rows."""
    inputs = random_inputs(classes, 1, 300, classes, steps=classes == 7)
    check_case(fast_harness, inputs, **ALL, iou_threshold=5.0, keep_top_k=keep_top_k)


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_at_the_threshold(harness: Harness, seed: int) -> None:
    """A threshold that is some candidate's score, or one of its neighbours; or no number to divide by."""
    inputs = random_inputs(seed, 1, 200, 3, arm_conf=False, steps=seed == 0)
    scores = ops.detect(*inputs, score_threshold=-1.0, iou_threshold=5.0, keep_top_k=400).scores[0]
    score = float(scores[40 * seed + 20])
    counts = []
    for threshold in (
        np.nextafter(np.float32(score), np.float32(0)),
        score,
        np.nextafter(np.float32(score), np.float32(1)),
    ):
        found = check_case(harness, inputs, score_threshold=float(threshold), iou_threshold=5.0, keep_top_k=400)
        counts.append(found.counts.item())
    assert counts[0] > counts[1] >= counts[2]
    for threshold in (0.0, -0.0, 1e-45, 3e-39, 1e-30, float("inf"), -float("inf")):
        check_case(harness, inputs, score_threshold=threshold)


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
def test_no_race(racing_harness: Harness, seed: int) -> None:
    check_case(racing_harness, random_inputs(seed, 1, 250, 2), **ALL, top_k=150, keep_top_k=40, seed=seed)


LARGEST = {"batch": 256, "num_anchors": 300_000, "num_classes": 600, "top_k": 1000, "keep_top_k": 500}


def workspace_bytes(harness: Harness, **sizes: int) -> int:
    result = harness.run("size", {}, LARGEST | sizes, {"workspace_bytes": (np.int64, (1,))})
    return int(result.outputs["workspace_bytes"][0])


@pytest.mark.parametrize(("anchors", "classes"), [(300_000, 600), (16_320, 81), (16_320, 21), (6_375, 21)])
def test_workspace(harness: Harness, anchors: int, classes: int) -> None:
    """About 64 bytes per anchor, counted in 64 bits: 33 MB for COCO 512 and 32 images."""
    images = 32 if anchors < 300_000 else 256
    size = workspace_bytes(harness, batch=images, num_anchors=anchors, num_classes=classes)
    assert 0.98 < size / (images * 64 * anchors) < 1.01


def test_workspace_of_few_anchors_and_many_classes(harness: Harness) -> None:
    """A list has room for 512 candidates."""
    sizes = {"batch": 32, "num_anchors": 6375, "num_classes": 81}
    assert workspace_bytes(harness, **sizes) < 32 * (24.2 * 6375 + 80 * 8 * (512 + 500)) + 32768


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
