"""The network, its losses and its training on a GPU.

The network's own arithmetic is cuDNN's: close to the CPU's, not equal to it, and only without TF32.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.golden_loss import GOLDEN_LOSSES, GoldenLoss
from support.gpu import DEVICE, assert_same, captured, to
from support.paths import ROOT
from support.runs import logged_losses, tiny_recipe
from support.synthetic import make_voc

import refinedet
from refinedet import MultiBoxLoss
from refinedet.commands import doctor
from refinedet.commands import main as cli
from refinedet.data import TrainAugment, TrainLoader, open_dataset
from refinedet.errors import InputError
from refinedet.inference.detector import Detector
from refinedet.inference.selection import select
from refinedet.models import build
from refinedet.ops.devices import choose_device
from refinedet.preprocessing import prepare
from refinedet.protocols import Thresholds
from refinedet.records import Batch, RawOutput
from refinedet.training.loss import start_check
from refinedet.training.recipe import Recipe
from refinedet.training.run import train
from refinedet.training.step import Trainer
from refinedet.weights.checkpoint import TrainingState, load_training_state, save_training_state

pytestmark = pytest.mark.gpu

IMAGE = ROOT / "examples" / "bccd" / "BloodImage_00031.jpg"


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture
def bccd() -> Detector:
    return refinedet.load("bccd").to(DEVICE)


@pytest.fixture
def blob(bccd: Detector) -> torch.Tensor:
    """The image as the network takes it."""
    image = refinedet.data.read_image(IMAGE)
    return prepare(image, bccd.size, bccd.preprocessing)[None]


@torch.inference_mode()
def test_forward(bccd: Detector, blob: torch.Tensor) -> None:
    expected = refinedet.load("bccd").network(blob)
    for name, ours, theirs in zip(RawOutput._fields, bccd.network(blob.to(DEVICE)), expected, strict=True):
        assert (ours.cpu() - theirs).abs().max() < 1e-3 * theirs.abs().max(), name


@torch.inference_mode()
@pytest.mark.parametrize("amp", [False, True])
def test_boxes_of_one_output_are_the_same_on_both_devices(bccd: Detector, blob: torch.Tensor, amp: bool) -> None:
    with torch.autocast("cuda", torch.float16, enabled=amp):
        raw = bccd.network(blob.to(DEVICE))
    found = bccd.select(raw, 0.01)
    expected = refinedet.load("bccd").select(to("cpu", raw), 0.01)
    assert expected.counts.item() > 20
    assert_same(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("limits", [(None, None), (3000, 2000)])
def test_boxes_beyond_the_limits_of_the_operator_are_the_same_on_both_devices(
    bccd: Detector, blob: torch.Tensor, limits: tuple[int | None, int | None]
) -> None:
    """For CUDA they are selected by PyTorch, in no more room than they need."""
    raw = bccd.run(blob)
    thresholds = Thresholds(0.01, 0.45, *limits)
    found = select(raw, bccd.network.anchors, bccd.preset, thresholds)
    expected = select(to("cpu", raw), bccd.network.anchors.cpu(), bccd.preset, thresholds)
    assert int(expected.counts) > 20
    rows = found.scores.shape[1]
    assert_same(found[:4], tuple(column[:, :rows] for column in expected[:4]))
    assert_same(found.counts, expected.counts)


def test_detect(bccd: Detector) -> None:
    """No score of the picture is within 0.04 of the threshold; neighbours in the list are 0.002 apart or more."""
    (expected,) = refinedet.load("bccd").detect([IMAGE], score_threshold=0.5)
    (found,) = bccd.detect([IMAGE], score_threshold=0.5)
    assert found.names == expected.names
    assert len(found.names) > 20
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=5e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_anchors_move_and_are_never_cast(bccd: Detector, dtype: torch.dtype) -> None:
    anchors = bccd.to(dtype=dtype).network.anchors
    assert anchors.device == DEVICE
    assert_same(anchors, refinedet.generate_anchors(bccd.size))
    assert len(bccd.detect([IMAGE], score_threshold=0.5)[0].scores) > 20


@torch.inference_mode()
def test_graph_of_network_and_operators(bccd: Detector, blob: torch.Tensor) -> None:
    """From pixels to boxes without the host, replayed on another picture."""
    static = torch.zeros_like(blob, device=DEVICE)
    graph, found = captured(lambda: bccd.select(bccd.run(static), 0.5))
    static.copy_(blob)
    graph.replay()
    expected = bccd.select(bccd.run(blob), 0.5)
    assert expected.counts.item() > 20
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=5e-4)


@pytest.mark.parametrize("case", GOLDEN_LOSSES.values(), ids=GOLDEN_LOSSES.keys())
def test_official_losses_and_gradients(case: GoldenLoss) -> None:
    raw = RawOutput(*(tensor.to(DEVICE).requires_grad_() for tensor in case.raw))
    losses = MultiBoxLoss()(raw, case.anchors.to(DEVICE), to(DEVICE, case.targets))
    losses.total.backward()
    losses = to("cpu", losses)
    for module, expected in (("arm", case.arm), ("odm", case.odm)):
        assert getattr(losses, f"{module}_positives") == expected["num_matches"]
        torch.testing.assert_close(getattr(losses, module), expected["loss"], rtol=1e-5, atol=0)
        for part in ("loc", "conf"):
            gradient = getattr(raw, f"{module}_{part}").grad
            torch.testing.assert_close(gradient.cpu(), expected[f"{part}_grad"], rtol=1e-5, atol=1e-7)


def test_wrong_targets_are_refused_without_a_wait_and_leave_the_gpu_usable() -> None:
    case = next(iter(GOLDEN_LOSSES.values()))
    raw, anchors, targets = to(DEVICE, case.raw), case.anchors.to(DEVICE), to(DEVICE, case.targets)
    wrong = targets._replace(labels=torch.full_like(targets.labels, 10**6))
    torch.cuda.set_sync_debug_mode("error")
    try:
        finish = start_check(wrong, anchors, raw.odm_conf)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for refuse in (finish, lambda: MultiBoxLoss()(raw, anchors, wrong)):
        with pytest.raises(InputError, match="has label 1000000; give labels from 1 to 20"):
            refuse()
    assert MultiBoxLoss()(raw, anchors, targets).total > 0


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes the GPU by itself."""
    arguments = ["detect", "bccd", str(IMAGE), "--score-threshold", "0.5", "--json", "--out", str(tmp_path)]
    labels = {}
    for device in ("auto", "cuda", "cpu"):
        assert cli.main([*arguments, "--device", device]) == 0
        (image,) = json.loads(capsys.readouterr().out)["images"]
        labels[device] = [found["label"] for found in image["detections"]]
    assert len(labels["cpu"]) > 20
    assert labels["auto"] == labels["cuda"] == labels["cpu"]


