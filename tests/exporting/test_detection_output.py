"""OpenVINO's DetectionOutput as the export builds it: the official layer's rows, and an oracle of `ops.detect`."""

import numpy as np
import pytest
import torch
from support.detect_cases import DETOUT, GOLDEN_NAMES, load_golden, official_rows, random_anchors, random_tensor
from torch import Tensor

from refinedet.boxes import to_corners
from refinedet.exporting.openvino_ir import detection_output
from refinedet.inference.selection import select
from refinedet.ops.reference import portable
from refinedet.presets import Preset
from refinedet.protocols import Thresholds
from refinedet.records import RawOutput
from refinedet.runtimes.openvino import PADDING, import_openvino

openvino = import_openvino("the test")
HEADS = ("arm_loc", "arm_conf", "odm_loc", "odm_conf")
CLOSE = {"rtol": 1e-5, "atol": 2e-6}  # of corners: another exponential, and anchors as corners
CASES_OF_A_GRAPH = 20


class Graph:
    """DetectionOutput alone, compiled for outputs of these shapes; confidences are probabilities."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], priors: Tensor, preset: Preset) -> None:
        opset = openvino.opset8
        parameters = [opset.parameter(list(shape), np.float32) for shape in shapes.values()]
        outputs = dict(zip(shapes, [each.output(0) for each in parameters], strict=True))
        model = openvino.Model([opset.result(detection_output(outputs, priors, preset, opset))], parameters)
        self.compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})

    def run(self, outputs: dict[str, Tensor]) -> np.ndarray:
        """Rows [K,7] image, label, score, x1, y1, x2, y2."""
        rows = self.compiled([output.numpy() for output in outputs.values()])[0].reshape(-1, 7)
        ends = np.flatnonzero(rows[:, 0] == PADDING)
        return rows[: ends[0]] if len(ends) else rows


def run_once(outputs: dict[str, Tensor], priors: Tensor, preset: Preset) -> np.ndarray:
    return Graph({name: tuple(output.shape) for name, output in outputs.items()}, priors, preset).run(outputs)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_official_layer(name: str) -> None:
    """Every row, score and box of every golden case bit for bit, those of equal scores included."""
    with np.load(DETOUT / f"{name}.npz") as data:
        outputs = {head: torch.from_numpy(data[head]) for head in HEADS}
        priors = torch.from_numpy(data["priors"])
    for run in load_golden(name)[1]:
        preset = Preset(
            objectness_threshold=run.options["objectness_threshold"],
            score_threshold=run.options["score_threshold"],
            nms_iou=run.options["iou_threshold"],
            top_k=run.options["top_k"],
            keep_top_k=run.options["keep_top_k"],
        )
        assert np.array_equal(run_once(outputs, priors, preset), run.rows), run.tag


def random_preset(rng: np.random.Generator, exact: bool) -> Preset:
    return Preset(
        variances=(0.125, 0.125, 0.25, 0.25) if exact else (0.1, 0.1, 0.2, 0.2),
        objectness_threshold=rng.choice([0, 0.01, 0.3, 0.5]).item(),
        score_threshold=rng.choice([0, 0.01, 0.1, 0.3]).item(),
        nms_iou=rng.choice([0, 0.3, 0.45, 0.5, 0.7, 1, None]),
        top_k=rng.choice([1, 5, 50, 400, 1000]).item(),
        keep_top_k=rng.choice([1, 10, 200, 500]).item(),
        cascade=bool(rng.random() < 0.8),
        tcb=bool(rng.random() < 0.9),
    )


def random_outputs(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], exact: bool) -> dict[str, Tensor]:
    """Logits and offsets; every other time in quarters, so that many scores are equal. ``exact``: offsets that move
    boxes by halves and leave their sides, which no rounding and no exponential changes."""
    steps = bool(rng.integers(2))
    outputs = {}
    for name, shape in shapes.items():
        scale = {"arm_conf": 3.0, "odm_conf": 2.0}.get(name, 1.0)
        outputs[name] = random_tensor(rng, shape, scale=scale, steps=steps, trouble=0)
        if exact and name.endswith("loc"):
            outputs[name] = (outputs[name] * 2).round() / 2 * torch.tensor([1.0, 1.0, 0.0, 0.0])
    return outputs


def as_probabilities(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `ops.detect` makes of the logits."""
    probabilities = dict(outputs)
    if "arm_conf" in outputs:
        objects = portable.objectness(outputs["arm_conf"])
        probabilities["arm_conf"] = torch.stack([1 - objects, objects], dim=-1)
    probabilities["odm_conf"] = portable.softmax(outputs["odm_conf"])
    return probabilities


def assert_same_rows(ours: np.ndarray, theirs: np.ndarray, keep_top_k: int, exact: bool) -> None:
    """The same image, label, score and, ``exact``, box, bit for bit. But where ``keep_top_k`` cuts between equal scores
    of an image, those that are kept may be others."""
    assert ours.shape == theirs.shape
    cut = [rows[rows[:, 0] == image] for rows in (ours,) for image in np.unique(rows[:, 0])]
    lowest = {rows[0, 0]: rows[:, 2].min() for rows in cut if len(rows) == keep_top_k}
    settled = [rows[[row[2] != lowest.get(row[0]) for row in rows]] for rows in (ours, theirs)]
    np.testing.assert_array_equal(settled[0][:, :3], settled[1][:, :3])
    if exact:
        np.testing.assert_array_equal(settled[0], settled[1])
    else:
        np.testing.assert_allclose(settled[0], settled[1], **CLOSE)


def check_graph(seed: int, exact: bool, cases: int) -> None:
    """Problems of one shape and one preset."""
    rng = np.random.default_rng(seed)
    preset = random_preset(rng, exact)
    batch, anchors, classes = (rng.choice(sizes).item() for sizes in ([1, 2, 3], [1, 3, 20, 100, 300], [2, 3, 5, 21]))
    widths = {"arm_loc": 4, "arm_conf": 2, "odm_loc": 4, "odm_conf": classes}
    shapes = {name: (batch, anchors, widths[name]) for name in (HEADS if preset.tcb else HEADS[2:])}
    centers = random_anchors(rng, anchors)
    if exact:
        centers = (centers * 16).round() / 16
    graph = Graph(shapes, to_corners(centers), preset)
    for _ in range(cases):
        outputs = random_outputs(rng, shapes, exact)
        raw = RawOutput(**{**dict.fromkeys(HEADS), **outputs})
        ours = official_rows(select(raw, centers, preset, Thresholds.of(preset)))[0]
        assert_same_rows(ours, graph.run(as_probabilities(outputs)), preset.keep_top_k, exact)


@pytest.mark.parametrize("exact", [True, False])
def test_a_hundred_problems(exact: bool) -> None:
    for seed in range(10):
        check_graph(seed, exact, cases=5)


@pytest.mark.long
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("part", range(5))
def test_two_thousand_problems(part: int, exact: bool) -> None:
    for seed in range(10 * part, 10 * part + 10):
        check_graph(1000 + seed, exact, CASES_OF_A_GRAPH)
