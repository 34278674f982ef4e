"""Cost model of the CUDA kernels: bytes, operations, launches and predicted times, per operator and GPU.

``python -m refinedet.profiling.cost OPERATOR`` prints the table of docs/kernels/<op>.md, without a name that of
cost.md. All times are predictions. A kernel takes the longest of three times: its bytes at the bandwidth of the memory,
its instructions at the rate they issue, and its longest chain of dependent steps, once per wave of blocks. Launches
follow one another in a CUDA graph. Chains and instructions are derived in docs/kernels/<op>.md.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2

# Cycles, assumed on every GPU.
DRAM = 600
L2 = 250  # also of an atomic operation
BARRIER = 40
SORT_STAGE = 80  # of a bitonic sort in shared memory, barrier included
KEPT_BOX = 45  # a step of the greedy walk over a tile
TILE_ROWS = 600  # words of a tile of 64 boxes

WARP = 32
EXPONENTIAL = 40  # float32 operations
DECODE = 2 * EXPONENTIAL + 10
PAIR = 25  # intersection, union, comparison

ROW = 36  # bytes of a row of detect: box, score, label, index
KEY = 8


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
    chain: float = 0  # cycles of a block's longest dependent sequence
    moved: float = 0  # bytes read and written, those of the workspace included
    operations: float = 0  # float32 operations that the result needs
    instructions: float = 0  # of warps; counted in the machine code of sm_90 where they, not a chain, take the time

    def microseconds(self, device: Device) -> float:
        """Predicted time without the launch."""
        waves = ceil(self.blocks / (self.resident * device.multiprocessors))
        latency = waves * self.chain / device.clock / 1e3
        instructions = self.instructions or self.operations / WARP
        issue = instructions / (device.multiprocessors * device.issue * device.clock) / 1e3
        return max(latency, _memory(self.moved, device), issue)


@dataclass(frozen=True)
class Cost:
    """One call of an operator."""

    minimum: float  # bytes: inputs that have to be looked at, outputs
    kernels: tuple[Kernel, ...]
    syncs: int = 0  # times the host waits

    @property
    def launches(self) -> int:
        """Kernels and memsets."""
        return len(self.kernels)

    @property
    def moved(self) -> float:
        return sum(kernel.moved for kernel in self.kernels)

    @property
    def operations(self) -> float:
        return sum(kernel.operations for kernel in self.kernels)

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
    kept: float  # of them, per surviving anchor, after suppression
    touch: float  # of match: share of the pairs (32 anchors, ground truth) that touch (docs/kernels/match.md)
    survivors: float = 0.02  # share of anchors with an object in them
    busiest: float = 0.4  # share of the largest class


NETWORKS = (
    Network("VOC 320", 6375, 21, pairs=1.16, kept=0.60, touch=0.35),
    Network("VOC 512", 16320, 21, pairs=1.16, kept=0.60, touch=0.20),
    Network("COCO 320", 6375, 81, pairs=2.32, kept=1.55, touch=0.35),
    Network("COCO 512", 16320, 81, pairs=2.32, kept=1.55, touch=0.20),
)


def detect(net: Network, batch: int, *, top_k: int = 1000, keep_top_k: int = 500, element: int = 4) -> Cost:
    """Derivation: docs/kernels/detect.md."""
    anchors, classes = net.anchors, net.classes
    survivors = anchors * net.survivors
    pairs, kept = survivors * net.pairs, survivors * net.kept
    rows = min(kept, keep_top_k)
    largest, largest_kept = min(pairs * net.busiest, top_k), kept * net.busiest
    read = 2 * element * anchors + (8 * element + classes * element + 16) * survivors
    written = ROW * keep_top_k + 8
    blocks = ceil(anchors / 256)
    return Cost(
        minimum=batch * (read + written),
        kernels=(
            Kernel("memset", moved=4 * batch * classes),
            Kernel(
                "score_anchors_kernel",
                blocks=batch * blocks,
                resident=5,
                chain=3 * DRAM + 650 + 12 * classes + 5 * BARRIER + 2 * L2,
                moved=batch * (read + 4 * classes + 16 * survivors + KEY * pairs),
                operations=batch * (EXPONENTIAL * anchors + survivors * (2 * DECODE + (EXPONENTIAL + 4) * classes)),
            ),
            Kernel(
                "suppress_class_kernel",
                blocks=batch * (classes - 1),
                resident=4,
                chain=4 * L2
                + _sort(largest)
                + ceil(largest / 64) * (TILE_ROWS + 6 * BARRIER)
                + KEPT_BOX * largest_kept,
                moved=batch * (4 * classes + (KEY + 16) * pairs + KEY * kept),
                operations=batch * PAIR * pairs * min(pairs, 64),
            ),
            Kernel(
                "merge_classes_kernel",
                blocks=batch,
                resident=3,
                chain=3 * L2 + _select(kept, keep_top_k, 512) + _sort(rows) + 4 * BARRIER + 100,
                moved=batch * (KEY * kept + 16 * rows + written),
            ),
        ),
    )


def concatenation(net: Network, batch: int, *, element: int = 4) -> Cost:
    """What `detect` saves by reading the levels: `torch.cat` of each of the four outputs. Not counted: where the
    convolutions do not put out NHWC, as many bytes once more for the order."""
    kernels = tuple(
        Kernel("torch.cat", ceil(copied / 4096), chain=2 * DRAM + 150, moved=2 * copied)
        for copied in (batch * net.anchors * element * values for values in (4, 2, 4, net.classes))
    )
    return Cost(minimum=sum(kernel.moved for kernel in kernels), kernels=kernels)


def refine(net: Network, batch: int, *, element: int = 4) -> Cost:
    """Derivation: docs/kernels/refine.md."""
    rows = batch * net.anchors
    moved = (4 * element + 16) * rows + 16 * net.anchors
    kernel = Kernel(
        "refine_anchors_kernel",
        blocks=ceil(net.anchors / 256) * batch,
        chain=2 * DRAM + 150,
        moved=moved,
        operations=rows * DECODE,
    )
    return Cost(minimum=moved, kernels=(kernel,))


def match(net: Network, batch: int, *, truths: int = 8) -> Cost:
    """``truths`` per image, of which one wants an anchor that is taken. Derivation: docs/kernels/match.md."""
    rows, boxes, regions = batch * net.anchors, batch * truths, batch * net.anchors / WARP
    touching = truths * net.touch
    read = 16 * net.anchors + (16 + 8) * boxes
    written = 36 * rows
    return Cost(
        minimum=read + written,
        kernels=(
            Kernel("memset", moved=KEY * boxes),
            Kernel(
                "match_anchors_kernel",
                blocks=ceil(net.anchors / 256) * batch,
                resident=6,
                chain=3 * DRAM + 20 * 30 + touching * 250 + 3 * BARRIER + 3 * L2,
                moved=read + written + KEY * boxes + 16 * regions,
                operations=rows * (PAIR * touching + 40),
                instructions=regions * (330 + 91 * touching),
            ),
            Kernel(
                "assign_truths_kernel",
                blocks=batch,
                resident=2,
                chain=3 * L2 + (2 * L2 + ceil(net.anchors / 32 / 512) * L2 + 6 * BARRIER + 600) + 4 * L2 + 400,
                moved=16 * regions + (2 * KEY + 24 + 36) * boxes,
            ),
        ),
    )


def mine(net: Network, batch: int, *, element: int = 4) -> Cost:
    """From logits, every anchor eligible: the first steps of training, the costliest case.

    Derivation: docs/kernels/mine.md.
    """
    rows = batch * net.anchors
    logits = net.classes * element
    lanes = min(WARP, 2 ** ceil(log2(ceil(net.classes / 4))))  # threads per anchor
    rounds = ceil(256 / (256 / lanes))
    passes = 4  # of the selection
    return Cost(
        minimum=rows * (8 + 4 + 4 + logits + 1),
        kernels=(
            Kernel("memset", moved=8 * batch),
            Kernel(
                "rank_logits_kernel",
                blocks=ceil(net.anchors / 256) * batch,
                resident=5,
                chain=DRAM + rounds * (DRAM + 200) + 12 * net.classes + 6 * BARRIER + 2 * L2,
                moved=rows * (8 + 4 + 4 + logits + 4),
                operations=rows * net.classes * (EXPONENTIAL + 3),
                instructions=rows / WARP * (210 + 120 * net.classes),
            ),
            Kernel(
                "select_negatives_kernel",
                blocks=batch,
                resident=2,
                chain=(passes + 1) * ceil(net.anchors / 4096) * L2 + passes * (3 * BARRIER + 300) + 2 * L2,
                moved=rows * (4 * (passes + 1) + 1),
            ),
        ),
    )


def nms(boxes: int, *, kept: float = 0.2, element: int = 4) -> Cost:
    """Without the sort before it, which is torch's. Derivation: docs/kernels/nms.md."""
    kernels = [Kernel("gather_boxes_kernel", ceil(boxes / 512), chain=2 * DRAM + 300, moved=boxes * (4 * element + 44))]
    for first in range(0, boxes, 4096):
        band, rest = min(4096, boxes - first), max(0, boxes - first - 4096)
        tiles = ceil(band / 64)
        words = 8 * band * tiles
        kernels += [
            Kernel(
                "compare_band_kernel",
                blocks=tiles * (tiles + 1) // 2,
                chain=2000,
                moved=24 * band + words,
                operations=PAIR * 64 * 64 * tiles * (tiles + 1) / 2,
            ),
            Kernel("resolve_band_kernel", chain=350 * tiles + KEPT_BOX * kept * band, moved=words + 40 * kept * band),
        ]
        if rest:
            pairs = kept * band * rest
            kernels.append(
                Kernel("suppress_rest_kernel", ceil(rest / 64), chain=2000, moved=24 * rest, operations=PAIR * pairs)
            )
    return Cost(minimum=boxes * (4 * element + 20) + KEY * kept * boxes, kernels=tuple(kernels), syncs=1)


