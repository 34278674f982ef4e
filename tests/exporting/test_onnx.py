"""Export to ONNX: its detection beside ops.detect, and whole files in ONNX Runtime."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.detect_cases import GOLDEN_NAMES, load_golden, random_anchors, random_tensor
from support.synthetic import scene
from torch import Tensor

import refinedet
from refinedet import ops
from refinedet.errors import CheckpointError, InputError
from refinedet.exporting.onnx_graph import IR_VERSION, OPSET, detection_graph
from refinedet.formats import Choices
from refinedet.models.layers import L2Norm
from refinedet.ops import Detected
from refinedet.presets import OFFICIAL, Preset
from refinedet.protocols import Thresholds
from refinedet.runtimes.onnx_runtime import OnnxNetwork

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
Run = Callable[[Any, dict[str, np.ndarray]], list[np.ndarray]]


# --- Detection alone --------------------------------------------------------------------------------------------------


def run(model: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)


def run_reference(model: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, given)


def detect(inputs: tuple[Tensor | None, ...], preset: Preset, rows: str = "fixed", runtime: Run = run) -> Detected:
    """What the ONNX model makes of the outputs of a network."""
    *outputs, anchors = inputs
    model = detection_graph(anchors, outputs[-1].shape[2], preset, Thresholds.of(preset), rows)
    onnx.checker.check_model(model, full_check=True)
    names = ("arm_loc", "arm_conf", "odm_loc", "odm_conf")
    given = {name: output.numpy() for name, output in zip(names, outputs, strict=True) if output is not None}
    return Detected._make(map(torch.from_numpy, map(np.array, runtime(model, given))))


def ours(inputs: tuple[Tensor | None, ...], preset: Preset) -> Detected:
    arm_loc, *others = inputs
    return ops.detect(
        arm_loc if preset.cascade else None,
        *others,
        objectness_threshold=preset.objectness_threshold,
        score_threshold=preset.score_threshold,
        iou_threshold=2.0 if preset.nms_iou is None else preset.nms_iou,
        top_k=preset.top_k,
        keep_top_k=preset.keep_top_k,
        variances=preset.variances,
    )


def assert_same_rows(found: Detected, expected: Detected) -> None:
    """The same anchors and classes with nearly the same values, in the order that is promised of the values found."""
    assert found.boxes.shape == expected.boxes.shape
    assert [field.dtype for field in found] == [field.dtype for field in expected]
    assert torch.equal(found.counts, expected.counts)
    for image, count in enumerate(found.counts.tolist()):
        boxes, scores, labels, indices = (field[image] for field in found[:4])
        order = np.lexsort((labels[:count], indices[:count], -scores[:count]))
        assert order.tolist() == list(range(count))
        rows = sorted_rows(found, image)
        for ours, theirs in zip(rows, sorted_rows(expected, image), strict=True):
            torch.testing.assert_close(ours, theirs, **(CLOSE if ours.is_floating_point() else {"rtol": 0, "atol": 0}))
        padding = [column[count:].unique().tolist() for column in (boxes, scores, labels, indices)]
        assert padding == ([[], [], [], []] if count == len(scores) else [[0], [0], [0], [-1]])


def sorted_rows(found: Detected, image: int) -> list[Tensor]:
    count = int(found.counts[image])
    columns = [field[image, :count] for field in found[:4]]
    order = torch.from_numpy(np.lexsort((columns[2], columns[3])))
    return [column[order] for column in columns]


def preset_of(options: dict[str, Any]) -> Preset:
    options = dict(options)
    return replace(OFFICIAL, nms_iou=options.pop("iou_threshold"), **options)


@pytest.mark.parametrize("name", [name for name in GOLDEN_NAMES if name != "ties"])
def test_official_layer(name):
    """The rows of the official layer; those of ops.detect, too. Only scores a rounding apart may change places."""
    inputs, runs = load_golden(name)
    for each in runs:
        found = detect(inputs, preset_of(each.options))
        assert_same_rows(found, ours(inputs, preset_of(each.options)))
        rows = [sorted_rows(found, image) for image in range(len(found.counts))]
        order = np.lexsort((each.rows[:, 1], each.anchors, each.rows[:, 0]))
        boxes, scores, labels, anchors = (torch.cat(columns).numpy() for columns in zip(*rows, strict=True))
        assert np.array_equal(anchors, each.anchors[order])
        assert np.array_equal(labels, each.rows[order, 1])
        np.testing.assert_allclose(scores, each.rows[order, 2], rtol=1e-5)
        np.testing.assert_allclose(boxes, each.rows[order, 3:], **CLOSE)


def test_official_layer_with_ties():
    """Equal scores: as tests/ops/test_detect.py makes them. Every row is in its place."""
    (*outputs, odm_conf, anchors), (each,) = load_golden("ties")
    odm_conf[..., 0] = 40 * np.log(2)
    preset = preset_of(each.options | {"score_threshold": each.options["score_threshold"] * 2.0**-40})
    found = detect((*outputs, odm_conf, anchors), preset)
    expected = ours((*outputs, odm_conf, anchors), preset)
    assert len(found.scores.unique()) < 16 < len(each.rows)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.labels, expected.labels)
    assert_same_rows(found, expected)


def random_inputs(seed: int, preset: Preset, *, trouble: float, steps: bool = False) -> tuple[Tensor | None, ...]:
    rng = np.random.default_rng(seed)

    def tensor(width: int, scale: float) -> Tensor:
        return random_tensor(rng, (3, 60, width), scale=scale, steps=steps, trouble=trouble)

    arm = (tensor(4, 1), tensor(2, 3)) if preset.tcb else (None, None)
    return (*arm, tensor(4, 1), tensor(4, 3), random_anchors(rng, 60).abs())


PRESETS = {
    "few": replace(OFFICIAL, top_k=7, keep_top_k=5),
    "many": replace(OFFICIAL, objectness_threshold=0.0, score_threshold=0.0, nms_iou=0.7, keep_top_k=300),
    "no suppression": replace(OFFICIAL, nms_iou=None),
    "no cascade": replace(OFFICIAL, cascade=False, nms_iou=0.0),
    "single-step": replace(OFFICIAL, tcb=False, variances=(0.2, 0.1, 0.3, 0.1)),
}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_ops_detect(preset, seed):
    """With NaN, infinities and huge numbers among the outputs, and more rows asked for than there can be."""
    inputs = random_inputs(seed, preset, trouble=0.02 * (seed % 2), steps=seed > 1)
    found, expected = detect(inputs, preset), ours(inputs, preset)
    assert found.counts.max() > 0
    assert_same_rows(found, expected)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_reference_evaluator(preset):
    """Another runtime, onnx's own: rows and ties are the standard's, not ONNX Runtime's."""
    inputs = random_inputs(7, preset, trouble=0.0, steps=True)
    assert_same_rows(detect(inputs, preset, runtime=run_reference), ours(inputs, preset))


