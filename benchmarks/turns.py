"""Timing in turns, and the table of what was found."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

TURNS = 15
CALLS_PER_TURN = 3  # of which the best counts: it leaves out what other processes take and the caches they have emptied
SHORT = 0.01  # seconds: of a longer call one is a turn
BUDGET = 0.3  # seconds of a contestant, unless another is given; who has used them has had its turns
PAUSE = 0.2  # seconds in which the threads of the one before stop waiting for work

# Columns of peers, and the distributions whose versions are told below.
COLUMNS = {
    "PyTorch": ("torch", "torchvision"),
    "loop": (),
    "OpenVINO": ("openvino",),
    "ONNX Runtime": ("onnxruntime", "onnx"),
    "OpenCV": tuple(
        f"opencv-{kind}" for kind in ("python", "python-headless", "contrib-python", "contrib-python-headless")
    ),
    "ensemble_boxes": ("ensemble-boxes", "numba"),
    "MNN": ("MNN",),
    "eager": ("torch",),
}

Call = Callable[[], object]


def clock_of(device: str, threads: int = 1) -> Callable[[Call], float]:
    """Seconds of a call: CPU time on one thread, the clock on the wall on more, or the GPU's by CUDA events."""
    if device == "cuda":
        return _event_seconds
    return _cpu_seconds if threads == 1 else _wall_seconds


def take_turns(
    calls: Mapping[str, Call], clock: Callable[[Call], float], budget: float = BUDGET
) -> tuple[dict[str, float], int]:
    """The median of each one's turns in seconds, and the turns of the first.

    They alternate, so that a change in the machine's speed meets all of them.
    """
    turns: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for _ in range(TURNS):
        for name, call in calls.items():
            if spent[name] < budget:
                times = [clock(call)]
                if times[0] < SHORT:
                    times += [clock(call) for _ in range(CALLS_PER_TURN - 1)]
                turns[name].append(min(times))
                spent[name] += sum(times)
    return {name: statistics.median(times) for name, times in turns.items()}, len(next(iter(turns.values())))


def _cpu_seconds(call: Call) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def _wall_seconds(call: Call) -> float:
    time.sleep(PAUSE)
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _event_seconds(call: Call) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    seconds: float = begin.elapsed_time(end) / 1e3
    return seconds


@dataclass(frozen=True)
class Row:
    case: tuple[str, ...]  # operator, scenario, dtype, batch, device; or one name
    seconds: float
    ratios: Mapping[str, float]  # of the peers' times to ours
    share: float | None = None  # of the floor


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)  # of networks beside their targets

    def lines(self) -> Iterator[str]:
        if self.rows:
            yield from self._operators()
        if self.verdicts:
            yield "targets of benchmarks/targets.toml:"
            yield from self.verdicts

    def _operators(self) -> Iterator[str]:
        columns = [name for name in (*COLUMNS, *self._others()) if any(name in row.ratios for row in self.rows)]
        cells = [["case", "ours, us", *columns, "floor"]]
        cells += [
            [
                " ".join(row.case),
                f"{row.seconds * 1e6:.0f}",
                *(f"{row.ratios[name]:.1f}" if name in row.ratios else "-" for name in columns),
                "-" if row.share is None else f"{row.share:.0%}",
            ]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        yield "medians of turns, CPU time of one thread (more: wall time; cuda: events)."
        yield "Of a peer: how many times as long it takes."
        yield "floor: the least time there can be, as a share of ours, where refinedet.profiling.cost knows it."
        for first, *rest in cells:
            numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
            yield "  ".join([first.ljust(widths[0]), *numbers])
        for name in columns:
            yield f"{name}: {', '.join(_versions(name)) or 'in benchmarks/'}"
        absent = [name for name in COLUMNS if name != "loop" and not _versions(name)]
        if absent:
            yield f"not installed, so not measured (pip install 'refinedet[benchmark]'): {', '.join(absent)}"

    def _others(self) -> list[str]:
        return sorted({name for row in self.rows for name in row.ratios} - COLUMNS.keys())


def _versions(column: str) -> list[str]:
    found = []
    for distribution in COLUMNS.get(column, ()):
        try:
            found.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            continue
    return found
