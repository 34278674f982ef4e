"""Where the time of a model goes: stages, layers, operators and kernels beside what the machine can do at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from refinedet.errors import InputError, printable
from refinedet.files import write_text
from refinedet.inference.detector import Detector
from refinedet.inference.timing import current_device
from refinedet.models.optimized import images_at_a_time
from refinedet.parsing import to_json
from refinedet.preprocessing import prepare
from refinedet.profiling.ceilings import Ceilings, Rate, measure_ceilings
from refinedet.profiling.flops import list_layers
from refinedet.profiling.layers import LayerTimes, TimedLayer, time_layers
from refinedet.profiling.machine import Machine, available_memory, describe
from refinedet.profiling.model import Photographs
from refinedet.profiling.operators import TimedOperator, time_operators
from refinedet.profiling.roofline import Point, roofline_svg, write_roofline
from refinedet.profiling.stages import Pipeline, Stage, profile_stages, trace_call
from refinedet.profiling.tables import Table
from refinedet.profiling.trace import Kernel, Trace

SCHEMA = "refinedet-profile/1"
FILES = {"numbers": "profile.json", "trace": "trace.json", "roofline": "roofline.png", "page": "profile.html"}
SECONDS = 10.0  # for the stages and for the layers, or those of one call
STEPS = ("trace", "stages", "layers", "operators", "ceilings")
_ORDERS: dict[str, Callable[[TimedLayer], float]] = {
    "time": lambda timed: -timed.milliseconds,
    "flop": lambda timed: -timed.layer.flop,
    "bytes": lambda timed: -timed.layer.bytes,
    "rate": lambda timed: timed.rate.gflops,
    "run": lambda timed: 0.0,
}  # of `refinedet.choices.LAYER_ORDERS`
_STYLE = """
body { font: 14px sans-serif; margin: 2em; max-width: 80em } table { border-collapse: collapse }
td, th { padding: .15em .6em; border-bottom: 1px solid #ddd; text-align: left } .number { text-align: right }
svg { width: 100%; height: auto } g[id^="mark"]:hover { stroke: black; stroke-width: 2 }
"""


@dataclass(frozen=True)
class Profile:
    """Times are medians in milliseconds of calls with ``batch`` images."""

    model: str
    random_weights: bool
    size: tuple[int, int]
    batch: int
    images: str
    parameters: int
    machine: Machine
    ceilings: Ceilings
    stages: list[Stage]
    network: LayerTimes
    operators: list[TimedOperator]
    trace: Trace

    def write(self, folder: Path) -> None:
        """Write `FILES` into ``folder``, which is made, each whole or not at all."""
        self.trace.write(folder / FILES["trace"])
        write_roofline(folder / FILES["roofline"], self._points(), self.ceilings, self._title())
        write_text(folder / FILES["page"], self.page())
        write_text(folder / FILES["numbers"], to_json(self.to_json(), indent=1) + "\n")

    def about(self) -> str:
        """What was measured, and on what."""
        height, width = self.size
        weights = " (random weights, heads biased as in benchmark)" if self.random_weights else ""
        return (
            f"{printable(self.model)}{weights}, input {height} x {width}, {self.parameters / 1e6:.2f} M parameters\n"
            f"calls with {self.batch} of {self.images}\n{self.machine.text()}"
        )

    def tables(self, order: str) -> list[Table]:
        """Stages, layers (by ``order``, one of `refinedet.choices.LAYER_ORDERS`), operators and, on a GPU, kernels."""
        kernels = self.trace.kernels()
        tables = [self._stage_table(), self._layer_table(order), self._operator_table()]
        return [*tables, _kernel_table(kernels)] if kernels else tables

    def page(self) -> str:
        """A page of HTML that needs no other file."""
        heading = escape(f"Profile of {printable(self.model)}")
        about = "".join(f"<p>{escape(line)}</p>" for line in self.about().splitlines())
        picture = roofline_svg(self._points(), self.ceilings, self._title())
        tables = "\n".join(table.html() for table in self.tables("time"))
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
            f"<style>{_STYLE}</style></head><body>\n<h1>{heading}</h1>\n{about}\n"
            f"<h2>Roofline</h2>\n{picture}\n{tables}\n</body></html>\n"
        )

    def to_json(self) -> dict[str, Any]:
        """The document profile.json; units are in the names."""
        own = ("model", "random_weights", "size", "batch", "images", "parameters")
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in own},
            "machine": asdict(self.machine),
            "ceilings": self.ceilings.to_json(),
            "stages": [_stage_json(stage) for stage in self.stages],
            "network": {
                "milliseconds": self.network.whole,
                "layers_milliseconds": self.network.total,
                "gflop": self._gflop(),
                "runs": self.network.runs,
            },
            "layers": [self._layer_json(timed) for timed in self.network.layers],
            "operators": [
                {"name": timed.name, "case": timed.case, **self._rate_json(timed.rate)} for timed in self.operators
            ],
            "kernels": [asdict(kernel) for kernel in self.trace.kernels()],
        }

    def _layer_json(self, timed: TimedLayer) -> dict[str, Any]:
        layer = asdict(timed.layer)
        del layer["bytes"]  # the rate has them
        return {**layer, "share": timed.milliseconds / self.network.total, **self._rate_json(timed.rate)}

    def _rate_json(self, rate: Rate) -> dict[str, Any]:
        return {
            "milliseconds": rate.milliseconds,
            "operations": rate.operations,
            "bytes": rate.moved,
            "gflop_per_second": rate.gflops,
            "gb_per_second": rate.bandwidth,
            "ceiling_share": rate.share(self.ceilings),
            "bound": rate.bound(self.ceilings),
        }

    def _title(self) -> str:
        return f"{self.machine.cpu if self.machine.driver is None else self.machine.device}: {self.ceilings.where()}"

    def _gflop(self) -> float:
        return sum(timed.layer.flop for timed in self.network.layers) / 1e9

    def _points(self) -> list[Point]:
        layers = [Point(f"{timed.layer.name} {timed.layer.kind}", "layer", timed.rate) for timed in self.network.layers]
        return layers + [Point(timed.name, "operator", timed.rate) for timed in self.operators]

    def _stage_table(self) -> Table:
        whole = sum(stage.milliseconds for stage in self.stages)
        rows = [
            (
                stage.name,
                f"{stage.milliseconds:.2f}",
                f"{stage.milliseconds / whole:.1%}",
                _megabytes(stage.allocated.peak),
                _megabytes(stage.peaks.on_gpu),
                _megabytes(stage.peaks.resident),
            )
            for stage in self.stages
        ]
        header = ("stage", "ms", "share", "allocated MB", "GPU MB", "resident MB")
        images = f"{self.batch} image{'' if self.batch == 1 else 's'}"
        note = (
            f"{_medians(self.stages[0].calls)}; allocated: by torch on the device, at most, above what the stage began "
            "with; GPU, resident: in all"
        )
        return Table(f"Stages of a call with {images}: {whole:.2f} ms", header, rows, note=note)

    def _layer_table(self, order: str) -> Table:
        rows = [
            (
                timed.layer.name,
                timed.layer.kind,
                "x".join(map(str, timed.layer.output)),
                f"{timed.milliseconds:.3f}",
                f"{timed.milliseconds / self.network.total:.1%}",
                f"{timed.layer.flop / 1e9:.3f}",
                *self._rate_cells(timed.rate),
            )
            for timed in sorted(self.network.layers, key=_ORDERS[order])
        ]
        header = ("layer", "kind", "output", "ms", "share", "GFLOP", *_RATE_HEADER)
        total, whole = self.network.total, self.network.whole
        note = (
            f"sum of the layers {total:.2f} ms, {total / whole:.0%} of the whole network without clocks inside, "
            f"{whole:.2f} ms; {_medians(self.network.runs)}; {self._gflop():.2f} GFLOP"
        )
        return Table(f"Layers of the network, {len(rows)}", header, rows, texts=3, note=note)

    def _operator_table(self) -> Table:
        rows = [
            (
                timed.name,
                timed.case,
                f"{timed.rate.milliseconds:.3f}",
                f"{timed.rate.operations / 1e9:.4f}",
                *self._rate_cells(timed.rate),
            )
            for timed in self.operators
        ]
        header = ("operator", "on", "ms", "GFLOP", *_RATE_HEADER)
        return Table("Operators", header, rows, texts=2, note=self.ceilings.text())

    def _rate_cells(self, rate: Rate) -> tuple[str, ...]:
        return (
            f"{rate.gflops:.2f}",
            f"{rate.moved / 1e6:.2f}",
            f"{rate.bandwidth:.2f}",
            f"{rate.share(self.ceilings):.0%}",
            rate.bound(self.ceilings),
        )


_RATE_HEADER = ("GFLOP/s", "MB", "GB/s", "of ceiling", "bound by")


def profile(
    model: str,
    detector: Detector,
    photographs: Photographs,
    batch: int = 1,
    *,
    random_weights: bool = False,
    on_step: Callable[[str], object] = lambda step: None,
) -> Profile:
    """Measure a detector where it is; ``on_step`` is told which of `STEPS` comes next.

    Raises InputError for a ``batch`` that needs more memory than is free.
    """
    if detector.device.type == "cpu":
        _check_memory(detector, batch)
    with current_device(detector.device):
        return _profile(model, detector, photographs, batch, random_weights, on_step)


def _profile(
    model: str,
    detector: Detector,
    photographs: Photographs,
    batch: int,
    random_weights: bool,
    on_step: Callable[[str], object],
) -> Profile:
    device = detector.device
    on_step("trace")
    pipeline = Pipeline(detector, photographs, batch)
    trace = trace_call(pipeline)
    on_step("stages")
    stages = profile_stages(pipeline, trace, SECONDS)
    on_step("layers")
    arrays = [photographs.decode(index) for index in photographs.batch(0, batch)]
    inputs = torch.stack([prepare(array, detector.size, detector.preprocessing) for array in arrays])
    inputs = inputs.to(device, detector.dtype, memory_format=detector.trained_network.backbone.memory_format)
    together = inputs[: images_at_a_time(inputs)] if pipeline.detector.optimized else inputs
    times = time_layers(pipeline.detector.running, together, SECONDS)
    on_step("operators")
    operators = list(time_operators(pipeline.detector.run(inputs), detector.network.anchors, detector.preset))
    on_step("ceilings")
    ceilings = measure_ceilings(device, detector.dtype)
    parameters = sum(parameter.numel() for parameter in detector.network.parameters())
    return Profile(
        model, random_weights, detector.size, batch, photographs.what, parameters, describe(device), ceilings, stages,
        times, operators, trace,
    )  # fmt: skip


def _check_memory(detector: Detector, batch: int) -> None:
    needed = batch * max(layer.bytes for layer in list_layers(detector.network, detector.size))
    available = available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"a batch of {batch} needs at least {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB "
            "are free; give a smaller one"
        )


def _stage_json(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "milliseconds": stage.milliseconds,
        "calls": stage.calls,
        "allocated_peak_bytes": stage.allocated.peak,
        "allocated_held_bytes": stage.allocated.held,
        "gpu_peak_bytes": stage.peaks.on_gpu,
        "resident_peak_bytes": stage.peaks.resident,
    }


def _kernel_table(kernels: Sequence[Kernel]) -> Table:
    rows = [(kernel.name, str(kernel.calls), f"{kernel.milliseconds:.3f}", f"{kernel.share:.1%}") for kernel in kernels]
    return Table("Kernels of a call", ("kernel", "calls", "ms", "share"), rows)


def _medians(calls: int) -> str:
    return "one call" if calls == 1 else f"medians of {calls} calls, {SECONDS:.0f} s at most"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"
