"""ops.mine: literal cases, the official negatives, the plain-PyTorch reference, torch's own checks."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden_loss import GOLDEN_LOSSES, GoldenLoss
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError
from refinedet.ops import reference

NAN, INF = float("nan"), float("inf")
MineOp = Callable[..., Tensor]


@pytest.fixture(scope="module")
def mine() -> MineOp:
    """What is tested. tests/simulated/test_simulated_mine.py has another one, for the same tests."""
    return ops.mine


def mine_one(mine: MineOp, losses: list[float], labels: list[int], **options: float) -> list[int]:
    """Indices of the negatives that are selected in one image, all of them at IoU 0."""
    mask = mine(torch.tensor([losses]), torch.tensor([labels]), torch.zeros(1, len(losses)), **options)
    return mask[0].nonzero().squeeze(1).tolist()


def test_the_hardest_three_per_positive(mine: MineOp) -> None:
    assert mine_one(mine, [1.0, 5.0, 2.0, 9.0, 4.0, 3.0], [0, 0, 0, 7, 0, 0]) == [1, 4, 5]


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
def problems(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], dict[str, float]]:
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
def test_equals_the_reference(
    mine: MineOp, problem: tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], dict[str, float]]
) -> None:
    arguments, options = problem
    assert torch.equal(mine(*arguments, **options), reference.mine(*arguments, **options))


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


def test_mining_the_losses_is_mining_the_logits(mine: MineOp) -> None:
    logits, *others = batch()
    losses = -logits.double().log_softmax(dim=-1)[..., 0]
    assert torch.equal(mine(losses, *others), mine(logits, *others))


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