def test_variable_rows():
    """Those of all images one after the other; the second one has none."""
    inputs = random_inputs(0, PRESETS["few"], trouble=0.0)
    inputs[1][1] = torch.tensor([9.0, 0.0])
    fixed, variable = (detect(inputs, PRESETS["few"], rows) for rows in ("fixed", "variable"))
    real = fixed.indices >= 0
    assert real.sum(1).tolist() == variable.counts.tolist() == [5, 0, 5]
    for whole, rows in zip(fixed[:4], variable, strict=False):
        assert torch.equal(whole[real], rows)


# --- Whole files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> refinedet.Detector:
    torch.manual_seed(0)
    network = refinedet.build("squeezenet", size=(64, 128), num_classes=4, classes=["a", "b", "ä ü"]).eval()
    return refinedet.Detector(spread(network))


def spread(network: refinedet.RefineDet) -> refinedet.RefineDet:
    """Scores as far apart as those of a trained network: rounding changes no row."""
    with torch.no_grad():
        for conv in network.odm.conf:
            conv.weight.mul_(20)
    return network


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Exports take no time of theirs to compare speeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refinedet.exporting.check.SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    report = refinedet.export(detector, path, Choices("onnx", batch=None))
    assert report.own_rows_differ == 0
    assert report.output_difference < 1e-4
    return path


@pytest.fixture(scope="module")
def single_step(detector, tmp_path_factory) -> tuple[refinedet.Detector, Path]:
    """In float16, for two images at a time, with variable rows."""
    torch.manual_seed(0)
    preset = replace(OFFICIAL, tcb=False, keep_top_k=40)
    made = refinedet.Detector(spread(refinedet.build("squeezenet", size=64, num_classes=3, preset=preset).eval()))
    path = tmp_path_factory.mktemp("onnx") / "half.onnx"
    refinedet.export(made, path, Choices("onnx", batch=2, dtype="float16", rows="variable"))
    return made, path


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim] for value in values
    }


def test_file(exported, detector):
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == IR_VERSION
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    anchors = len(detector.network.anchors)
    assert shapes(model.graph.input) == {"pixels": ["batch", 3, 64, 128]}
    assert shapes(model.graph.output) == {
        "arm_loc": ["batch", anchors, 4],
        "arm_conf": ["batch", anchors, 2],
        "odm_loc": ["batch", anchors, 4],
        "odm_conf": ["batch", anchors, 4],
        "boxes": ["batch", 500, 4],
        "scores": ["batch", 500],
        "labels": ["batch", 500],
        "indices": ["batch", 500],
        "counts": ["batch"],
    }
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert sorted(told) == ["classes", "preprocessing", "refinedet", "size"]
    assert json.loads(told["classes"]) == ["a", "b", "ä ü"]
    assert json.loads(told["size"]) == [64, 128]
    assert "blue, green, red, 0..255" in told["preprocessing"]
    source = str(Path(refinedet.__file__).parent).encode()
    assert source not in exported.read_bytes()  # the exporter notes at each node which line of which file it is of


