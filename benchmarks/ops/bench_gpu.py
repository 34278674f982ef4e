"""The operators on a GPU: microseconds by CUDA events beside prediction and floor of the cost model.

``make benchmark``, or pytest with this file and ``--benchmark-enable``. Skipped where there is no GPU;
`bench_operators.py` has the peers there. Each case first checks that GPU and CPU agree, then prints

    graph     a CUDA graph of one call, replayed: the kernels alone, what the model predicts
    cold      the same with its inputs out of the cache
    eager     a call from Python to a GPU that waits for it: what the host adds
    GB/s      the bytes that have to be moved, over the time of the graph
    floor     share of the floor: 100 % cannot be beaten
"""

import pytest
import torch
from gpu_times import busy, microseconds, nothing
from problems import arguments_of, crowd, image_of
from pytest_benchmark.fixture import BenchmarkFixture
from support.gpu import DEVICE, assert_same, captured, to
from torchvision.ops import batched_nms

from refinedet import ops
from refinedet.profiling import cost
from refinedet.profiling.calibration import find_device

pytestmark = pytest.mark.gpu

CACHE = 256 << 20  # bytes, more than any L2


def report(case: str, expected: cost.Cost, graph: float, cold: float, eager: float) -> str:
    line = f"{case:<28} graph {graph:8.1f} us   cold {cold:8.1f} us   eager {eager:8.1f} us"
    line += f"   {expected.minimum / graph / 1e3:7.1f} GB/s"
    here = torch.cuda.get_device_properties(DEVICE)
    device = find_device(here.name, here.multi_processor_count)
    if device is None:
        return line
    return f"{line}   predicted {expected.predicted(device):7.1f} us   floor {expected.floor(device) / graph:4.0%}"


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("net", cost.NETWORKS, ids=lambda net: net.name.replace(" ", "-"))
@pytest.mark.parametrize("name", cost.OPERATORS)
def test_operator(
    name: str, net: cost.Network, batch: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of(name, net, batch)
    moved = to(DEVICE, arguments)
    operator = getattr(ops, name)

    def call() -> object:
        return operator(*moved)

    assert_same(call(), operator(*arguments))
    if benchmark.enabled:
        graph, _ = captured(call)
        flushed = torch.empty(CACHE, dtype=torch.uint8, device=DEVICE)
        times = microseconds(graph.replay, busy), microseconds(graph.replay, flushed.zero_), microseconds(call, nothing)
        with capsys.disabled():
            print("\n" + report(f"{name}, {net.name}, batch {batch}", cost.OPERATORS[name](net, batch), *times))
        benchmark.extra_info |= dict(zip(("graph us", "cold us", "eager us"), times, strict=True))
    benchmark(lambda: (call(), torch.cuda.synchronize()))


@pytest.mark.parametrize("count", [1000, 6375, 20000])
def test_nms(count: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside torchvision's, both with their sort and their wait for the number of boxes."""
    boxes, scores, labels = to(DEVICE, crowd(count))
    assert torch.equal(ops.batched_nms(boxes, scores, labels, 0.45).cpu(), ops.batched_nms(*crowd(count), 0.45))
    if benchmark.enabled:
        ours = microseconds(lambda: ops.batched_nms(boxes, scores, labels, 0.45), nothing)
        theirs = microseconds(lambda: batched_nms(boxes, scores, labels, 0.45), nothing)
        with capsys.disabled():
            print(f"\nnms, {count} boxes: ours {ours:.1f} us, torchvision {theirs:.1f} us")
    benchmark(lambda: ops.batched_nms(boxes, scores, labels, 0.45))


@pytest.mark.parametrize("count", cost.BOXES)
@pytest.mark.parametrize("name", ["soft_nms", "vote"])
def test_merging(name: str, count: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """A call, with the sorts before and after the kernels; nobody else has them on a GPU."""
    operator, arguments = getattr(ops, name), image_of(*crowd(count))
    moved = to(DEVICE, arguments)
    assert_same(operator(*moved), operator(*arguments))
    if benchmark.enabled:
        time = microseconds(lambda: operator(*moved), nothing)
        with capsys.disabled():
            print(f"\n{name}, {count} boxes: {time:.1f} us")
    benchmark(lambda: (operator(*moved), torch.cuda.synchronize()))
