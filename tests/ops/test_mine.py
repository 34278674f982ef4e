"""mine. Tests with the argument ``mine`` run on every implementation; those of the kernels alone come last."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness, LauncherError
from simulated.torch_arrays import DTYPES, to_array
from support.golden_loss import GOLDEN_LOSSES, GoldenLoss
from support.implementations import IMPLEMENTATIONS
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError
from refinedet.ops import reference

NAN, INF = float("nan"), float("inf")
MineOp = Callable[..., Tensor]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # losses, labels, ious, objectness


def launch(
    harness: Harness,
    losses: Tensor,
    labels: Tensor,
    ious: Tensor,
    objectness: Tensor | None = None,
    *,
    negative_iou: float = 0.5,
    negative_ratio: float = 3.0,
    objectness_threshold: float = 0.01,
    misaligned: bool = False,
    seed: int = 0,
) -> Tensor:
    """The kernels on the harness; as in the operator, all but half-typed losses are converted to float32 first."""
    if losses.dtype not in DTYPES:
        losses = losses.float()
    arrays = {"losses": to_array(losses), "labels": labels.numpy(), "ious": ious.float().numpy()}
    if objectness is not None:
        arrays["objectness"] = objectness.float().numpy()
    scalars = {
        "type": DTYPES.index(losses.dtype),
        "batch": labels.shape[0],
        "num_anchors": labels.shape[1],
        "num_classes": losses.shape[2] if losses.dim() == 3 else 0,  # 0 = losses, not logits
        "negative_iou": float(negative_iou),
        "negative_ratio": float(negative_ratio),
        "objectness_threshold": float(objectness_threshold),
    }
    outputs = {"mask": (np.bool_, tuple(labels.shape))}
    result = harness.run("mine", arrays, scalars, outputs, seed=seed, misaligned=tuple(arrays) if misaligned else ())
    assert result.launches <= 2
    return torch.from_numpy(result.outputs["mask"].copy())


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def mine(request: pytest.FixtureRequest) -> MineOp:
    return request.param(request, ops.mine, launch)


def mine_one(mine: MineOp, losses: list[float], labels: list[int], **options: float) -> list[int]:
    """Indices of the negatives that are selected in one image, all of them at IoU 0."""
    mask = mine(torch.tensor([losses]), torch.tensor([labels]), torch.zeros(1, len(losses)), **options)
    return mask[0].nonzero().squeeze(1).tolist()


@pytest.mark.small
def test_the_hardest_three_per_positive(mine: MineOp) -> None:
    assert mine_one(mine, [1.0, 5.0, 2.0, 9.0, 4.0, 3.0], [0, 0, 0, 7, 0, 0]) == [1, 4, 5]


@pytest.mark.small
def test_ties_go_to_the_lowest_anchor(mine: MineOp) -> None:
    assert mine_one(mine, [1.0, 2.0, 1.0, 1.0, 2.0, 1.0], [0, 0, 0, 1, 0, 0]) == [0, 1, 4]


def test_fewer_eligible_than_wanted(mine: MineOp) -> None:
    assert mine_one(mine, [1.0, 2.0, 3.0], [0, 1, 0]) == [0, 2]


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 1), (1.4, 2), (1.5, 3), (3.0, 5), (INF, 5)])
def test_number_of_negatives_is_rounded_down(mine: MineOp, ratio: float, count: int) -> None:
    assert len(mine_one(mine, [1.0] * 7, [1, 1, 0, 0, 0, 0, 0], negative_ratio=ratio)) == count


def test_no_positive_no_negative(mine: MineOp) -> None:
    assert mine_one(mine, [1.0, 2.0], [0, 0]) == []


def test_ignored_anchors_are_neither_selected_nor_counted(mine: MineOp) -> None:
    assert mine_one(mine, [9.0, 1.0, 1.0, 1.0, 1.0, 9.0], [-1, 1, 0, 0, 0, 0], negative_ratio=2.0) == [2, 5]
    assert mine_one(mine, [9.0, 1.0], [-1, 0]) == []


def test_iou_is_exclusive_and_objectness_inclusive(mine: MineOp) -> None:
    losses, labels = torch.ones(1, 5), torch.tensor([[1, 0, 0, 0, 0]])
    ious = torch.tensor([[0.9, 0.5, 0.49999997, 0.0, NAN]])
    assert mine(losses, labels, ious).tolist() == [[False, False, True, True, False]]
    # 0.01 is compared as float32, which is a little below the double
    objectness = torch.tensor([[0.0, 0.01, 0.0099999997, 0.009999998, NAN]])
    assert mine(losses, labels, torch.zeros(1, 5), objectness).tolist() == [[False, True, True, False, False]]


def test_nan_loss_is_never_selected(mine: MineOp) -> None:
    assert mine_one(mine, [0.0, NAN, 1.0, -INF, INF], [1, 0, 0, 0, 0]) == [2, 3, 4]
    logits = torch.tensor([[[0.0, 0.0], [NAN, 0.0], [0.0, NAN], [INF, 0.0], [-INF, -INF], [9.0, -INF]]])
    labels = torch.tensor([[1, 0, 0, 0, 0, 0]])
    assert mine(logits, labels, torch.zeros(1, 6)).tolist() == [[False] * 5 + [True]]


def test_loss_of_logits_is_capped(mine: MineOp) -> None:
    """-ln(max(p0, FLT_MIN)) is the same for logits 88 and 200: the tie goes to the lower anchor."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, 88.0], [0.0, 200.0], [0.0, 80.0]]])
    labels = torch.tensor([[1, 0, 0, 0]])
    assert mine(logits, labels, torch.zeros(1, 4), negative_ratio=1.0).tolist() == [[False, True, False, False]]


