"""Times of layers beside their work: on the CPU, by stand-ins of CUDA's events, of fused convolutions."""

from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from support.synthetic import tiny_model
from torch import Tensor, nn

from refinedet.models import panels, pointwise
from refinedet.models.optimized import MaxPool
from refinedet.profiling import flops, layers
from refinedet.profiling.flops import Counter, list_layers
from refinedet.profiling.layers import time_layers

SIZE = (64, 64)


def inputs(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *SIZE)


def test_layers_are_those_that_are_counted_without_values() -> None:
    network = tiny_model()
    found = time_layers(network, inputs(), seconds=0)
    expected = list_layers(network, SIZE, batch=2)
    leaves = {name for name, module in network.named_modules() if not list(module.children())}
    rows = [list(group) for _, group in groupby(expected, key=lambda each: each.name if each.name in leaves else each)]
    assert [timed.layer.name for timed in found.layers] == [row[0].name for row in rows]
    assert [timed.layer.output for timed in found.layers] == [row[-1].output for row in rows]
    assert sum(timed.layer.flop for timed in found.layers) == sum(layer.flop for layer in expected) > 0
    assert sum(timed.layer.parameters for timed in found.layers) == sum(p.numel() for p in network.parameters())
    norms = [timed.layer.kind for timed in found.layers if timed.layer.name == "backbone.norm8"]
    assert norms == ["L2Norm"]  # its eight operations are one layer


def test_times_are_medians_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_model()
    found = time_layers(network, inputs(), seconds=0)
    assert found.runs == 1
    assert time_layers(network, inputs(), seconds=600).runs == layers.MOST_RUNS
    assert all(timed.milliseconds > 0 for timed in found.layers)
    assert found.total == pytest.approx(sum(timed.milliseconds for timed in found.layers))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    now = iter(range(10**6))
    monkeypatch.setattr(layers.time, "perf_counter", lambda: next(now) / 1e3)  # a millisecond from look to look
    ticks = time_layers(network, inputs(), seconds=0)
    calls = len(list_layers(network, SIZE))
    assert ticks.total == pytest.approx(calls)
    assert ticks.whole == pytest.approx(1.0)


def test_a_layer_without_products_counts_its_values() -> None:
    class Alone(nn.Module):
        def forward(self, images: Tensor, by_level: bool = False) -> Tensor:
            return images.relu()

    (timed,) = time_layers(Alone(), inputs(), seconds=0).layers
    assert timed.layer.flop == 0
    assert timed.rate.operations == 2 * 3 * 64 * 64
    assert timed.rate.moved == 2 * 4 * timed.rate.operations


class Event:
    """In the place of CUDA's: records are a millisecond apart."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 1.0
        self.at = Event.now

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def test_layers_on_a_gpu_are_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: calls.append("wait"))
    network, images = tiny_model(), inputs()
    clocks = layers._GpuClocks()
    with torch.no_grad(), clocks.following(network), clocks:
        network(images, by_level=True)
    assert calls == ["sleep"]  # nothing is waited for before all is queued
    assert clocks.times() == [1.0] * len(clocks.layers)
    assert len(clocks.layers) == len(list_layers(network, SIZE))
    assert calls == ["sleep", "wait"]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
@pytest.mark.parametrize("transposed", [False, True])
def test_fused_convolutions_have_the_work_of_plain_ones(transposed: bool) -> None:
    """Those of oneDNN that a network for inference is made of, whose weights lie in an order of their own."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(6, 8, 2, stride=2).eval()
    x = torch.rand(2, 6, 10, 12).to(memory_format=torch.channels_last)
    place = [0, 0], *(([0, 0],) if transposed else ()), [2, 2], [1, 1], 1
    ops = torch.ops.mkldnn
    pack = ops._reorder_convolution_transpose_weight if transposed else ops._reorder_convolution_weight
    run = ops._convolution_transpose_pointwise if transposed else ops._convolution_pointwise
    with torch.no_grad():
        order = [0, 0], *(([0, 0],) if transposed else ()), [2, 2], [1, 1], 1, list(x.shape)
        packed = pack(conv.weight.detach(), *order)
        with Counter() as plain:
            expected = conv(x)
        with Counter() as fused:
            found = run(x, packed, conv.bias.detach(), *place, "relu", [], "")
    assert torch.allclose(found, expected.relu(), atol=1e-5)
    assert [layer.flop for layer in fused.layers] == [layer.flop for layer in plain.layers]
    assert [layer.bytes for layer in fused.layers] == [layer.bytes for layer in plain.layers]


@pytest.mark.parametrize(("name", "places", "weight"), [("winograd", 9, (36, 1, 8, 16)), ("pointwise", 1, (1, 8, 16))])
def test_a_convolution_of_ours_counts_as_any_other(name, places, weight) -> None:
    """By its schema alone, whose own test is that of the network for inference: 8 to 5 channels."""
    schema = f"refinedet::{name}(Tensor x, Tensor weight, Tensor bias, Tensor? other, int out_channels) -> Tensor"
    func = SimpleNamespace(_schema=torch._C.parse_schema(schema))
    arguments = torch.rand(2, 10, 12, 8), torch.rand(weight), torch.rand(16), None, 5
    assert flops._flop(func, arguments, {}, torch.rand(2, 10, 12, 8)) == 2 * places * 8 * 5 * (2 * 10 * 12)


@pytest.mark.skipif(not panels.available(), reason="the kernels of our own need AVX2 and FMA")
def test_maps_of_kernels_of_ours_are_told_as_all_others() -> None:
    x = torch.rand(2, 16, 8, 12).contiguous(memory_format=torch.channels_last)
    with Counter() as counter:
        MaxPool(2, 2, ceil_mode=False)(pointwise.convolve(x, *pointwise.transform(torch.rand(5, 16, 1, 1), None), 5))
    made = [layer.output for layer in counter.layers if layer.kind in ("pointwise", "max_pool")]
    assert made == [(2, 5, 8, 12), (2, 5, 4, 6)]
