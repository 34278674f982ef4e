"""The trace of one call, for https://ui.perfetto.dev or chrome://tracing, and what it says of memory and kernels.

Its format is Chrome's: ``traceEvents`` with phase ``X`` (a range that begins at ``ts`` and lasts ``dur``) or ``i`` (an
instant), times in microseconds. https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from refinedet.files import write_text

_PRIVATE = ("host_name", "traceName")  # of the machine, not of the model


@dataclass(frozen=True)
class Kernel:
    """A kernel, or a copy or memset, of the GPU. ``milliseconds``: of all its calls; ``share``: of all kernels."""

    name: str
    calls: int
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Memory:
    """Bytes that torch allocated during a range: ``peak``, the most at a time, and ``held``, those that outlive it;
    both above what was allocated when it began."""

    peak: int
    held: int


@dataclass(frozen=True)
class Trace:
    """A document of Chrome's format."""

    document: dict[str, Any]

    @property
    def events(self) -> list[dict[str, Any]]:
        """All of them, in no order."""
        events: list[dict[str, Any]] = self.document["traceEvents"]
        return events

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all."""
        write_text(path, json.dumps(self.document, allow_nan=False))

    def kernels(self) -> list[Kernel]:
        """What ran on the GPU, the longest first; empty without one."""
        calls: dict[str, list[float]] = {}
        for event in self.events:
            if event.get("ph") == "X" and event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                calls.setdefault(event["name"], []).append(event["dur"] / 1e3)
        whole = sum(map(sum, calls.values()))
        kernels = [Kernel(name, len(times), sum(times), sum(times) / whole) for name, times in calls.items()]
        return sorted(kernels, key=lambda kernel: -kernel.milliseconds)

    def memory(self, names: Sequence[str], device: torch.device) -> dict[str, Memory]:
        """That of the named ranges of the host, of those that are there; of several of one name the largest peak."""
        kind = {"cpu": 0, "cuda": 1}[device.type]  # c10::DeviceType
        changes = sorted(
            (event["ts"], event["args"]["Bytes"])
            for event in self.events
            if event.get("name") == "[memory]" and event["args"]["Device Type"] == kind
        )
        found: dict[str, Memory] = {}
        for event in self.events:
            if event.get("cat") == "user_annotation" and event["name"] in names:
                memory = _memory_between(changes, event["ts"], event["ts"] + event["dur"])
                name = event["name"]
                found[name] = max(found.get(name, memory), memory, key=lambda each: each.peak)
        return found


def record(call: Callable[[], object], device: torch.device) -> Trace:
    """The trace of ``call``, with the shapes of its operations and its allocations."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        document = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return Trace({name: value for name, value in document.items() if name not in _PRIVATE})


def _memory_between(changes: Sequence[tuple[float, int]], start: float, end: float) -> Memory:
    held = peak = 0
    for at, change in changes:
        if start <= at <= end:
            held += change
            peak = max(peak, held)
    return Memory(peak, held)
