"""The time of every layer of a network, beside its work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refinedet.inference.timing import repetitions
from refinedet.profiling.ceilings import Rate
from refinedet.profiling.flops import Counter, Layer

MOST_RUNS = 30
SLEEP = 100_000_000  # cycles of a GPU: in 50 ms the host has queued all layers


@dataclass(frozen=True)
class TimedLayer:
    """A layer and its median time in milliseconds."""

    layer: Layer
    milliseconds: float

    @property
    def rate(self) -> Rate:
        """A layer without products (`Layer.flop` is 0) counts with one operation per value that it puts out."""
        operations = self.layer.flop or torch.Size(self.layer.output).numel()
        return Rate(operations, self.layer.bytes, self.milliseconds)


@dataclass(frozen=True)
class LayerTimes:
    """All layers of a forward pass, in the order they run; ``whole``: the median of passes in milliseconds without
    clocks inside."""

    layers: list[TimedLayer]
    whole: float
    runs: int

    @property
    def total(self) -> float:
        """The sum of the layers' times."""
        return sum(each.milliseconds for each in self.layers)


def time_layers(network: nn.Module, images: Tensor, seconds: float) -> LayerTimes:
    """Run ``network`` on prepared ``images`` [B,3,H,W] of its device and dtype, as often as ``seconds`` allow, at least
    once.

    Passes with and without clocks take turns. The network is to be in eval mode, and warm.
    """
    alone: list[float] = []
    passes: list[_Clocks | _GpuClocks] = []
    with torch.inference_mode(False), torch.no_grad():
        for _ in repetitions(seconds, MOST_RUNS):
            alone.append(_time_pass(network, images))
            passes.append(_clock_pass(network, images))
    times = [statistics.median(column) for column in zip(*(each.times() for each in passes), strict=True)]
    layers = [TimedLayer(*pair) for pair in zip(passes[0].layers, times, strict=True)]
    return LayerTimes(_by_module(layers, network), statistics.median(alone), len(passes))


def _time_pass(network: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    network(images, by_level=True)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return (time.perf_counter() - start) * 1e3


def _clock_pass(network: nn.Module, images: Tensor) -> _Clocks | _GpuClocks:
    clocks: _Clocks | _GpuClocks = _GpuClocks() if images.device.type == "cuda" else _Clocks()
    with clocks.following(network), clocks:
        network(images, by_level=True)
    return clocks


class _Clocks(Counter):
    """Counts the operations in its block, and takes the time of each."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0
        self._milliseconds: list[float] = []  # of `layers`

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        start = time.perf_counter()
        result = func(*args, **kwargs)
        self._last = (time.perf_counter() - start) * 1e3
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        super().note(func, args, kwargs, result)
        self._milliseconds.append(self._last)

    def times(self) -> list[float]:
        """Milliseconds of `layers`."""
        return self._milliseconds


class _GpuClocks(Counter):
    """As `_Clocks`, by events around each operation. The GPU sleeps until the host has queued them all."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[torch.cuda.Event, ...] = ()
        self._events: list[tuple[torch.cuda.Event, ...]] = []  # of `layers`
        torch.cuda._sleep(SLEEP)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._last = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._last[0].record()
        result = func(*args, **kwargs)
        self._last[1].record()
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        super().note(func, args, kwargs, result)
        self._events.append(self._last)

    def times(self) -> list[float]:
        """Milliseconds of `layers`, when the GPU is done."""
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in self._events]


def _by_module(layers: Sequence[TimedLayer], network: nn.Module) -> list[TimedLayer]:
    """Operations that one module without parts calls in a row as one layer, of the kind of the module."""
    leaves = {name: type(module).__name__ for name, module in network.named_modules() if not list(module.children())}
    joined: list[TimedLayer] = []
    for timed in layers:
        name = timed.layer.name
        if joined and name in leaves and joined[-1].layer.name == name:
            joined[-1] = _sum(joined[-1], timed, leaves[name])
        else:
            joined.append(timed)
    return joined


def _sum(first: TimedLayer, second: TimedLayer, kind: str) -> TimedLayer:
    a, b = first.layer, second.layer
    layer = Layer(a.name, kind, b.output, a.flop + b.flop, a.parameters + b.parameters, a.bytes + b.bytes)
    return TimedLayer(layer, first.milliseconds + second.milliseconds)