@pytest.mark.small
def test_images_do_not_mix(mine: MineOp) -> None:
    labels = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    losses = torch.tensor([[9.0, 1.0, 2.0, 3.0]]).expand(3, 4)
    mask = mine(losses, labels, torch.zeros(3, 4), negative_ratio=1.0)
    assert mask.tolist() == [[False, False, False, True], [False] * 4, [False, False, True, True]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_nothing_to_mine(mine: MineOp, shape: tuple[int, int]) -> None:
    assert mine(torch.ones(shape), torch.ones(shape).long(), torch.ones(shape)).shape == shape
    assert mine(torch.ones(*shape, 5), torch.ones(shape).long(), torch.ones(shape)).shape == shape


@pytest.mark.parametrize("module", ["arm", "odm"])
@pytest.mark.parametrize("case", GOLDEN_LOSSES.values(), ids=GOLDEN_LOSSES.keys())
def test_official_negatives(mine: MineOp, case: GoldenLoss, module: str) -> None:
    raw, anchors, objectness = case.raw, case.anchors, None
    logits = raw.arm_conf
    if module == "odm":
        anchors, logits = ops.refine(anchors, raw.arm_loc), raw.odm_conf
        objectness = raw.arm_conf.softmax(dim=-1)[..., 1]
    found = ops.match(anchors, *case.targets)
    expected = getattr(case, module)["neg"].bool()
    assert torch.equal(mine(logits, found.labels, found.ious, objectness), expected)
    losses = -logits.log_softmax(dim=-1)[..., 0]
    assert torch.equal(mine(losses, found.labels, found.ious, objectness), expected)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Inputs, dict[str, float]]:
    """Arguments of mine: losses and logits with ties and special values, half precision, every small size."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(0, 3)), draw(st.sampled_from([0, 1, 15, 16, 17, 100, 700])))
    classes = draw(st.sampled_from([None, 1, 2, 3, 21, 40]))
    levels = draw(st.sampled_from([2, 20, 100_000]))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    losses = torch.randint(-levels, levels, shape if classes is None else (*shape, classes), generator=random)
    losses = losses * (scale / levels)
    if losses.numel():
        for special in draw(st.lists(st.sampled_from([NAN, INF, -INF]), max_size=3)):
            losses.view(-1)[draw(st.integers(0, losses.numel() - 1))] = special
    labels = torch.randint(-1, 4, shape, generator=random)
    labels[torch.rand(shape, generator=random) < draw(st.sampled_from([0.0, 0.7, 0.99]))] = 0
    ious = torch.randint(0, 11, shape, generator=random) / 10
    objectness = torch.randint(0, 101, shape, generator=random) / 100 if draw(st.booleans()) else None
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]))
    options = {
        "negative_iou": draw(st.sampled_from([0.0, 0.3, 0.5, 2.0])),
        "negative_ratio": draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 1e30])),
        "objectness_threshold": draw(st.sampled_from([0.01, 0.5])),
    }
    halved = (losses.to(dtype), labels, ious.to(dtype), None if objectness is None else objectness.to(dtype))
    return halved, options


@settings(max_examples=500, deadline=None)
@given(problems())
def test_equals_the_reference(mine: MineOp, problem: tuple[Inputs, dict[str, float]]) -> None:
    arguments, options = problem
    assert torch.equal(mine(*arguments, **options), reference.mine(*arguments, **options))


@pytest.mark.small
@pytest.mark.parametrize("seed", range(40))
def test_brute_force(mine: MineOp, seed: int) -> None:
    """Section 7.3 of the specification word by word, on losses that are far enough apart for any arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    count = 3 * seed
    losses = torch.randperm(count, generator=generator).double() / 10 + 0.1
    labels = torch.randint(0, 9, (count,), generator=generator) // 6
    ious, objectness = torch.rand(2, count, generator=generator)
    eligible = [i for i in range(count) if labels[i] == 0 and ious[i] < 0.5 and objectness[i] >= 0.25]
    eligible.sort(key=lambda i: -losses[i])
    expected = sorted(eligible[: math.floor(1.5 * int((labels > 0).sum()))])
    inputs = labels[None], ious[None], objectness[None]
    options = {"negative_ratio": 1.5, "objectness_threshold": 0.25}
    for values in (losses, torch.stack([-losses, (-torch.expm1(-losses)).log()], dim=1)):
        assert mine(values[None], *inputs, **options)[0].nonzero().squeeze(1).tolist() == expected


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, IoUs and objectness of three images of 4000 anchors: more than one work item each."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4000, 21, generator=generator)
    labels = torch.randint(0, 300, (3, 4000), generator=generator).sub(280).clamp(min=0)
    return logits, labels, torch.rand(3, 4000, generator=generator), torch.rand(3, 4000, generator=generator)


