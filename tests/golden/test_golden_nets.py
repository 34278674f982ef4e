"""The whole networks against the official Caffe implementation: every layer's output, losses, gradients, SGD steps.

Weights are drawn again from the golden recipes. One network is built per architecture and serves all its tests; what
they compare is computed once, in the fixtures.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from support.golden_recipe import draw, input_blob, read_recipe
from support.paths import GOLDEN
from torch import Tensor, nn

import refinedet
from refinedet import ops
from refinedet.models import RefineDet, caffe_multipliers
from refinedet.records import RawOutput, Targets
from refinedet.training.sgd import CaffeSGD, parameter_groups
from refinedet.weights.caffe_names import caffe_names, load_caffe_arrays
from refinedet.weights.caffemodel import read_caffemodel
from refinedet.weights.checkpoint import save_model
from refinedet.weights.convert import convert

NETS = GOLDEN / "net"
FORWARD_TOLERANCE = 1e-4  # of the root mean square of the blob
LOSS_TOLERANCE = 2e-6


@dataclass(frozen=True)
class Case:
    """One architecture.

    The tolerances of norms and values are those the golden data came with; values are relative to the tensor's largest
    (exact float64 arithmetic is no nearer to the official float32 values than that). From the second step on rounding
    errors grow: this network in float64 is off the official losses by 9e-5 and 2e-3 (VGG-16) and 5e-2 (ResNet-101),
    which is what ``step_tolerances`` rest on.
    """

    backbone: str
    num_classes: int
    deploy: str
    train: str
    features: tuple[str, str, str, str]
    batch_norms: int
    base_lr: float
    norm_tolerance: float
    value_tolerance: float
    step_tolerances: tuple[float, ...]


CASES = [
    Case(
        "vgg16",
        21,
        "VGG16_VOC2007_320x320_b1",
        "train_VGG16_VOC2007_320x320_b2",
        ("conv4_3_norm", "conv5_3_norm", "fc7", "conv6_2"),
        batch_norms=0,
        base_lr=2e-5,
        norm_tolerance=1e-3,
        value_tolerance=1e-3,
        step_tolerances=(LOSS_TOLERANCE, 1e-4, 5e-3),
    ),
    Case(
        "resnet101",
        81,
        "ResNet101_COCO_320x320_b1",
        "train_ResNet101_COCO_320x320_b2",
        ("res3b3", "res4b22", "res5c", "res6"),
        batch_norms=155,
        base_lr=2e-4,
        norm_tolerance=1e-2,
        value_tolerance=7e-2,
        step_tolerances=(LOSS_TOLERANCE, 5e-2),
    ),
]


def load_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(NETS / f"{name}.npz") as file:
        return dict(file)


def load_weights(model: RefineDet, name: str) -> set[tuple[str, int]]:
    """Give ``model`` the weights of a golden recipe; returns the blobs there are."""
    arrays = draw(read_recipe(NETS / f"{name}_recipe.json.gz"))
    load_caffe_arrays(model, arrays)
    return set(arrays)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.backbone)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads change the order of sums. With two or four, one gradient value of ResNet-101 (of the factor after P4) is
    off by 0.079 of its tensor's largest, beyond the tolerance of 0.07; with one by 0.004. So the number is fixed here.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(case: Case) -> RefineDet:
    return refinedet.build(case.backbone, 320, case.num_classes)


# --- the deploy network -----------------------------------------------------------------------------------------------


@dataclass
class Forward:
    golden: dict[str, np.ndarray]
    blobs_loaded: set[tuple[str, int]]
    raw: RawOutput
    blobs: dict[str, Tensor]  # output of every layer, by its Caffe name


@pytest.fixture(scope="module")
def forward(case: Case, model: RefineDet, tmp_path_factory: pytest.TempPathFactory) -> Forward:
    """The weights come by way of a file that `convert` wrote for Caffe."""
    golden = load_golden(case.deploy)
    loaded = load_weights(model, case.deploy)
    folder = tmp_path_factory.mktemp(case.backbone)
    save_model(model, folder / "model.safetensors")
    convert(folder / "model.safetensors", folder / "model.caffemodel")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(torch.nan)
    load_caffe_arrays(model, read_caffemodel(folder / "model.caffemodel").blobs)
    (folder / "model.safetensors").unlink()
    (folder / "model.caffemodel").unlink()
    blobs: dict[str, Tensor] = {}
    handles = [module.register_forward_hook(_keep(blobs, layer)) for layer, module in _layers(model)]
    handles.append(model.backbone.register_forward_hook(_keep(blobs, *case.features)))
    with torch.no_grad():
        raw = model.eval()(torch.from_numpy(input_blob(golden["image_bgr_u8"])))
    for handle in handles:
        handle.remove()
    return Forward(golden, loaded, raw, blobs)


def _layers(model: RefineDet) -> Iterator[tuple[str, nn.Module]]:
    """Caffe's name and our module of every convolution, normalisation and ReLU included, and of every L2Norm."""
    for name, (layer, _) in caffe_names(model).items():
        path = name.rpartition(".")[0]
        if not path.endswith(".norm"):
            yield layer, model.get_submodule(path.removesuffix(".conv"))


