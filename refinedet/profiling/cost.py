"""Cost model of the CUDA kernels: bytes, instructions, launches and predicted times, per operator and GPU.

``python -m refinedet.profiling.cost OPERATOR`` prints the table of docs/kernels/<op>.md, without a name that of
cost.md. All times are predictions. A kernel takes the longest of three times: its bytes at the bandwidth of the memory,
its instructions at the rate they issue, and its longest block, once per wave of blocks. Launches follow one another in
a CUDA graph. Bytes, instructions and cycles are counted where the kernels' PTX runs on the CPU: counts.json beside this
file, which `tools/count_kernels.py` writes.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

WARP = 32
EXPONENTIAL = 40  # float32 operations
DECODE = 2 * EXPONENTIAL + 10
PAIR = 25  # intersection, union, comparison

ROW = 36  # bytes of a row of detect: box, score, label, index
KEY = 8
TRUTHS = 8  # ground truths of an image
TYPES = {4: "", 2: "float16, "}  # element size -> in the name of a counted case
BATCHES = (1, 32)  # that are counted
COPY = 1350  # cycles of a block of torch.cat: two accesses to DRAM that depend on each other, 150 of arithmetic


@dataclass(frozen=True)
class Device:
    """Clocks are at or a little below the boost clocks of the data sheets, bandwidths their peaks."""

    name: str
    multiprocessors: int
    cores: int  # float32 lanes of a multiprocessor
    clock: float  # GHz
    bandwidth: float  # GB/s
    launch: float  # microseconds from one dependent launch to the next, in a graph
    issue: float  # instructions of warps that a multiprocessor issues per cycle, of at most 4 (60 and 50 % of them)


DEVICES = (
    Device("Titan X (Maxwell)", 24, 128, 1.05, 336, 4.0, 2.4),
    Device("Titan X (Pascal)", 28, 128, 1.45, 480, 4.0, 2.4),
    Device("V100", 80, 64, 1.45, 900, 2.0, 2.0),
    Device("A100", 108, 64, 1.41, 1555, 2.0, 2.0),
    Device("H100", 132, 128, 1.70, 3350, 2.0, 2.4),
)


@dataclass(frozen=True)
class Kernel:
    """One launch."""

    name: str
    blocks: int = 1
    resident: int = 8  # blocks on a multiprocessor at a time (docs/kernels/resources.md, the least of the GPUs)
    chain: float = 0  # cycles of the block that takes longest
    moved: float = 0  # bytes that have to come from memory or go there: touched, each once
    instructions: float = 0  # of warps

    def microseconds(self, device: Device) -> float:
        """Predicted time without the launch."""
        waves = ceil(self.blocks / (self.resident * device.multiprocessors))
        latency = waves * self.chain / device.clock / 1e3
        issue = self.instructions / (device.multiprocessors * device.issue * device.clock) / 1e3
        return max(latency, _memory(self.moved, device), issue)


class Work(NamedTuple):
    """What a call of an operator needs, wherever it runs."""

    minimum: float  # bytes: inputs that have to be looked at, outputs
    operations: float  # float32 operations


@dataclass(frozen=True)
class Cost:
    """One call of an operator."""

    work: Work
    kernels: tuple[Kernel, ...]
    syncs: int = 0  # times the host waits

    @property
    def minimum(self) -> float:
        return self.work.minimum

    @property
    def operations(self) -> float:
        return self.work.operations

    @property
    def launches(self) -> int:
        """Kernels and memsets."""
        return len(self.kernels)

    @property
    def moved(self) -> float:
        return sum(kernel.moved for kernel in self.kernels)

    def predicted(self, device: Device) -> float:
        """Microseconds on the device."""
        return sum(device.launch + kernel.microseconds(device) for kernel in self.kernels)

    def floor(self, device: Device) -> float:
        """Microseconds that no implementation can beat: one launch, the minimum of bytes, the operations."""
        return device.launch + max(_memory(self.minimum, device), _compute(self.operations, device))


@dataclass(frozen=True)
class Network:
    """What a trained network puts out, per image. The shares are those of the golden cases, tests/golden/detout."""

    name: str
    anchors: int
    classes: int
    pairs: float  # candidates (anchor, class) per surviving anchor
    touch: float  # of match: share of the pairs (32 anchors, ground truth) that touch (docs/kernels/match.md)
    survivors: float = 0.02  # share of anchors with an object in them


NETWORKS = (
    Network("VOC 320", 6375, 21, pairs=1.16, touch=0.35),
    Network("VOC 512", 16320, 21, pairs=1.16, touch=0.20),
    Network("COCO 320", 6375, 81, pairs=2.32, touch=0.35),
    Network("COCO 512", 16320, 81, pairs=2.32, touch=0.20),
)


# --- What was counted -------------------------------------------------------------------------------------------------


@cache
def read_counts() -> dict[str, Any]:
    """`tools/count_kernels.py` writes them; docs/kernels/counts.md says more of the same."""
    counts: dict[str, Any] = json.loads(Path(__file__).with_name("counts.json").read_text())
    return counts


def _kernels(entry: dict[str, Any], scale: float = 1) -> tuple[Kernel, ...]:
    """Those of a counted call, with so many times its images: they are alike, and so are their blocks."""
    resident = read_counts()["resident"]
    return tuple(
        Kernel(
            name.partition("<")[0],
            ceil(blocks * scale),
            resident[name],
            chain,
            moved * scale,
            instructions * scale,
        )
        for name, blocks, chain, instructions, moved in entry["launches"]
    )


def _of_network(operator: str, net: Network, batch: int, what: str = "") -> tuple[Kernel, ...]:
    """From the counted batch that is as large, or the next smaller one.

    Raises ValueError where none of the network was counted.
    """
    counted = read_counts()["operators"][operator]
    names = [f"{net.name}, {what}batch {number}" for number in reversed(BATCHES) if number <= max(batch, 1)]
    entry = next((counted[name] for name in names if name in counted), None)
    if entry is None:
        raise ValueError(
            f"net is {net.name!r}, {what or 'float32, '}but of {operator} are counted: {', '.join(counted)}"
        )
    return _kernels(entry, batch / entry["images"])


def _with_anchors_of(net: Network) -> Network:
    """The network that stands for those with the same anchors, where no more than these counts."""
    return next(other for other in NETWORKS if other.anchors == net.anchors)


# --- The operators ----------------------------------------------------------------------------------------------------


def detect_work(net: Network, batch: int, element: int = 4) -> Work:
    """docs/kernels/detect.md derives it."""
    anchors, classes = net.anchors, net.classes
    survivors = anchors * net.survivors
    pairs = survivors * net.pairs
    read = 2 * element * anchors + (8 * element + classes * element + 16) * survivors
    score = EXPONENTIAL * anchors + survivors * (2 * DECODE + (EXPONENTIAL + 4) * classes)
    return Work(batch * (read + ROW * 500 + 8), batch * (score + PAIR * pairs * min(pairs, 64)))


def detect(net: Network, batch: int, *, element: int = 4) -> Cost:
    memset = Kernel("memset", moved=4 * batch * net.classes)
    kernels = memset, *_of_network("detect", net, batch, TYPES[element])
    return Cost(detect_work(net, batch, element), kernels)


def concatenation(net: Network, batch: int, *, element: int = 4) -> Cost:
    """What `detect` saves by reading the levels: `torch.cat` of each of the four outputs. Not counted: where the
    convolutions do not put out NHWC, as many bytes once more for the order."""
    kernels = tuple(
        Kernel("torch.cat", ceil(copied / 4096), chain=COPY, moved=2 * copied)
        for copied in (batch * net.anchors * element * values for values in (4, 2, 4, net.classes))
    )
    return Cost(Work(sum(kernel.moved for kernel in kernels), operations=0), kernels)


def refine_work(net: Network, batch: int, element: int = 4) -> Work:
    """docs/kernels/refine.md derives it."""
    rows = batch * net.anchors
    return Work((4 * element + 16) * rows + 16 * net.anchors, rows * DECODE)


def refine(net: Network, batch: int, *, element: int = 4) -> Cost:
    kernels = _of_network("refine", _with_anchors_of(net), batch, TYPES[element])
    return Cost(refine_work(net, batch, element), kernels)


def match_work(net: Network, batch: int) -> Work:
    """Of `TRUTHS` per image."""
    rows, boxes = batch * net.anchors, batch * TRUTHS
    return Work(16 * net.anchors + (16 + 8) * boxes + 36 * rows, rows * (PAIR * TRUTHS * net.touch + 40))


def match(net: Network, batch: int) -> Cost:
    memset = Kernel("memset", moved=KEY * batch * TRUTHS)
    return Cost(match_work(net, batch), (memset, *_of_network("match", _with_anchors_of(net), batch)))


def mine_work(net: Network, batch: int, element: int = 4) -> Work:
    """From logits, every anchor eligible: the first steps of training, the costliest case."""
    rows = batch * net.anchors
    return Work(rows * (8 + 4 + 4 + net.classes * element + 1), rows * net.classes * (EXPONENTIAL + 3))


def mine(net: Network, batch: int, *, element: int = 4) -> Cost:
    memset = Kernel("memset", moved=8 * batch)
    return Cost(mine_work(net, batch, element), (memset, *_of_network("mine", net, batch, TYPES[element])))


def nms(boxes: int) -> Cost:
    """Of 20 classes around 40 objects, without the sort before it, which is torch's.

    Raises ValueError for a number that was not counted: what is kept decides, and it does not grow with the boxes.
    """
    entry = _of_boxes("nms", boxes)
    bands = [min(4096, boxes - first) for first in range(0, boxes, 4096)]
    pairs = sum(band * (band + 64) / 2 for band in bands)
    return Cost(Work(boxes * (16 + 20) + KEY * entry["kept"], PAIR * pairs), _kernels(entry), syncs=1)


def soft_nms(boxes: int) -> Cost:
    """Of one image, 20 classes around 40 objects, without the sorts before and after it, which are torch's.

    Raises ValueError for a number that was not counted.
    """
    # Nearly all boxes are picked, and meet half of their class.
    work = Work(boxes * (16 + 4 + 8 + 4), PAIR * boxes * boxes / 40)
    return Cost(work, _kernels(_of_boxes("soft_nms", boxes)))


def vote(boxes: int) -> Cost:
    """Of one image, 20 classes around 40 objects, without the two sorts before it and the one after, which are torch's.

    Raises ValueError for a number that was not counted.
    """
    entry = _of_boxes("vote", boxes)
    # A box meets half of the tops of its class.
    work = Work(boxes * (16 + 4 + 8 + 16 + 20), PAIR * boxes * entry["kept"] / 40 + 10 * boxes)
    return Cost(work, _kernels(entry))


def _of_boxes(operator: str, boxes: int) -> dict[str, Any]:
    """What was counted of so many boxes of 20 classes."""
    counted: dict[str, dict[str, Any]] = read_counts()["operators"][operator]
    entry = counted.get(f"{boxes:,} boxes of 20 classes")
    if entry is None:
        raise ValueError(f"boxes is {boxes}, but counted are: {', '.join(counted)}")
    return entry


OPERATORS: dict[str, Callable[[Network, int], Cost]] = {
    "detect": detect,
    "refine": refine,
    "match": match,
    "mine": mine,
}

# Those that have no size of a network, but a number of boxes.
OF_BOXES: dict[str, Callable[[int], Cost]] = {"nms": nms, "soft_nms": soft_nms, "vote": vote}
BOXES = (1000, 6375, 20000)  # that are counted


def _memory(moved: float, device: Device) -> float:
    return moved / device.bandwidth / 1e3


def _compute(operations: float, device: Device) -> float:
    return operations / (device.multiprocessors * device.cores * device.clock) / 1e3


_HEADER = "| case | batch | launches | host syncs | minimum | moved | ratio | operations |"
_RULE = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"


def table(name: str) -> str:
    """The costs of an operator, for docs/kernels/<op>.md."""
    if name in OF_BOXES:
        cases = [(f"{boxes:,} boxes", 1, OF_BOXES[name](boxes)) for boxes in BOXES]
    else:
        cases = [(net.name, batch, OPERATORS[name](net, batch)) for net in NETWORKS for batch in (1, 32)]
    if name == "detect":
        net = NETWORKS[0]
        cases += [(f"concatenation, {net.name}", batch, concatenation(net, batch)) for batch in (1, 32)]
    return _table([_row(*case) for case in cases])


def summary() -> str:
    """VOC 320 of every operator, for docs/kernels/cost.md."""
    net = NETWORKS[0]
    calls = [(name, batch, OPERATORS[name](net, batch)) for name in OPERATORS for batch in (1, 32)]
    calls += [(f"{name}, {BOXES[0]:,} boxes", 1, of_boxes(BOXES[0])) for name, of_boxes in OF_BOXES.items()]
    return _table([_row(*call) for call in calls])


def _table(rows: list[str]) -> str:
    header = _HEADER + "".join(f" {device.name} |" for device in DEVICES)
    return "\n".join([header, _RULE + " ---: |" * len(DEVICES), *rows, ""])


def _row(case: str, batch: int, cost: Cost) -> str:
    cells = [case, str(batch), str(cost.launches), str(cost.syncs), _size(cost.minimum), _size(cost.moved)]
    cells += [f"{cost.moved / cost.minimum:.2f}", f"{cost.operations / 1e6:.1f} M"]
    cells += [f"{cost.predicted(device):.0f} ({cost.floor(device):.0f})" for device in DEVICES]
    return f"| {' | '.join(cells)} |"


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"


if __name__ == "__main__":
    print(table(sys.argv[1]) if sys.argv[1:] else summary(), end="")