def test_mining_the_losses_is_mining_the_logits(mine: MineOp) -> None:
    logits, *others = batch()
    losses = -logits.double().log_softmax(dim=-1)[..., 0]
    assert torch.equal(mine(losses, *others), mine(logits, *others))


# --- The operator in torch: threads, strides, refusals, tracing -------------------------------------------------------


def estimated_cases(seed: int, anchors: int, classes: int) -> Tensor:
    """Logits [1, anchors, classes] that are hard to rank by an estimate: most losses differ by less than it is off, a
    few by rounding or not at all; and it cannot take large, infinite and NaN logits."""
    random = torch.Generator().manual_seed(seed)
    logits = near_ties(seed, anchors, classes)[0] + torch.rand(1, anchors, 1, generator=random) * 0.1
    logits[..., 1:] += torch.linspace(0, 0.2, anchors)[:, None]
    for value in (59.0, 60.0, -60.0, 88.0, 200.0, -200.0, INF, -INF, NAN):
        rows = torch.randint(anchors, (max(1, anchors // 200),), generator=random)
        logits[0, rows, torch.randint(classes, rows.shape, generator=random)] = value
    return logits


@pytest.mark.cpu_only  # more classes than CUDA takes
@pytest.mark.parametrize("classes", [7, 8, 9, 15, 16, 17, 21, 32, 81, 4096, 4097])
@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_estimates_decide_as_the_losses_on_the_cpu(classes: int, ratio: float) -> None:
    anchors = 40 if classes > 4000 else 700
    logits = estimated_cases(classes, anchors, classes)
    _, *conditions = random_inputs(1, 1, anchors, positives=0.05)
    inputs = logits, *conditions
    assert torch.equal(ops.mine(*inputs, negative_ratio=ratio), reference.mine(*inputs, negative_ratio=ratio))


@pytest.mark.parametrize("classes", [None, 2, 21])
@pytest.mark.parametrize("anchors", [1, 15, 16, 17, 2047, 2048, 2049, 4100])
def test_any_number_of_anchors_on_the_cpu(anchors: int, classes: int | None) -> None:
    """Numbers around the lanes of a vector and the anchors of a work item."""
    inputs = random_inputs(anchors, 2, anchors, classes)
    assert torch.equal(ops.mine(*inputs), reference.mine(*inputs))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    threads = torch.get_num_threads()
    expected = reference.mine(*batch())
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(ops.mine(*batch()), expected)
    finally:
        torch.set_num_threads(threads)


def test_inputs_need_not_be_contiguous() -> None:
    logits, *others = batch()
    strided = [tensor.t().contiguous().t() for tensor in others]
    channels_first = logits.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.mine(channels_first, *strided), ops.mine(logits, *others))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": torch.ones(2, 5)}, r"losses has shape \[2, 5\], expected \[2, 6\]"),
        ({"losses": torch.ones(2, 6, 0)}, "losses are logits of 0 classes"),
        ({"losses": torch.ones(2, 6).long()}, "losses must hold floating-point numbers"),
        ({"labels": torch.ones(6).long()}, r"labels has shape \[6\]"),
        ({"labels": torch.ones(2, 6)}, "labels must hold int64"),
        ({"ious": torch.ones(2, 7)}, r"ious has shape \[2, 7\], expected \[2, 6\]"),
        ({"objectness": torch.ones(2, 6, 2)}, r"objectness has shape \[2, 6, 2\], expected \[2, 6\]"),
        ({"negative_ratio": -1.0}, "negative_ratio must be at least 0, got -1"),
        ({"negative_ratio": NAN}, "negative_ratio must be at least 0, got nan"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    arguments = {"losses": torch.ones(2, 6), "labels": torch.ones(2, 6).long(), "ious": torch.ones(2, 6)}
    with pytest.raises(InputError, match=message):
        ops.mine(**{**arguments, **change})


@pytest.mark.parametrize("with_objectness", [True, False])
def test_opcheck(with_objectness: bool) -> None:
    logits, labels, ious, objectness = (tensor[:, :60] for tensor in batch())
    arguments = (logits, labels, ious, objectness if with_objectness else None, 0.5, 3.0, 0.01)
    torch.library.opcheck(torch.ops.refinedet.mine.default, arguments)


def test_compile() -> None:
    assert torch.equal(torch.compile(ops.mine, fullgraph=True)(*batch()), ops.mine(*batch()))


class MineModule(torch.nn.Module):
    def forward(self, logits: Tensor, labels: Tensor, ious: Tensor, objectness: Tensor) -> Tensor:
        return ops.mine(logits, labels, ious, objectness)


def test_export_with_any_number_of_anchors() -> None:
    sizes = {0: torch.export.Dim("images"), 1: torch.export.Dim("anchors")}
    program = torch.export.export(MineModule(), batch(), dynamic_shapes=(sizes,) * 4)
    smaller = tuple(tensor[:2, :333] for tensor in batch())
    assert torch.equal(program.module()(*smaller), ops.mine(*smaller))


# --- The kernels on the harness: sizes, schedules, views that matter to them ------------------------------------------

SEEDS = range(5)  # of schedules
SIZES = [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025]
HELD = 12_288  # anchors whose ranks are held in registers, kHeld and kImageThreads of csrc/ops/mine/mine_cuda.cu


def check_case(harness: Harness, inputs: Inputs, **arguments: Any) -> Tensor:
    """Runs the kernels and the CPU operator; the masks must be the same."""
    found = launch(harness, *inputs, **arguments)
    options = {name: value for name, value in arguments.items() if name not in ("misaligned", "seed")}
    assert torch.equal(found, ops.mine(*inputs, **options))
    return found


def random_inputs(
    seed: int,
    batch: int,
    anchors: int,
    classes: int | None = None,
    *,
    objectness: bool = True,
    positives: float = 0.05,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Losses, or logits of ``classes`` classes, in steps so that there are ties."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, anchors)
    losses = torch.randint(-40, 40, shape if classes is None else (*shape, classes), generator=random) / 16
    labels = torch.randint(1, 21, shape, generator=random) * (torch.rand(shape, generator=random) < positives)
    ious, scores = torch.rand(2, *shape, generator=random)
    return losses.to(dtype), labels, ious, scores if objectness else None


def near_ties(seed: int, anchors: int, classes: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """The same logits in another order for every anchor: losses differ by how a sum was rounded, if at all."""
    random = torch.Generator().manual_seed(seed)
    order = torch.rand(1, anchors, classes - 1, generator=random).argsort(dim=-1)
    others = torch.randn(classes - 1, generator=random)[order] * 3
    _, *conditions = random_inputs(seed, 1, anchors, positives=0.1)
    return torch.cat([torch.zeros(1, anchors, 1), others], dim=-1).to(dtype), *conditions


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    # Anchors that end within a block; more candidates than wanted, with ties across the boundary.
    losses, *conditions = random_inputs(0, 2, 300)
    check_case(harness, (losses, *conditions), seed=1)
    # Fewer candidates than wanted: their losses are such that no key made of poison lies beyond them.
    check_case(harness, (losses * 1e20, *conditions), negative_ratio=1e30, seed=2)
    # Logits of several tiles, of one, and of rows wider than a warp.
    check_case(harness, near_ties(1, 300, 41), negative_ratio=1.0, seed=3)
    check_case(harness, near_ties(2, 100, 6), negative_ratio=1.0, seed=4)
    check_case(harness, near_ties(3, 40, 600), negative_ratio=1.0, seed=5)
    # More anchors than the threads hold in registers.
    if harness.variant == "plain":
        check_case(harness, random_inputs(4, 1, HELD + 100), seed=6)


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


@pytest.mark.parametrize("anchors", [HELD - 1, HELD, HELD + 1, HELD + 4097])
def test_more_anchors_than_registers(fast_harness: Harness, anchors: int) -> None:
    """The last anchor is the hardest one, and is selected wherever its rank is held."""
    losses, labels, *others = random_inputs(anchors, 1, anchors, positives=0.01, objectness=False)
    losses[0, -1], labels[0, -1], others[0][0, -1] = 9, 0, 0
    assert check_case(fast_harness, (losses, labels, *others))[0, -1]


def test_largest_image(fast_harness: Harness) -> None:
    """300,000 anchors, whose keys differ in all but the first byte of the index."""
    check_case(fast_harness, random_inputs(2, 1, 300_000, positives=0.001))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_race(racing_harness: Harness, seed: int) -> None:
    check_case(racing_harness, random_inputs(seed, 2, 70), seed=seed)
    check_case(racing_harness, random_inputs(seed, 1, 100, 100), seed=seed)


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