OPERATORS: dict[str, Callable[[Network, int], Cost]] = {
    "detect": detect,
    "refine": refine,
    "match": match,
    "mine": mine,
}


def _memory(moved: float, device: Device) -> float:
    return moved / device.bandwidth / 1e3


def _compute(operations: float, device: Device) -> float:
    return operations / (device.multiprocessors * device.cores * device.clock) / 1e3


def _sort(keys: float) -> float:
    """Cycles to sort so many keys in shared memory."""
    steps = ceil(log2(max(keys, 2)))
    return SORT_STAGE * steps * (steps + 1) / 2


def _select(keys: float, wanted: int, threads: int) -> float:
    """Cycles to find the best ``wanted`` of so many keys: about three passes, four keys of each thread in flight."""
    if keys <= wanted:
        return 0
    return 3 * (ceil(keys / (4 * threads)) * L2 + 3 * BARRIER + 300)


_HEADER = "| case | batch | launches | host syncs | minimum | moved | ratio | operations |"
_RULE = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"


def table(name: str) -> str:
    """The costs of an operator, for docs/kernels/<op>.md."""
    if name == "nms":
        cases = [(f"{boxes:,} boxes, a fifth kept", 1, nms(boxes)) for boxes in (1000, 6375, 20000)]
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
    return _table([_row(*call) for call in [*calls, ("nms, 1,000 boxes", 1, nms(1000))]])


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
