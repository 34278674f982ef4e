"""The operators on a GPU: microseconds by CUDA events beside prediction and floor of the cost model.

``make benchmark``, or ``pytest benchmarks/bench_gpu.py --benchmark-enable``. Skipped where there is no GPU. Each case
first checks that GPU and CPU agree, then prints

    graph     a CUDA graph of one call, replayed: the kernels alone, what the model predicts
    cold      the same with its inputs out of the cache
    eager     a call from Python, back to back: what the host adds
    GB/s      the bytes that have to be moved, over the time of the graph
    floor     share of the floor: 100 % cannot be beaten
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from refinedet import cost, generate_anchors, ops

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from gpu import DEVICE, require_gpu, to

require_gpu()

ROUNDS = 50
CACHE = 256 << 20  # bytes, more than any L2
BUSY = 200_000  # cycles in which the host queues what is timed, so that its own time is not part of it
SIDES = {6375: 320, 16320: 512}


def network_outputs(net: cost.Network, batch: int) -> tuple[Tensor, ...]:
    """As many survivors as the model assumes, each with one candidate, which suppression nearly always keeps."""
    generator = torch.Generator().manual_seed(0)
    size = (batch, net.anchors)
    arm_conf = torch.zeros(*size, 2)
    arm_conf[..., 0] = torch.where(torch.rand(size, generator=generator) < net.survivors, 0.0, 10.0)
    odm_conf = torch.randn(*size, net.classes, generator=generator)
    likely = torch.randint(1, net.classes, size, generator=generator)
    odm_conf.scatter_(2, likely[..., None], 8.0)
    offsets = [torch.randn(*size, 4, generator=generator) for _ in range(2)]
    side = SIDES[net.anchors]
    return offsets[0], arm_conf, offsets[1], odm_conf, generate_anchors((side, side))


def ground_truth(batch: int, boxes: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(batch * boxes, 2, generator=generator)
    half = torch.rand(batch * boxes, 2, generator=generator) * 0.15 + 0.02
    labels = torch.randint(1, 21, (batch * boxes,), generator=generator)
    return torch.cat([centers - half, centers + half], dim=1), labels, torch.arange(batch + 1) * boxes


def arguments_of(name: str, net: cost.Network, batch: int) -> tuple[Tensor, ...]:
    outputs = network_outputs(net, batch)
    if name == "detect":
        return outputs
    if name == "refine":
        return outputs[4], outputs[0]
    if name == "match":
        return outputs[4], *ground_truth(batch)
    labels = (torch.rand(batch, net.anchors, generator=torch.Generator().manual_seed(1)) < 0.005).long()
    return outputs[3], labels, torch.zeros(batch, net.anchors)


def assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        if a.dtype == torch.float32:
            torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(a.cpu(), b)


def microseconds(call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median over many calls, each between two events; ``before`` is queued ahead of the first."""
    times = []
    for _ in range(ROUNDS + 5):
        before()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times[5:])


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def this_device() -> cost.Device | None:
    """The GPU here, if the cost model knows it."""
    name = torch.cuda.get_device_name(DEVICE)
    return next((device for device in cost.DEVICES if device.name.split(" (")[0] in name), None)


def report(case: str, expected: cost.Cost, graph: float, cold: float, eager: float) -> str:
    line = f"{case:<28} graph {graph:8.1f} us   cold {cold:8.1f} us   eager {eager:8.1f} us"
    line += f"   {expected.minimum / graph / 1e3:7.1f} GB/s"
    device = this_device()
    if device is None:
        return line
    return f"{line}   predicted {expected.predicted(device):7.1f} us   floor {expected.floor(device) / graph:4.0%}"


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("net", cost.NETWORKS, ids=lambda net: net.name)
@pytest.mark.parametrize("name", cost.OPERATORS)
def test_operator(
    name: str, net: cost.Network, batch: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of(name, net, batch)
    moved = to(DEVICE, arguments)
    operator = getattr(ops, name)

    def call() -> object:
        return operator(*moved)

    found, expected = call(), operator(*arguments)
    assert_same(*((found, expected) if isinstance(found, tuple) else ((found,), (expected,))))
    if benchmark.enabled:
        graph = captured(call)
        flushed = torch.empty(CACHE, dtype=torch.uint8, device=DEVICE)
        warm = microseconds(graph.replay, lambda: torch.cuda._sleep(BUSY))
        times = warm, microseconds(graph.replay, flushed.zero_), microseconds(call)
        with capsys.disabled():
            print("\n" + report(f"{name}, {net.name}, batch {batch}", cost.OPERATORS[name](net, batch), *times))
        benchmark.extra_info["graph us"] = times[0]
    benchmark(lambda: (call(), torch.cuda.synchronize()))


@pytest.mark.parametrize("count", [1000, 6375, 20000])
def test_nms(count: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside torchvision's, both with their sort and their wait for the number of boxes."""
    from bench_nms import crowd
    from torchvision.ops import batched_nms

    boxes, scores, labels = to(DEVICE, crowd(count))
    assert torch.equal(ops.batched_nms(boxes, scores, labels, 0.45).cpu(), ops.batched_nms(*crowd(count), 0.45))
    if benchmark.enabled:
        ours = microseconds(lambda: ops.batched_nms(boxes, scores, labels, 0.45))
        theirs = microseconds(lambda: batched_nms(boxes, scores, labels, 0.45))
        with capsys.disabled():
            print(f"\nnms, {count} boxes: ours {ours:.1f} us, torchvision {theirs:.1f} us")
    benchmark(lambda: ops.batched_nms(boxes, scores, labels, 0.45))


def test_detect_beside_pytorch(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """The pipeline that a practitioner writes, on the same GPU."""
    from bench_detect import load, peer

    inputs = to(DEVICE, load("typical_voc320"))
    if benchmark.enabled:
        ours, theirs = microseconds(lambda: ops.detect(*inputs)), microseconds(lambda: peer(*inputs))
        with capsys.disabled():
            print(f"\ndetect, VOC 320, batch 1: ours {ours:.1f} us, PyTorch and torchvision {theirs:.1f} us")
    benchmark(lambda: (ops.detect(*inputs), torch.cuda.synchronize()))