def test_file_in_half_precision(single_step):
    made, path = single_step
    model = onnx.load(path)
    assert shapes(model.graph.input) == {"pixels": [2, 3, 64, 64]}
    outputs = shapes(model.graph.output)
    assert list(outputs) == ["odm_loc", "odm_conf", "boxes", "scores", "labels", "indices", "counts"]
    assert outputs["odm_conf"] == [2, len(made.network.anchors), 3]
    weights = [each for each in model.graph.initializer if len(each.dims) == 4]
    assert {each.data_type for each in weights if each.dims[2:] == [3, 3]} == {onnx.TensorProto.FLOAT16}
    ends = [*model.graph.input, *(each for each in model.graph.output if each.name.startswith("odm"))]
    assert {each.type.tensor_type.elem_type for each in ends} == {onnx.TensorProto.FLOAT}


def test_runs_as_the_model(exported, detector):
    loaded = refinedet.load(exported)
    pictures = [scene(seed)[0] for seed in range(3)]
    for found, expected in zip(loaded.detect(pictures), detector.detect(pictures), strict=True):
        assert len(expected.scores) > 0
        assert found.names == expected.names
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_own_detections(exported, single_step, images):
    """Of the whole file, in any batch: those of ops.detect, in both kinds of rows."""
    for path, size in ((exported, (64, 128)), (single_step[1], (64, 64))):
        loaded = refinedet.load(path)
        pixels = torch.rand(images, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
        found, expected = loaded.network.detections(pixels), loaded.select(loaded.run(pixels))
        assert found.counts.min() > 0
        rows = found.scores.shape[1]
        assert_same_rows(found, Detected(*(column[:, :rows] for column in expected[:4]), expected.counts))


def test_outputs_are_the_callers(exported):
    network = refinedet.load(exported).network
    first = network.compute(torch.zeros(1, 3, 64, 128))
    kept = [output.clone() for output in first]
    network.compute(torch.full((1, 3, 64, 128), 200.0))
    assert all(map(torch.equal, first, kept))


def l2norms(model: Any) -> int:
    """How many additions of `L2Norm.EPS` there are."""
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = onnx.helper.get_attribute_value(node.attribute[0])
            constants[node.output[0]] = onnx.numpy_helper.to_array(value) if hasattr(value, "dims") else np.array(value)
    small = {name for name, value in constants.items() if value.size and np.all(value == np.float32(L2Norm.EPS))}
    return sum(node.op_type == "Add" and not small.isdisjoint(node.input) for node in model.graph.node)


@pytest.mark.parametrize("value", [0.0, 255.0, (3.0, 200.0, 90.0)])
def test_pictures_of_one_colour(exported, detector, value):
    """An added 1e-10 keeps `L2Norm` from dividing 0 by 0; the exporter's own optimiser would remove it."""
    pixels = torch.zeros(1, 3, 64, 128) + torch.tensor(value).view(-1, 1, 1)
    prepared = pixels - torch.tensor(detector.preprocessing.mean).view(3, 1, 1)
    found = refinedet.load(exported).run(pixels)
    expected = detector.run(prepared)
    for ours, theirs in zip(found, expected.concatenate(), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_l2norm_keeps_what_it_adds(exported, detector):
    norms = sum(isinstance(module, L2Norm) for module in detector.network.modules())
    assert l2norms(onnx.load(exported)) == norms == 2


# --- Bad input --------------------------------------------------------------------------------------------------------


def changed(path: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_other_metadata(exported, tmp_path):
    path = changed(exported, tmp_path, lambda model: model.ClearField("metadata_props"))
    with pytest.raises(CheckpointError, match=r"changed.onnx has no metadata of refinedet: it is of another program"):
        refinedet.load(path)
    path = changed(exported, tmp_path, lambda model: onnx.helper.set_model_props(model, {"refinedet": "{}"}))
    with pytest.raises(CheckpointError, match=r"changed.onnx: its metadata are damaged .* export it again"):
        refinedet.load(path)


@pytest.mark.parametrize("content", [b"", b"no ONNX file", None])
def test_damaged_file(exported, tmp_path, content):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(exported.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(CheckpointError, match=r"damaged.onnx (is damaged, or no ONNX file|has no metadata)") as refused:
        refinedet.load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["ir_version", "opset"])
def test_runtime_too_old(exported, tmp_path, field):
    def change(model: Any) -> None:
        if field == "opset":
            model.opset_import[0].version = 999
        else:
            model.ir_version = 999

    with pytest.raises(
        InputError, match=r"does not open in ONNX Runtime .* pip install --upgrade onnxruntime"
    ) as refused:
        refinedet.load(changed(exported, tmp_path, change))
    assert "\n" not in str(refused.value)


def test_another_size(exported):
    loaded = refinedet.load(exported)
    assert isinstance(loaded.network, OnnxNetwork)
    with pytest.raises(InputError, match=r"images have shape \[1, 3, 64, 64\]; this file takes \[B,3,64,128\]"):
        loaded.run(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_package_absent(exported, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"needs the package {module} .*pip install 'refinedet\[onnx\]'"):
        refinedet.load(exported)


def test_exporter_absent(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"format onnx needs the package onnxscript.*pip install 'refinedet\[onnx\]'"):
        refinedet.export(detector, tmp_path / "a.onnx", "onnx")
    assert not list(tmp_path.iterdir())
