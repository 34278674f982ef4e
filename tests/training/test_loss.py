"""MultiBoxLoss: the official losses and gradients, the gates of the specification, the ablations, a plain double."""

from dataclasses import replace

import pytest
import torch
from support.golden_loss import GOLDEN_LOSSES, GoldenLoss
from torch import Tensor

from refinedet import OFFICIAL, MultiBoxLoss, RawOutput, Targets, generate_anchors
from refinedet.errors import InputError
from refinedet.ops import reference
from refinedet.training.loss import MultiBoxLosses

GATE = GOLDEN_LOSSES["one_image_without_objects-difficult"]


def leaves(raw: RawOutput) -> RawOutput:
    """Copies that collect gradients."""
    return RawOutput(*(None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in raw))


def without_objects(targets: Targets) -> Targets:
    return Targets(targets.boxes[:0], targets.labels[:0], torch.zeros_like(targets.offsets))


@pytest.mark.parametrize("case", GOLDEN_LOSSES.values(), ids=GOLDEN_LOSSES.keys())
def test_official_losses_and_gradients(case: GoldenLoss) -> None:
    raw = leaves(case.raw)
    losses = MultiBoxLoss()(raw, case.anchors, case.targets)
    losses.total.backward()
    for module, expected in (("arm", case.arm), ("odm", case.odm)):
        loc_sum, conf_sum = expected["loc_loss_sum"], expected["conf_loss_sum"]
        positives = getattr(losses, f"{module}_positives")
        assert positives == expected["num_matches"]
        torch.testing.assert_close(getattr(losses, module), expected["loss"], rtol=1e-5, atol=0)
        for part, total in (("loc", loc_sum), ("conf", conf_sum)):
            value = getattr(losses, f"{module}_{part}") * positives.clamp(min=1)
            torch.testing.assert_close(value, total, rtol=1e-5, atol=0)
            gradient = getattr(raw, f"{module}_{part}").grad
            torch.testing.assert_close(gradient, expected[f"{part}_grad"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses.total, case.arm["loss"] + case.odm["loss"], rtol=1e-5, atol=0)


def test_batch_without_objects_has_no_loss() -> None:
    raw = leaves(GATE.raw)
    losses = MultiBoxLoss()(raw, GATE.anchors, without_objects(GATE.targets))
    losses.total.backward()
    assert all(value == 0 for value in losses)
    assert all((tensor.grad == 0).all() for tensor in raw)


def test_image_without_objects_gets_no_gradient() -> None:
    raw = leaves(GATE.raw)
    MultiBoxLoss()(raw, GATE.anchors, GATE.targets).total.backward()
    empty = GATE.targets.offsets.diff() == 0
    assert empty.any()
    for tensor in raw:
        assert (tensor.grad[empty] == 0).all()
        assert (tensor.grad[~empty] != 0).any()


def test_rejected_anchors_are_no_negatives_but_positives_stay() -> None:
    rejecting = torch.tensor([10.0, 0.0]).expand(GATE.raw.arm_conf.shape)
    raw = leaves(GATE.raw._replace(arm_conf=rejecting))
    losses = MultiBoxLoss()(raw, GATE.anchors, GATE.targets)
    losses.odm.backward()
    trained = (raw.odm_conf.grad != 0).any(dim=-1)
    assert losses.odm_positives > 0
    assert torch.equal(trained, (raw.odm_loc.grad != 0).any(dim=-1))
    assert trained.sum() == losses.odm_positives


def test_no_gradient_from_the_detection_loss_to_the_refinement() -> None:
    raw = leaves(GATE.raw)
    MultiBoxLoss()(raw, GATE.anchors, GATE.targets).odm.backward()
    assert raw.arm_loc.grad is None
    assert raw.arm_conf.grad is None


def test_groups_are_normalised_by_their_own_positives() -> None:
    case = GOLDEN_LOSSES["one_image_without_objects-difficult"]
    grouped = MultiBoxLoss(normalize_groups=2)(case.raw, case.anchors, case.targets)
    halves = []
    offsets = case.targets.offsets
    for images in (slice(0, 2), slice(2, 4)):
        rows = slice(int(offsets[images.start]), int(offsets[images.stop]))
        targets = Targets(
            case.targets.boxes[rows], case.targets.labels[rows], offsets[images.start : images.stop + 1] - rows.start
        )
        halves.append(MultiBoxLoss()(RawOutput(*(tensor[images] for tensor in case.raw)), case.anchors, targets))
    for part in ("total", "arm", "odm", "arm_loc", "arm_conf", "odm_loc", "odm_conf"):
        first, second = (getattr(half, part) for half in halves)
        torch.testing.assert_close(getattr(grouped, part), (first + second) / 2)
    assert grouped.odm_positives == halves[0].odm_positives + halves[1].odm_positives
    whole = MultiBoxLoss()(case.raw, case.anchors, case.targets)
    assert not torch.isclose(grouped.total, whole.total, rtol=1e-4)


def plain_loss(
    loc: Tensor, conf: Tensor, anchors: Tensor, targets: Targets, objectness: Tensor | None, threshold: float
) -> Tensor:
    """Section 7 of the specification for one module in float64, on whole tensors, from the reference operators."""
    found = reference.match(anchors, *targets)
    negative = reference.mine(conf, found.labels, found.ious, objectness, objectness_threshold=threshold)
    positive = found.labels > 0
    distance = (loc.double() - found.targets.double()).abs()
    smooth = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5).sum(dim=-1)
    entropy = -conf.double().log_softmax(dim=-1).gather(2, found.labels[..., None]).squeeze(2)
    return ((smooth * positive).sum() + (entropy * (positive | negative)).sum()) / positive.sum().clamp(min=1)


