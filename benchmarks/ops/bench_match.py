"""Peak memory of ``ops.match`` beside a matcher on torchvision's matrix of IoUs, each in a process of its own."""

import ctypes
import os
import subprocess
import sys

import peers
import pytest
from problems import ground_truth

from refinedet import generate_anchors, ops


def peak_growth(which: str, side: int, objects: int) -> float:
    """MiB by which the peak memory of a process is above what it holds before it matches."""
    command = [sys.executable, __file__, which, str(side), str(objects)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    side, objects = 1024, 200
    ours, others = peak_growth("ours", side, objects), peak_growth("peer", side, objects)
    with capsys.disabled():
        print(f"\npeak memory, {side} x {side} pixels, {objects} objects: ours {ours:.1f} MiB, peer {others:.1f} MiB")
    assert ours < others


def memory(name: str) -> float:
    """Memory of this process in MiB: "VmRSS" is what it holds, "VmHWM" the most it has held."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def main(which: str, side: int, objects: int) -> None:
    match = {"ours": ops.match, "peer": peers.match}[which]
    match(generate_anchors((64, 64)), *ground_truth(1, 2))
    arguments = (generate_anchors((side, side)), *ground_truth(1, objects))
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide growth
    before = memory("VmRSS")
    match(*arguments)
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