def test_doctor_names_the_gpu() -> None:
    found = doctor.report()
    assert len(found.gpus) == torch.cuda.device_count()
    assert torch.cuda.get_device_name(DEVICE) in found.text()
    assert not [problem for problem in found.problems if "CUDA" in problem.what or "GPU" in problem.what]


# --- Training ---------------------------------------------------------------------------------------------------------

SECTIONS = {"train": {"steps": 16, "checkpoint_every": 8, "ema_decay": 0.9, "clip_norm": 50.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc"), {"train": 6, "test": 2})


@pytest.fixture(params=[False, True], ids=["float32", "amp"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return tiny_recipe(train={**SECTIONS["train"], "amp": request.param})


@pytest.fixture
def batches(recipe: Recipe, data: Path) -> Iterator[Batch]:
    model = build(recipe.model.backbone, recipe.model.input_size, classes=open_dataset(data, "train").classes)
    augment = TrainAugment(model.config.size, model.config.preprocessing)
    return TrainLoader(open_dataset(data, "train"), augment, 4, seed=0, workers=0).iterate(0)


def new_trainer(recipe: Recipe) -> Trainer:
    torch.manual_seed(0)
    settings = recipe.model
    model = build(settings.backbone, settings.input_size, num_classes=3, tcb_channels=settings.tcb_channels)
    return Trainer(model, recipe, DEVICE)


def assert_same_state(found: TrainingState, expected: TrainingState) -> None:
    assert (found.step, found.facts) == (expected.step, expected.facts)
    for group in ("model", "momentum", "average", "random"):
        ours, theirs = getattr(found, group), getattr(expected, group)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name].cpu(), tensor.cpu()), name


def test_training_state(recipe: Recipe, batches: Iterator[Batch], tmp_path: Path) -> None:
    """Saved and taken up by another trainer, whose next step is the same."""
    trainer = new_trainer(recipe)
    initial = {name: value.clone() for name, value in trainer.model.named_parameters()}
    while all(torch.equal(value, initial[name]) for name, value in trainer.model.named_parameters()):
        trainer.step(next(batches))  # the first one has a rate of 0
        assert trainer.steps < 40
    torch.rand(1, device=DEVICE)  # moves the generator away from where a new trainer's is
    state = trainer.state({})
    assert bool(state.facts["scaler"]) == recipe.train.amp
    save_training_state(tmp_path / "state", trainer.model, state)
    other = new_trainer(recipe)
    other.restore(load_training_state(tmp_path / "state"), tmp_path / "state")
    assert_same_state(other.state({}), state)
    assert all(buffer.device == DEVICE for buffer in other.state({}).momentum.values())
    batch = next(batches)
    assert other.step(batch) == pytest.approx(trainer.step(batch), rel=1e-4)


def test_resumed_run(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    """What the same seed gives on a GPU differs by rounding: sums come in another order each time."""
    whole = train(recipe, tmp_path / "whole", data=data, progress=False)
    half = tiny_recipe(train={**SECTIONS["train"], "amp": recipe.train.amp, "steps": 8})
    train(half, tmp_path / "parts", data=data, progress=False)
    resumed = train(recipe, tmp_path / "parts", data=data, resume=True, progress=False)
    assert choose_device().type == "cuda"
    assert resumed.steps == whole.steps == 16
    losses = [[entry[1] for entry in logged_losses(tmp_path / out)] for out in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_run_moves_between_devices(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    for steps, device in ((2, "cpu"), (4, "cuda"), (6, "cpu")):
        settings = {**SECTIONS["train"], "amp": recipe.train.amp, "steps": steps}
        result = train(
            tiny_recipe(train=settings), tmp_path, data=data, device=device, resume=steps > 2, progress=False
        )
        assert result.steps == steps


def test_training_with_evaluation(data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(train={**SECTIONS["train"], "workers": 1}, evaluate={"every": 16})
    result = train(recipe, tmp_path, data=data, progress=False)
    assert result.loss is not None
    assert result.loss > 0
    assert len(result.evaluation["rows"]) == 2
