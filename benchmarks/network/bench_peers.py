"""The network for inference beside eager PyTorch, ONNX Runtime, OpenVINO and MNN: the same weights, exported, float32.

    pytest benchmarks/network/bench_peers.py --benchmark-enable -k "vgg16 and one"

All outputs are compared first. Then they take turns; on one thread it is CPU time that counts, on two the clock on the
wall. VGG-16 has 320 pixels, 21 classes and random weights.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import refinedet
from refinedet import ops
from refinedet.data.images import read_image
from refinedet.models import RefineDet
from refinedet.models.optimized import optimize
from refinedet.preprocessing import prepare
from refinedet.records import LevelOutput
from refinedet.runtimes.openvino import import_openvino

PHOTOGRAPH = Path(__file__).parents[2] / "examples" / "bccd" / "BloodImage_00031.jpg"
TOLERANCE = 2e-3  # of the largest value; MNN's own is 7e-4
SECONDS = 5.0  # of each contestant
BARS = {"vgg16": {"ONNX Runtime": 1.0, "OpenVINO": 1.0}}
THREADS = pytest.mark.parametrize("threads", [1, 2], ids=["one thread", "two threads"])

Run = Callable[[], list[np.ndarray]]


class Levels(nn.Module):
    """All outputs in one tuple, for export."""

    def __init__(self, network: RefineDet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(level for output in self.network(images, True) for level in output)


def network_of(model: str) -> RefineDet:
    if model == "bccd":
        return refinedet.load("bccd").trained_network
    torch.manual_seed(0)
    return refinedet.build("vgg16", size=320, num_classes=21).eval()


@torch.inference_mode(False)
@torch.no_grad()
def export(model: str, file: Path) -> Path:
    network = network_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an exporter that torch will remove
        images = torch.zeros(1, 3, *network.config.size)
        torch.onnx.export(Levels(network), (images,), file, dynamo=False, input_names=["images"])
    return file


def onnx_runtime(file: Path, images: np.ndarray, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def openvino(file: Path, images: np.ndarray, threads: int) -> Run:
    module = import_openvino("OpenVINO's network")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = module.Core().compile_model(str(file), "CPU", settings).create_infer_request()
    return lambda: list(request.infer({0: images}).values())


def mnn(file: Path, images: np.ndarray, threads: int) -> Run:
    import _tools  # MNN's
    import MNN as module
    import onnx

    names = [output.name for output in onnx.load(str(file)).graph.output]
    converted = str(file.with_suffix(".mnn"))
    _tools.mnnconvert(["", "-f", "ONNX", "--modelFile", str(file), "--MNNModel", converted, "--bizCode", "x"])
    runtime = module.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
    network = module.nn.load_module_from_file(converted, ["images"], names, runtime_manager=runtime)
    given = module.expr.const(images, list(images.shape), module.expr.NCHW)
    return lambda: [np.array(value.read()) for value in network.onForward([given])]


@THREADS
@pytest.mark.parametrize("model", ["bccd", "vgg16"])
def test_network(model: str, threads: int, compare: Callable[..., None], tmp_path: Path) -> None:
    torch.set_num_threads(threads)
    network = network_of(model)
    images = 50 * torch.randn(1, 3, *network.config.size, generator=torch.Generator().manual_seed(0))
    made, eager = Levels(optimize(network)), Levels(network)
    file, values = export(model, tmp_path / "network.onnx"), images.numpy()
    peers: dict[str, Run] = {
        "eager": lambda: [level.numpy() for level in eager(images)],
        "ONNX Runtime": onnx_runtime(file, values, threads),
        "OpenVINO": openvino(file, values, threads),
        "MNN": mnn(file, values, threads),
    }

    def ours() -> list[np.ndarray]:
        return [level.numpy() for level in made(images)]

    expected = ours()
    for name, run in peers.items():
        for found, level in zip(run(), expected, strict=True):
            assert np.abs(found - level).max() <= TOLERANCE * np.abs(level).max(), name
    row = ("network", model, "float32", "1", f"cpu, {threads} threads")
    compare(ours, peers, BARS.get(model, {}), row=row, threads=threads, budget=SECONDS)


@THREADS
def test_detector(threads: int, compare: Callable[..., None], tmp_path: Path) -> None:
    """A decoded photograph to boxes, beside ONNX Runtime's network alone and `ops.detect`."""
    torch.set_num_threads(threads)
    detector, photograph = refinedet.load("bccd"), read_image(PHOTOGRAPH)
    images = prepare(photograph, detector.size, detector.preprocessing)[None].numpy()
    run = onnx_runtime(export("bccd", tmp_path / "network.onnx"), images, threads)
    levels = len(detector.trained_network.backbone.channels)

    def peer() -> ops.Detected:
        found = [torch.from_numpy(value) for value in run()]
        outputs = (tuple(found[i : i + levels]) for i in range(0, len(found), levels))
        return detector.select(LevelOutput(*outputs))

    assert abs(int(peer().counts[0]) - len(detector.detect([photograph])[0].scores)) <= 1
    row = ("detector", "bccd", "float32", "1", f"cpu, {threads} threads")
    compare(
        lambda: detector.detect([photograph]),
        {"ONNX Runtime": peer},
        {"ONNX Runtime": 1.0},
        row=row,
        threads=threads,
        budget=SECONDS,
    )
