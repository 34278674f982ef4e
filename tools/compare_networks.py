"""`Detector.detect` of this tree beside that of another one, with the same weights and one photograph.

    python tools/compare_networks.py OTHER_TREE [--model CHECKPOINT] [--exported FILE] [--network] [--threads 1]

The weights are the shipped model's, or those of ``--model``; here an exported file of them runs in their place, where
one is given. ``--network``: the network alone is timed, from a prepared input to its outputs.

Each tree has a process of its own, for both bring operators of the same names; they take turns, the one that began last
beginning next: a turn is five calls, whose least time counts. On one thread it is CPU time, on more the clock on the
wall. What is told are the quartiles of the ratios of neighbouring turns. Both have to find the same objects, to half a
pixel (those of score 0.5 and more). The other tree is any since commit cc8ff82, compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from compare_builds import NOT_COMPILED, is_compiled, quartiles

from refinedet.models.config import ModelConfig
from refinedet.weights.checkpoint import read_metadata

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "refinedet" / "checkpoints" / "bccd.safetensors"
PHOTOGRAPH = ROOT / "examples" / "bccd" / "BloodImage_00031.jpg"
BAR = 1.7
APART = 0.5  # pixels at most

Object = list[float]  # label, corners

WORKER = """
import json, sys, time
tree, threads, weights, model, photograph, exported, alone = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
sys.path.insert(0, tree)
import cv2, torch
torch.set_num_threads(threads)
cv2.setNumThreads(threads)
from safetensors.torch import load_file
from refinedet.models import build
if exported:
    import refinedet
    network = refinedet.load(exported)
else:
    network = build(**json.loads(model)).eval()
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in load_file(weights).items()})
    if not hasattr(network, "detect"):
        from refinedet.inference.detector import Detector
        network = Detector(network)
clock = time.process_time if threads == 1 else time.perf_counter
call = lambda: network.detect(photograph)
if alone:
    from refinedet.data.images import read_image
    from refinedet.preprocessing import prepare
    known = network if hasattr(network, "run") else network.config
    inputs = prepare(read_image(photograph), known.size, known.preprocessing)[None]
    call = torch.inference_mode()(lambda: network.run(inputs) if hasattr(network, "run") else network(inputs))
found = [network.detect(photograph)[0] for _ in range(3)][-1]
rows = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist())
print(json.dumps([[label, *box] for label, box, score in rows if score >= 0.5]), flush=True)
for _ in sys.stdin:
    times = []
    for _ in range(5):
        start = clock()
        call()
        times.append(clock() - start)
    print(min(times), flush=True)
"""


class Worker:
    """A process that has loaded the package of a tree, and the weights or, where one is given, an exported file."""

    def __init__(self, tree: Path, threads: int, weights: Path, exported: str = "", alone: bool = False) -> None:
        given = [str(tree), str(threads), str(weights), _arguments(weights), str(PHOTOGRAPH), exported]
        given.append("network" if alone else "")
        # As many threads as are given, from the start: the runtimes of exported files take them when they are opened.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", WORKER, *given]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.found: list[Object] = json.loads(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}: its message is above")
        return line

    def seconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("turn\n")
        self.process.stdin.flush()
        return float(self.line())


def _arguments(weights: Path) -> str:
    """Of `build`, as JSON: older trees do not read the metadata of newer files."""
    config = ModelConfig.from_json(read_metadata(weights)["config"])
    names = {"classes": config.classes, "tcb_channels": config.tcb_channels}
    return json.dumps({"backbone": config.backbone, "size": config.size, **names})


def take_turns(ours: Worker, other: Worker, turns: int) -> dict[Worker, list[float]]:
    """Seconds of the turns of both."""
    times: dict[Worker, list[float]] = {ours: [], other: []}
    for number in range(turns):
        for worker in (ours, other) if number % 2 == 0 else (other, ours):
            times[worker].append(worker.seconds())
    return times


def distance(found: list[Object], other: list[Object]) -> float:
    """Pixels from a corner of an object to that of the nearest one of its label on the other side, at most; infinite
    where there is none."""

    def nearest(one: Object, others: list[Object]) -> float:
        apart = [max(abs(a - b) for a, b in zip(one, each, strict=True)) for each in others if each[0] == one[0]]
        return min(apart, default=float("inf"))

    both = [nearest(one, other) for one in found] + [nearest(one, found) for one in other]
    return max(both, default=0.0)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_TREE")
    parser.add_argument("--model", type=Path, default=WEIGHTS, metavar="CHECKPOINT", help="default: the shipped one")
    parser.add_argument("--exported", default="", metavar="FILE", help="of the model, which runs here in its place")
    parser.add_argument("--network", action="store_true", help="time the network alone")
    parser.add_argument("--bar", type=float, default=BAR, help=f"least ratio (default: {BAR})")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15, help="of each tree, at least 2")
    arguments = parser.parse_args(given)
    tree: Path = arguments.other.resolve()
    if arguments.turns < 2:
        parser.error("--turns: quartiles need at least 2")
    if not is_compiled(tree):  # an installed refinedet would be found in its place
        parser.error(f"{tree} {NOT_COMPILED}")
    ours = Worker(ROOT, arguments.threads, arguments.model, arguments.exported, arguments.network)
    other = Worker(tree, arguments.threads, arguments.model, alone=arguments.network)
    apart = distance(ours.found, other.found)
    print(f"objects: {len(ours.found)} here, {len(other.found)} there, corners at most {apart:.3f} pixels apart")
    times = take_turns(ours, other, arguments.turns)
    lower, median, upper = quartiles(times[ours], times[other])
    mine, theirs = (f"{1e3 * statistics.median(times[worker]):.1f} ms" for worker in (ours, other))
    kind = "CPU time" if arguments.threads == 1 else "time on the wall"
    print(f"{kind}, {arguments.threads} threads: {mine} here, {theirs} there")
    print(f"ratio {median:.2f} (quartiles {lower:.2f} and {upper:.2f}); bar {arguments.bar}")
    return 0 if median >= arguments.bar and apart <= APART else 1


if __name__ == "__main__":
    sys.exit(main())