def plain_total(raw: RawOutput, anchors: Tensor, targets: Targets, *, cascade: bool, threshold: float) -> Tensor:
    if raw.arm_loc is None:
        return plain_loss(raw.odm_loc, raw.odm_conf, anchors, targets, None, threshold)
    objects = targets._replace(labels=torch.ones_like(targets.labels))
    arm = plain_loss(raw.arm_loc, raw.arm_conf, anchors, objects, None, threshold)
    refined = reference.refine(anchors, raw.arm_loc.detach()) if cascade else anchors
    objectness = raw.arm_conf.softmax(dim=-1)[..., 1]
    return arm + plain_loss(raw.odm_loc, raw.odm_conf, refined, targets, objectness, threshold)


@pytest.mark.parametrize("cascade", [True, False])
@pytest.mark.parametrize("threshold", [0.01, 0.0, 0.9])
def test_presets(cascade: bool, threshold: float) -> None:
    preset = replace(OFFICIAL, cascade=cascade, objectness_threshold=threshold)
    losses = MultiBoxLoss(preset)(GATE.raw, GATE.anchors, GATE.targets)
    expected = plain_total(GATE.raw, GATE.anchors, GATE.targets, cascade=cascade, threshold=threshold)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_presets_differ() -> None:
    presets = [OFFICIAL, replace(OFFICIAL, objectness_threshold=0.9), replace(OFFICIAL, cascade=False)]
    totals = {float(MultiBoxLoss(preset)(GATE.raw, GATE.anchors, GATE.targets).odm) for preset in presets}
    assert len(totals) == 3


def test_single_step_network_has_the_detection_loss_only() -> None:
    raw = leaves(GATE.raw._replace(arm_loc=None, arm_conf=None))
    losses = MultiBoxLoss(replace(OFFICIAL, tcb=False))(raw, GATE.anchors, GATE.targets)
    expected = plain_total(raw, GATE.anchors, GATE.targets, cascade=False, threshold=0.0)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.arm == losses.arm_positives == 0
    losses.total.backward()
    assert (raw.odm_loc.grad != 0).any()


def random_problem(seed: int) -> tuple[RawOutput, Tensor, Targets]:
    generator = torch.Generator().manual_seed(seed)
    anchors = generate_anchors((64, 128))
    counts = torch.randint(0, 6, (3,), generator=generator)
    corner = torch.rand(int(counts.sum()), 2, generator=generator) * 0.8
    size = torch.rand(corner.shape, generator=generator) * 0.4
    labels = torch.randint(1, 5, (len(corner),), generator=generator)
    targets = Targets(torch.cat([corner, corner + size], dim=1), labels, torch.tensor([0, *counts]).cumsum(0))
    return RawOutput(*(torch.randn(3, len(anchors), n, generator=generator) for n in (4, 2, 4, 5))), anchors, targets


@pytest.mark.parametrize("seed", range(20))
def test_plain_double(seed: int) -> None:
    raw, anchors, targets = random_problem(seed)
    raw = leaves(raw)
    MultiBoxLoss()(raw, anchors, targets).total.backward()
    doubled = leaves(raw)
    expected = plain_total(doubled, anchors, targets, cascade=True, threshold=0.01)
    expected.backward()
    for found, wanted in zip(raw, doubled, strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def run(raw: RawOutput, dtype: torch.dtype, autocast: bool) -> MultiBoxLosses:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return MultiBoxLoss()(RawOutput(*(tensor.to(dtype) for tensor in raw)), GATE.anchors, GATE.targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_float32_under_autocast(dtype: torch.dtype) -> None:
    rounded = RawOutput(*(tensor.to(dtype).float() for tensor in GATE.raw))
    found, expected = run(GATE.raw, dtype, autocast=True), run(rounded, torch.float32, autocast=False)
    assert found == expected
    assert found.total.dtype == torch.float32


def test_plain_tuples() -> None:
    assert MultiBoxLoss()(tuple(GATE.raw), GATE.anchors, tuple(GATE.targets)) == run(GATE.raw, torch.float32, False)


@pytest.mark.parametrize("label", [0, 21, -1])
def test_label_out_of_range(label: int) -> None:
    labels = GATE.targets.labels.clone()
    labels[2] = label
    with pytest.raises(InputError, match="give labels from 1 to 20"):
        MultiBoxLoss()(GATE.raw, GATE.anchors, GATE.targets._replace(labels=labels))


def test_groups_that_do_not_divide_the_batch() -> None:
    with pytest.raises(InputError, match="the batch has 4 images; give a multiple of normalize_groups = 3"):
        MultiBoxLoss(normalize_groups=3)(GATE.raw, GATE.anchors, GATE.targets)
    with pytest.raises(InputError, match="normalize_groups is 0; give at least 1"):
        MultiBoxLoss(normalize_groups=0)
