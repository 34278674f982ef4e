"""The multi-scale protocol of VOC beside the loop a user writes: image by image, scale by scale, mirrored and not, with
PyTorch, torchvision and NumPy around the same network.

    python benchmarks/network/bench_protocol.py [FOLDER] [--images 50] [--threads 1]

takes turns with it over a folder of images (default: the examples of the shipped model), ten images at a time, and
tells the ratio of CPU time, in which other processes do not count, that of wall time, and the times of the stages.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script
sys.path.insert(0, str(Path(__file__).parents[2]))

import peers

import refinedet
from refinedet.data.images import list_images
from refinedet.inference.detector import Detector
from refinedet.inference.pictures import as_bgr, batches
from refinedet.inference.timing import timed
from refinedet.preprocessing import prepare
from refinedet.protocols import PROTOCOLS, Protocol
from refinedet.records import Detections

EXAMPLES = Path(__file__).parents[2] / "examples" / "bccd"
PROTOCOL = PROTOCOLS["voc_multiscale_320"]
TURN = 10  # images
BAR = 1.8
Stages = dict[str, float]  # seconds
Rows = np.ndarray  # [n,6] x1, y1, x2, y2, score, label


@torch.no_grad()
def plain_loop(detector: Detector, path: Path, protocol: Protocol, seconds: Stages) -> Rows:
    """One image at all scales: read, prepared, run and decoded for each look; merged as the released script does."""
    found = []
    for scale in protocol.scales:
        for flipped in (False, True):
            with timed(seconds, "decode"):
                image = cv2.imread(str(path))
                assert image is not None
                height, width = image.shape[:2]
                size = scale.input_size((height, width), detector.size)
                seen = cv2.flip(image, 1) if flipped else image
                blob = prepare(seen, size, detector.preprocessing)[None]
            with timed(seconds, "network"):
                raw = detector.network(blob)
            with timed(seconds, "detect"):
                boxes, scores, labels, _ = peers.detect(*raw, detector.network.anchors_for(size))[0]
                pixels = boxes.numpy() * np.array([width, height, width, height], np.float32)
                pixels = np.clip(pixels, 0, np.array([width - 1, height - 1, width - 1, height - 1], np.float32))
                if flipped:
                    pixels[:, [0, 2]] = width - pixels[:, [2, 0]]
                sides = pixels[:, 2:] - pixels[:, :2] + 1
                kept = np.ones(len(pixels), bool)
                if scale.min_side_below is not None:
                    kept &= sides.min(axis=1) < scale.min_side_below
                if scale.max_side_above is not None:
                    kept &= sides.max(axis=1) > scale.max_side_above
                found.append(np.column_stack([pixels, scores.numpy(), labels.numpy()])[kept])
    with timed(seconds, "merge"):
        rows = np.concatenate(found)
        merged = [vote(rows[rows[:, 5] == label]) for label in range(1, len(detector.classes) + 1)]
        rows = np.concatenate(merged)
        return rows[np.argsort(-rows[:, 4], kind="stable")]


def vote(rows: Rows) -> Rows:
    """Box voting of one class, in NumPy as users have it (spec section 10.4)."""
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    voted = []
    while len(rows):
        low, high = np.maximum(rows[0, :2], rows[:, :2]), np.minimum(rows[0, 2:4], rows[:, 2:4])
        inter = np.maximum(high - low + 1, 0).prod(axis=1)
        area = (rows[:, 2:4] - rows[:, :2] + 1).prod(axis=1)
        joined = inter / (area[0] + area - inter) >= 0.45
        weights = rows[joined, 4:5]
        mean = (rows[joined, :4] * weights).sum(axis=0) / weights.sum()
        voted.append(np.concatenate([mean, rows[0, 4:]]))
        rows = rows[~joined]
    return np.stack(voted) if voted else rows


def ours(detector: Detector, paths: list[Path], protocol: Protocol, seconds: Stages) -> list[Detections]:
    """As `Detector.detect` does it, with the times of its stages."""
    found: list[Detections] = []
    for batch in batches(paths, 8):
        with timed(seconds, "decode"):
            arrays = [as_bgr(path, i) for i, path in enumerate(batch)]
        found += detector.detect_batch(arrays, [None] * len(batch), None, seconds, protocol)
    return found


def missing(found: Detections, expected: Rows) -> int:
    """How many rows of either side have no equal on the other: same class, score within 0.002, corners within 0.5
    pixels. A score at a threshold or an IoU at one may fall to either side, as convolutions of other batches round
    otherwise."""
    rows = np.column_stack([found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()])
    height, width = found.size
    expected = expected.copy()
    expected[:, :4] = np.minimum(expected[:, :4], [width - 1, height - 1, width - 1, height - 1])
    close = np.abs(rows[:, None] - expected[None]) < np.array([0.5, 0.5, 0.5, 0.5, 0.002, 0.5])
    equal = close.all(axis=2)
    return int((~equal.any(axis=1)).sum() + (~equal.any(axis=0)).sum())


def turns(
    detector: Detector, paths: list[Path], protocol: Protocol
) -> Iterator[tuple[list[float], Stages, Stages, int, int]]:
    """CPU and wall seconds of both sides, their stages, rows without an equal and all rows, ten images at a time."""
    iterator = iter(paths)
    while some := list(islice(iterator, TURN)):
        our_stages: Stages = {}
        their_stages: Stages = {}
        with clock() as mine:
            found = ours(detector, some, protocol, our_stages)
        with clock() as theirs:
            expected = [plain_loop(detector, path, protocol, their_stages) for path in some]
        unequal = sum(map(missing, found, expected))
        yield [*mine, *theirs], our_stages, their_stages, unequal, sum(map(len, expected))


@contextmanager
def clock() -> Iterator[list[float]]:
    """CPU and wall seconds of the block, when it is done."""
    begin = time.process_time(), time.perf_counter()
    taken: list[float] = []
    yield taken
    taken += [time.process_time() - begin[0], time.perf_counter() - begin[1]]


def test_both_find_the_same() -> None:
    detector, paths = refinedet.load("bccd"), list_images(EXAMPLES)[:2]
    small = Protocol("small", tuple(PROTOCOL.scales[i] for i in (1, 2)), PROTOCOL.thresholds, merge="vote")
    ((_, _, _, unequal, rows),) = turns(detector, paths, small)
    assert rows > 20
    assert unequal == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=EXAMPLES)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenCV, for both sides")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    detector, paths = refinedet.load("bccd"), list_images(arguments.folder)[: arguments.images]
    ours(detector, paths[:1], PROTOCOL, {})
    totals, unequal, rows = np.zeros(4), 0, 0
    stages: tuple[Stages, Stages] = ({}, {})
    for done, (seconds, *both, differ, count) in enumerate(turns(detector, paths, PROTOCOL), 1):
        totals += seconds
        unequal, rows = unequal + differ, rows + count
        for total, some in zip(stages, both, strict=True):
            for stage, value in some.items():
                total[stage] = total.get(stage, 0.0) + value
        print(f"{min(done * TURN, len(paths))} images: CPU ratio {totals[2] / totals[0]:.2f}", flush=True)
    for name, cpu, wall, parts in zip(("ours", "plain loop"), totals[::2], totals[1::2], stages, strict=True):
        shares = ", ".join(f"{stage} {1e3 * value / len(paths):.0f}" for stage, value in parts.items())
        print(f"{name:10}  CPU {cpu / len(paths):.3f} s, wall {wall / len(paths):.3f} s an image; wall ms: {shares}")
    cpu, wall = totals[2] / totals[0], totals[3] / totals[1]
    print(f"ratio: CPU time {cpu:.2f}, wall time {wall:.2f}; bar {BAR}")
    print(f"rows without an equal on the other side: {unequal} of {rows} and as many")


if __name__ == "__main__":
    main()
