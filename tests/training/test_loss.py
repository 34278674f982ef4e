"""MultiBoxLoss: the official losses and gradients, the gates of the specification, the ablations, a plain double."""

from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from support.golden_loss import GOLDEN_LOSSES, GoldenLoss
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from refinedet import OFFICIAL, MultiBoxLoss, RawOutput, Targets, generate_anchors
from refinedet.errors import InputError
from refinedet.ops import reference
from refinedet.training.loss import MultiBoxLosses, start_check

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


SINGLE = GATE.raw._replace(arm_loc=None, arm_conf=None)
RAW = pytest.mark.parametrize("raw", [GATE.raw, SINGLE], ids=["cascade", "single"])


@pytest.mark.parametrize("label", [0, 21, -1, 2**63 - 1])
@RAW
def test_label_out_of_range(raw: RawOutput, label: int) -> None:
    labels = GATE.targets.labels.clone()
    labels[2] = label
    with pytest.raises(
        InputError, match=rf"^ground truth \d of image \d of the batch has label {label}; give labels from 1 to 20"
    ):
        MultiBoxLoss()(raw, GATE.anchors, GATE.targets._replace(labels=labels))


NAN, INF = float("nan"), float("inf")
WRONG_BOXES = {
    "pixels": [10, 20, 100, 200],
    "pixels of a small box": [3, 3, 5, 6],
    "percent": [10, 20, 30, 40],
    "far to the left": [-30, 0.1, 0.5, 0.5],
    "centre and size": [0.6, 0.5, 0.2, 0.3],
    "NaN": [0.1, 0.1, NAN, 0.5],
    "infinite": [0.1, 0.1, INF, 0.5],
    "no width": [0.2, 0.2, 0.2, 0.5],
    "no height": [0.2, 0.5, 0.4, 0.5],
    "a point": [0.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("box", WRONG_BOXES.values(), ids=WRONG_BOXES.keys())
@RAW
def test_box_that_is_none(raw: RawOutput, box: list[float]) -> None:
    """Nothing overlaps such a box, so that the loss would be 0 and nothing be learned."""
    offsets = GATE.targets.offsets
    image = int(offsets.diff().nonzero()[-1])
    row = int(offsets[image]) + 1
    boxes = GATE.targets.boxes.clone()
    boxes[row] = torch.tensor(box)
    numbers = ", ".join(f"{value:g}" for value in box)
    message = (
        rf"^ground truth 1 of image {image} of the batch is the box \[{numbers}\]; give finite corners x1 < x2 and"
    )
    with pytest.raises(InputError, match=message):
        MultiBoxLoss()(raw, GATE.anchors, GATE.targets._replace(boxes=boxes))


@pytest.mark.parametrize("box", [[-0.2, -0.1, 1.3, 1.2], [0, 0, 1, 1], [0.5, 0.5, 0.5 + 1e-6, 0.6]])
def test_box_that_sticks_out_of_the_image_or_is_thin_counts(box: list[float]) -> None:
    boxes = GATE.targets.boxes.clone()
    boxes[0] = torch.tensor(box)
    assert MultiBoxLoss()(GATE.raw, GATE.anchors, GATE.targets._replace(boxes=boxes)).total > 0


@pytest.mark.parametrize(
    "anchor", [[100, 100, 32, 32], [0.5, 0.5, 0, 0.1], [0.5, 0.5, 0.1, -0.1], [0.5, NAN, 0.1, 0.1]]
)
def test_anchor_that_is_none(anchor: list[float]) -> None:
    anchors = GATE.anchors.clone()
    anchors[7] = torch.tensor(anchor)
    with pytest.raises(InputError, match=r"^anchor 7 is \[.*\]; give cx, cy, w, h in units of the image side$"):
        MultiBoxLoss()(GATE.raw, anchors, GATE.targets)


@pytest.mark.parametrize("change", [{0: 1}, {1: 10**6}, {-1: 1}, {2: -1}])
def test_offsets_that_do_not_ascend(change: dict[int, int]) -> None:
    offsets = GATE.targets.offsets.clone()
    for index, value in change.items():
        offsets[index] = value
    with pytest.raises(
        InputError, match=r"^targets\.offsets is \[.*\]; give ascending numbers from 0 to \d+, the boxes$"
    ):
        MultiBoxLoss()(GATE.raw, GATE.anchors, GATE.targets._replace(offsets=offsets))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.ones(3, 4)}, r"targets\.boxes has shape \[3, 4\]; give \[\d+, 4\]"),
        ({"offsets": torch.tensor([0, 0])}, r"targets\.offsets has shape \[2\]; give \[5\]"),
        ({"labels": torch.ones(1, 3)}, r"targets\.boxes has shape"),
        (
            {"labels": GATE.targets.labels.to("meta")},
            r"targets\.labels is on meta, the output of the network on cpu; move",
        ),
    ],
)
def test_targets_that_do_not_fit(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        MultiBoxLoss()(GATE.raw, GATE.anchors, GATE.targets._replace(**change))


def test_nothing_waits_for_a_gpu_until_the_answer_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake tensor has no values: whatever looks at one raises, as it would wait on a GPU."""
    event = MagicMock()
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    with FakeTensorMode():
        targets = Targets(*(torch.empty(t.shape, dtype=t.dtype, device="cuda:0") for t in GATE.targets))
        anchors, conf = torch.empty(6375, 4, device="cuda:0"), torch.empty(4, 6375, 21, device="cuda:0")
        finish = start_check(targets, anchors, conf)
        event.record.assert_called_once_with("stream of cuda:0")
        event.synchronize.assert_not_called()
        with pytest.raises(DataDependentOutputException):
            finish()
    event.synchronize.assert_called_once_with()


@RAW
def test_empty_batch_has_no_loss(raw: RawOutput) -> None:
    raw = leaves(RawOutput(*(None if tensor is None else tensor[:0] for tensor in raw)))
    targets = Targets(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.tensor([0]))
    for groups in (1, 2):
        losses = MultiBoxLoss(normalize_groups=groups)(raw, GATE.anchors, targets)
        losses.total.backward()
        assert all(value == 0 for value in losses)


def test_groups_that_do_not_divide_the_batch() -> None:
    with pytest.raises(InputError, match="the batch has 4 images; give a multiple of normalize_groups = 3"):
        MultiBoxLoss(normalize_groups=3)(GATE.raw, GATE.anchors, GATE.targets)
    with pytest.raises(InputError, match="normalize_groups is 0; give at least 1"):
        MultiBoxLoss(normalize_groups=0)