def _keep(blobs: dict[str, Tensor], *names: str):
    def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        blobs.update(zip(names, outputs, strict=True))  # not copied: an in-place ReLU after it belongs to the blob

    return hook


def assert_close_to_rms(actual: Tensor, expected: np.ndarray, scale: Tensor, name: str) -> None:
    rms = scale.double().square().mean().sqrt().item()
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=FORWARD_TOLERANCE * rms, err_msg=name)


def test_names_cover_every_tensor_and_blob(model: RefineDet, forward: Forward) -> None:
    names = caffe_names(model)
    assert names.keys() == model.state_dict().keys()
    assert set(names.values()) == forward.blobs_loaded
    assert len(names) == len(forward.blobs_loaded)


def test_outputs(forward: Forward) -> None:
    for name, output in forward.raw._asdict().items():
        assert output.shape == forward.golden[name].shape
        assert_close_to_rms(output, forward.golden[name], output, name)


def test_every_layer(case: Case, forward: Forward) -> None:
    checked = set()
    for row, description in enumerate(forward.golden["blob_names"].tolist()):
        name, shape = description.split()
        if name not in forward.blobs:
            continue
        blob = forward.blobs[name]
        assert list(blob.shape) == [int(side) for side in shape.split("x")]
        values = blob.flatten()
        picks = np.random.RandomState(0).randint(0, values.numel(), 64)
        assert_close_to_rms(values[:64], forward.golden["blob_first64"][row][: values.numel()], values, name)
        assert_close_to_rms(values[picks], forward.golden["blob_pick64"][row], values, name)
        checked.add(name)
    assert checked == forward.blobs.keys()
    assert checked >= {*case.features, "P3", "P4", "P5", "P6"}


def test_detections(model: RefineDet, forward: Forward) -> None:
    """Nearly all official rows: the inputs' last bits decide a few suppressions and the end of the list."""
    official = forward.golden["detection_out"]
    found = ops.detect(*forward.raw, model.anchors)
    count = int(found.counts[0])
    assert count == len(official)
    ours = np.column_stack([found.labels[0, :count], found.scores[0, :count], found.boxes[0, :count]])
    matched = 0
    for row in official[:, 1:]:
        same = ours[(ours[:, 0] == row[0]) & (np.abs(ours[:, 1] - row[1]) < 1e-4)]
        size = max(row[4] - row[2], row[5] - row[3])
        matched += bool(len(same)) and np.abs(same[:, 2:] - row[2:]).max(axis=1).min() < 1e-3 * size
    assert matched >= 0.99 * count


# --- the training network ---------------------------------------------------------------------------------------------


@dataclass
class Training:
    golden: dict[str, np.ndarray]
    meta: dict
    losses: list[tuple[float, float]] = field(default_factory=list)
    positives: list[int] = field(default_factory=list)
    gradients: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    start: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    deltas: list[dict[tuple[str, int], Tensor]] = field(default_factory=list)  # of every blob, after each step

    @property
    def blobs(self) -> list[tuple[str, int]]:
        return [(layer, int(blob)) for layer, blob in (name.rsplit(":", 1) for name in self.golden["param_names"])]


@pytest.fixture(scope="module")
def training(case: Case, model: RefineDet, forward: Forward) -> Training:
    """The official steps on the golden batch. ``forward`` is asked for only to have the model first."""
    golden = load_golden(case.train)
    run = Training(golden, json.loads(str(golden["meta"])))
    load_weights(model, case.train)
    model.train()
    names = caffe_names(model)
    run.start = caffe_blobs(model)
    images = torch.from_numpy(input_blob(golden["image_bgr_u8"]))
    criterion = refinedet.MultiBoxLoss()
    optimizer = CaffeSGD(parameter_groups(model, caffe_multipliers(model)), lr=case.base_lr)
    for step in range(len(golden["step_losses"])):
        optimizer.zero_grad()
        losses = criterion(model(images), model.anchors, ragged_targets(golden["label"], len(images)))
        losses.total.backward()
        run.losses.append((losses.arm.item(), losses.odm.item()))
        if step == 0:
            run.positives = [int(losses.arm_positives), int(losses.odm_positives)]
            run.gradients = {
                names[name]: parameter.grad.double().flatten() for name, parameter in model.named_parameters()
            }
        optimizer.step()
        run.deltas.append({blob: value - run.start[blob] for blob, value in caffe_blobs(model).items()})
    return run


