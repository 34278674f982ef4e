"""`Detector.detect` of this tree beside that of another one, with the shipped model's weights and one photograph.

    python tools/compare_networks.py OTHER_TREE [--threads 1] [--turns 15]

Each tree has a process of its own, for both bring operators of the same names; they take turns, three calls each. On
one thread it is CPU time that counts, on more the clock on the wall. The other tree is any since commit cc8ff82,
compiled.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "refinedet" / "checkpoints" / "bccd.safetensors"
PHOTOGRAPH = ROOT / "examples" / "bccd" / "BloodImage_00031.jpg"
BAR = 1.7

WORKER = """
import statistics, sys, time
tree, threads, weights, photograph = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
sys.path.insert(0, tree)
import cv2, torch
torch.set_num_threads(threads)
cv2.setNumThreads(threads)
from safetensors.torch import load_file
from refinedet.models import build
network = build("squeezenet", (384, 512), classes=("Platelets", "RBC", "WBC"), tcb_channels=128).eval()
network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in load_file(weights).items()})
if not hasattr(network, "detect"):
    from refinedet.inference.detector import Detector
    network = Detector(network)
clock = time.process_time if threads == 1 else time.perf_counter
found = [network.detect(photograph)[0] for _ in range(2)][-1]
print(len(found.scores), *found.boxes[:5].flatten().tolist(), flush=True)
for _ in sys.stdin:
    times = []
    for _ in range(3):
        start = clock()
        network.detect(photograph)
        times.append(clock() - start)
    print(statistics.median(times), flush=True)
"""


class Worker:
    """A process that has loaded the package of a tree."""

    def __init__(self, tree: Path, threads: int) -> None:
        command = [sys.executable, "-c", WORKER, str(tree), str(threads), str(WEIGHTS), str(PHOTOGRAPH)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.found = [float(word) for word in self.line().split()]

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_TREE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    ours, other = Worker(ROOT, arguments.threads), Worker(arguments.other.resolve(), arguments.threads)
    (count, *boxes), (other_count, *other_boxes) = ours.found, other.found
    apart = max(abs(a - b) for a, b in zip(boxes, other_boxes, strict=True))
    print(
        f"objects: {count:.0f} here, {other_count:.0f} there; corners of the best five at most {apart:.3f} pixels apart"
    )
    times = [(ours.seconds(), other.seconds()) for _ in range(arguments.turns)]
    ratios = sorted(theirs / mine for mine, theirs in times)
    median = statistics.median(theirs for _, theirs in times) / statistics.median(mine for mine, _ in times)
    kind = "CPU time" if arguments.threads == 1 else "time on the wall"
    print(f"{kind} of the other tree over this one's, {arguments.threads} threads: {median:.2f} by medians, "
          f"{ratios[0]:.2f} to {ratios[-1]:.2f} by turns; bar {BAR}")  # fmt: skip
    return 0 if median >= BAR and apart < 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
