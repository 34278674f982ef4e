"""What surrounds an operator when it is called from Python: crossings of torch's dispatcher, calls of Python functions,
blocks from the heap. Of small inputs that is most of the time.

Not instructions: under callgrind `import torch` alone takes minutes. These counts are exact, and take seconds.

``python -m guard.calls`` is the process in which the calls are counted, with allocations.cpp loaded before everything.
"""

import ctypes
import gc
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from guard.baseline import Measured, Values
from guard.instructions import BUILD, HERE, ROOT, compiler, locked
from guard.processes import measured_by, run

LIBRARY = "allocations.so"
CALLS = 20


def measure(package: Path = ROOT) -> Measured:
    """`package`: the folder that holds the package."""
    with locked(BUILD):
        command = [*compiler(), "-std=c++20", "-O1", "-shared", "-fPIC", str(HERE / "allocations.cpp"), "-o", LIBRARY]
        run(command, "allocations.cpp does not compile", cwd=BUILD)
    return measured_by(
        "guard.calls",
        package,
        "the calls could not be counted",
        LD_PRELOAD=str(BUILD / LIBRARY),
        PYTHONHASHSEED="0",
    )


# --- In the process ---------------------------------------------------------------------------------------------------


def count_all() -> Values:
    calls = cases()
    library = ctypes.CDLL(None)
    library.allocations.restype = ctypes.c_long
    gc.disable()
    return {
        name: {
            "dispatcher": count_dispatches(call),
            "Python": count_functions(call),
            "heap": count_blocks(call, library.allocations),
        }
        for name, call in calls.items()
    }


def cases() -> dict[str, Callable[[], Any]]:
    """Every operator on some boxes: the work is nothing."""
    import torch

    from refinedet import ops

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    anchors, offsets, corners = (torch.rand(1, 12, 4, generator=generator) for _ in range(3))
    corners[..., 2:] += corners[..., :2]
    objectness, logits = (torch.rand(1, 12, width, generator=generator) for width in (2, 21))
    scores, labels = torch.rand(1, 12, generator=generator), torch.ones(1, 12, dtype=torch.int64)
    two_of_an_image = torch.tensor([0, 2])
    return {
        "detect": lambda: ops.detect(offsets, objectness, offsets, logits, anchors[0]),
        "nms": lambda: ops.nms(corners[0], scores[0], 0.45),
        "batched_nms": lambda: ops.batched_nms(corners[0], scores[0], labels[0], 0.45),
        "match": lambda: ops.match(anchors[0], corners[0, :2], labels[0, :2], two_of_an_image),
        "mine": lambda: ops.mine(logits, labels, scores),
        "refine": lambda: ops.refine(anchors[0], offsets),
        "soft_nms": lambda: ops.soft_nms(corners, scores, labels),
        "vote": lambda: ops.vote(corners, scores, labels),
    }


def count_dispatches(call: Callable[[], Any]) -> int:
    """Operators of torch and ours that a call goes through, those inside others as well."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return sum("::" in event.name for event in profiler.events())


def count_functions(call: Callable[[], Any]) -> int:
    """Calls of functions of Python and of C."""
    count = 0

    def notice(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    call()
    sys.setprofile(notice)
    call()
    sys.setprofile(None)
    return count - 1  # of sys.setprofile


def count_blocks(call: Callable[[], Any], blocks: Callable[[], int]) -> int:
    """Of one call: the least of several, for Python's own pool grows now and then."""

    def of_one() -> int:
        before = blocks()
        call()
        return blocks() - before

    return min(of_one() for _ in range(CALLS))


if __name__ == "__main__":
    import torch

    release = ".".join(torch.__version__.split(".")[:2])
    tools = {"Python": ".".join(platform.python_version_tuple()[:2]), "torch": release}
    print(json.dumps({"values": count_all(), "made_with": tools}))