def ragged_targets(rows: np.ndarray, images: int) -> Targets:
    """Targets of Caffe's label rows (image, label, instance, box, difficult), which are in the order of the images."""
    assert not rows[:, 7].any(), "no difficult objects here, which the two architectures treat differently"
    counts = np.bincount(rows[:, 0].astype(np.int64), minlength=images)
    offsets = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
    return Targets(torch.from_numpy(rows[:, 3:7].copy()), torch.from_numpy(rows[:, 1].astype(np.int64)), offsets)


def caffe_blobs(model: RefineDet) -> dict[tuple[str, int], Tensor]:
    """Every blob as Caffe keeps it, flat and in float64: batch statistics are multiplied by their factor."""
    state = model.state_dict()
    blobs = {}
    for name, blob in caffe_names(model).items():
        value = state[name].double().flatten()
        if name.endswith(("running_mean", "running_var")):
            value = value * state[f"{name.rpartition('.')[0]}.factor"].double()
        blobs[blob] = value.clone()
    return blobs


def assert_like_summary(
    values: Tensor, summary: np.ndarray, case: Case, name: str, rounding: Tensor | None = None
) -> None:
    """Compare a tensor with its golden summary: L2 norm, mean, 16 values."""
    norm, largest = values.norm().item(), values.abs().max().item()
    picks = np.random.RandomState(0).randint(0, values.numel(), 16)
    slack = np.zeros(values.numel()) if rounding is None else 1e-7 * rounding.abs().numpy()
    norm_slack = np.sqrt((slack**2).sum())
    assert abs(norm - summary[0]) <= case.norm_tolerance * summary[0] + norm_slack, name
    assert abs(values.mean().item() - summary[1]) <= case.value_tolerance * largest + slack.mean(), name
    np.testing.assert_array_less(
        np.abs(values[picks].numpy() - summary[2:]), case.value_tolerance * largest + slack[picks] + 1e-30, name
    )


def test_losses(training: Training) -> None:
    official = (training.meta["arm_loss"], training.meta["odm_loss"])
    np.testing.assert_allclose(training.losses[0], official, rtol=LOSS_TOLERANCE)
    assert training.positives == training.meta["num_matches"]


def test_gradients(case: Case, training: Training) -> None:
    for row, blob in enumerate(training.blobs):
        if blob in training.gradients:
            assert_like_summary(training.gradients[blob], training.golden["grad_summary"][row], case, str(blob))
        else:
            assert blob[0].startswith("bn") or blob[0].endswith("_bn")


def test_multipliers(model: RefineDet, training: Training) -> None:
    names = caffe_names(model)
    multipliers = {names[name]: value for name, value in caffe_multipliers(model).items()}
    for row, blob in enumerate(training.blobs):
        official = tuple(training.golden["param_lr_decay_mult"][row])
        if blob in multipliers:
            assert multipliers[blob] == official, blob
        else:
            assert official[0] == 0, blob  # batch statistics: no learning, so no decay either
    assert multipliers.keys() <= set(training.blobs)


def test_first_step(case: Case, training: Training) -> None:
    """Weights, multipliers, decay and batch statistics after one official step."""
    for row, blob in enumerate(training.blobs):
        summary = training.golden["step_param_delta_summary"][0, row]
        assert_like_summary(training.deltas[0][blob], summary, case, str(blob), rounding=training.start[blob])


def test_losses_of_all_steps(case: Case, training: Training) -> None:
    official = training.golden["step_losses"]
    assert len(training.losses) == len(official) == len(case.step_tolerances)
    for ours, theirs, tolerance in zip(training.losses, official, case.step_tolerances, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)


def test_movement_of_all_steps(case: Case, training: Training) -> None:
    """How far all weights together have moved: momentum shows from the second step on."""
    rows = [row for row, blob in enumerate(training.blobs) if blob in training.gradients]
    for step, deltas in enumerate(training.deltas):
        ours = math.sqrt(sum(deltas[training.blobs[row]].square().sum().item() for row in rows))
        theirs = np.linalg.norm(training.golden["step_param_delta_summary"][step, rows, 0])
        assert ours == pytest.approx(theirs, rel=max(case.step_tolerances[step], case.norm_tolerance))


def test_weights_of_batch_statistics(case: Case, training: Training) -> None:
    """Caffe's factor: 0.75 at the start, then 0.999 times itself plus 1 at each step."""
    rows = [row for row, (_, index) in enumerate(training.blobs) if index == 2]
    assert len(rows) == case.batch_norms
    for step, deltas in enumerate(training.deltas):
        for row in rows:
            summary = training.golden["step_param_delta_summary"][step, row]
            np.testing.assert_allclose(deltas[training.blobs[row]].item(), summary[1], rtol=1e-6)
