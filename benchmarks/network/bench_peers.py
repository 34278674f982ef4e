"""The network for inference beside ONNX Runtime, OpenVINO and MNN: the same weights, exported, float32, same threads.

    python benchmarks/network/bench_peers.py [--model bccd] [--threads 1] [--rounds 9]

All outputs are compared first. Then they take turns; on one thread it is CPU time that counts, on more the clock on the
wall. ``--model``: bccd or vgg16 (320, 21 classes, random weights). Needs onnx, onnxruntime, openvino and MNN.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

import refinedet
from refinedet.models import RefineDet
from refinedet.models.optimized import optimize

TOLERANCE = 2e-3  # of the largest value; MNN's own is 7e-4
Run = Callable[[], list[np.ndarray]]


class Levels(nn.Module):
    """All outputs in one tuple, for export."""

    def __init__(self, network: RefineDet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(level for output in self.network(images, True) for level in output)


def make(model: str) -> RefineDet:
    if model == "bccd":
        return refinedet.load("bccd").network
    torch.manual_seed(0)
    return refinedet.build("vgg16", size=320, num_classes=21).eval()


def peers(file: Path, images: np.ndarray, threads: int) -> dict[str, Run]:
    """Each peer with its version."""
    import _tools
    import MNN
    import onnx
    import onnxruntime
    import openvino

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
    names = [output.name for output in onnx.load(str(file)).graph.output]
    converted = str(file.with_suffix(".mnn"))
    _tools.mnnconvert(["", "-f", "ONNX", "--modelFile", str(file), "--MNNModel", converted, "--bizCode", "x"])
    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
    module = MNN.nn.load_module_from_file(converted, ["images"], names, runtime_manager=runtime)
    given = MNN.expr.const(images, list(images.shape), MNN.expr.NCHW)
    return {
        f"ONNX Runtime {onnxruntime.__version__}": lambda: session.run(None, {"images": images}),
        f"OpenVINO {openvino.__version__.split('-')[0]}": lambda: list(request.infer({0: images}).values()),
        f"MNN {MNN.version()}": lambda: [np.array(value.read()) for value in module.onForward([given])],
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("bccd", "vgg16"), default="bccd")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = make(arguments.model)
    images = 50 * torch.randn(1, 3, *network.config.size, generator=torch.Generator().manual_seed(0))
    made, eager = Levels(optimize(network)), Levels(network)
    runs: dict[str, Run] = {
        "optimised": lambda: [level.numpy() for level in made(images)],
        "eager": lambda: [level.numpy() for level in eager(images)],
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an exporter that torch will remove
        file = Path(folder) / "network.onnx"
        with torch.inference_mode(False), torch.no_grad():
            exported = Levels(make(arguments.model))
            torch.onnx.export(exported, (images.clone(),), file, dynamo=False, input_names=["images"])
        runs |= peers(file, images.numpy(), arguments.threads)
        expected = runs["eager"]()
        for name, run in runs.items():
            for found, level in zip(run(), expected, strict=True):
                assert np.abs(found - level).max() <= TOLERANCE * np.abs(level).max(), name
        clock = time.process_time if arguments.threads == 1 else time.perf_counter
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                start = clock()
                run()
                times[name].append(clock() - start)
    ours = statistics.median(times["optimised"])
    print(
        f"{arguments.model}, torch {torch.__version__}, {arguments.threads} threads: time over the optimised network's"
    )
    for name, taken in times.items():
        print(f"  {name:<24} {statistics.median(taken) / ours:.2f}")


if __name__ == "__main__":
    main()
