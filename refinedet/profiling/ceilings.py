"""What the machine can do at most, measured: the bandwidth of its memory and caches, the rate of matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from itertools import pairwise
from math import inf, isinf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # of Linux
ASSUMED = {"L2": 1 << 20}  # bytes, where the system does not tell
BEYOND = 4  # times the largest cache: what streams through that much comes from memory
MOST, LEAST = 1 << 30, 1 << 26  # bytes that are streamed at most and at least, to measure the memory
SECONDS = 0.4  # for each ceiling, after the first call
CALLS = 3  # of each at least
SLEEP = 1_000_000  # cycles of a GPU, in which the host queues them
SIDES = {"cpu": (512, 1024), "cuda": (4096, 8192)}  # of the matrices

Watch = Callable[[Callable[[], Tensor], float], float]  # the time of a call, measured for so many seconds


@dataclass(frozen=True)
class Memory:
    """A cache or the memory: ``bandwidth`` in GB/s of work on no more than ``room`` bytes."""

    name: str
    room: float  # infinite: of the memory
    bandwidth: float


@dataclass(frozen=True)
class Ceilings:
    """``compute`` in GFLOP/s; ``memories`` from the smallest cache to the memory, which is the last one."""

    device: str
    dtype: str
    threads: int
    compute: float
    memories: tuple[Memory, ...]

    def memory_for(self, moved: float) -> Memory:
        """The smallest that holds the ``moved`` bytes of one call."""
        return next(memory for memory in self.memories if moved <= memory.room)

    def milliseconds(self, operations: float, moved: float) -> float:
        """The least time of a call of so many operations on ``moved`` bytes."""
        return max(operations / self.compute, moved / self.memory_for(moved).bandwidth) / 1e6

    def text(self) -> str:
        """In one line."""
        memories = ", ".join(f"{memory.name} {memory.bandwidth:.1f} GB/s" for memory in self.memories)
        return f"ceilings measured here, {self.where()}: matrix product {self.compute:.1f} GFLOP/s, {memories}"

    def where(self) -> str:
        """On what they were measured."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.device}{f', {threads}' if self.device == 'cpu' else ''}, {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """Units are in the names; the memory's room is null."""
        memories = [
            {"name": name, "bytes": None if isinf(room) else room, "gb_per_second": bandwidth}
            for name, room, bandwidth in map(astuple, self.memories)
        ]
        return {
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "gflop_per_second": self.compute,
            "memories": memories,
        }


@dataclass(frozen=True)
class Rate:
    """A call: its floating-point ``operations``, the bytes that it has to move, and its time."""

    operations: float
    moved: float
    milliseconds: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.moved

    @property
    def gflops(self) -> float:
        """Billions of operations per second."""
        return self.operations / self.milliseconds / 1e6

    @property
    def bandwidth(self) -> float:
        """GB/s."""
        return self.moved / self.milliseconds / 1e6

    def share(self, ceilings: Ceilings) -> float:
        """The least time that the machine allows, of the time taken."""
        return ceilings.milliseconds(self.operations, self.moved) / self.milliseconds

    def bound(self, ceilings: Ceilings) -> str:
        """What the least time is spent on: "compute" or the name of a memory."""
        memory = ceilings.memory_for(self.moved)
        computing = self.operations / ceilings.compute >= self.moved / memory.bandwidth
        return "compute" if computing else memory.name


def measure_ceilings(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = SECONDS) -> Ceilings:
    """Measure, in some ``seconds`` each, with the threads that torch has here.

    Bandwidths are those of STREAM's triad ``a + s * b`` and copy, the better of the two: each value that is read or
    written counts once, as there; what a write fetches before does not. The best of several runs counts, not the
    median: it is a ceiling. On a GPU a float32 product may use TF32 where the convolutions may.
    """
    watch = _gpu_seconds if device.type == "cuda" else _cpu_seconds
    caches = _gpu_caches(device) if device.type == "cuda" else _cpu_caches()
    largest = max(caches.values())
    sizes = [(name, room, room / 2) for name, room in sorted(caches.items(), key=lambda cache: cache[1])]
    sizes.append(("memory", inf, min(max(BEYOND * largest, LEAST), MOST)))
    memories: list[Memory] = []
    for name, room, size in reversed(sizes):
        bandwidth = _bandwidth(size, device, seconds, watch)
        slower = memories[0].bandwidth if memories else 0.0  # a small call is mostly overhead where many threads start
        memories.insert(0, Memory(name, room, max(bandwidth, slower)))
    sides = SIDES[device.type]
    compute = max(_product(side, device, dtype, seconds / len(sides), watch) for side in sides)
    return Ceilings(str(device), str(dtype).removeprefix("torch."), torch.get_num_threads(), compute, tuple(memories))


def _bandwidth(size: float, device: torch.device, seconds: float, watch: Watch) -> float:
    """GB/s of copy or triad of three arrays that have ``size`` bytes together."""
    count = int(size) // 12
    a, b, c = (torch.ones(count, device=device) for _ in range(3))
    copy = 8 * count / watch(lambda: c.copy_(a), seconds / 2)
    triad = 12 * count / watch(lambda: torch.add(a, b, alpha=3.0, out=c), seconds / 2)
    return max(copy, triad) / 1e9


def _product(side: int, device: torch.device, dtype: torch.dtype, seconds: float, watch: Watch) -> float:
    """GFLOP/s of the product of two square matrices."""
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    c = torch.empty_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2 * side**3 / watch(lambda: torch.mm(a, b, out=c), seconds) / 1e9
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _cpu_caches() -> dict[str, float]:
    """Bytes of the second-level caches of the threads in use, and of a third-level cache, which they share."""
    found: dict[str, float] = {}
    for folder in CACHES.glob("index*"):
        try:
            level, size = int((folder / "level").read_text()), (folder / "size").read_text().strip()
            found[f"L{level}"] = float(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    kept = {name: room * (torch.get_num_threads() if name == "L2" else 1) for name, room in found.items()}
    kept.pop("L1", None)  # calls of torch that take as little are all overhead
    return kept or dict(ASSUMED)


def _gpu_caches(device: torch.device) -> dict[str, float]:
    return {"L2": float(torch.cuda.get_device_properties(device).L2_cache_size)}


def _cpu_seconds(call: Callable[[], Tensor], seconds: float) -> float:
    """The shortest of the calls that ``seconds`` allow, after one that warms up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _gpu_seconds(call: Callable[[], Tensor], seconds: float) -> float:
    """As `_cpu_seconds`, by CUDA events. The GPU sleeps until several calls are queued: the host is not in the way."""
    call()
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * CALLS)]
        torch.cuda._sleep(SLEEP)
        for mark in marks:
            mark.record()
            call()
        torch.cuda.synchronize()
        times += [start.elapsed_time(stop) / 1e3 for start, stop in pairwise(marks)]
    return min(times)
