"""Ceilings of the machine, and what they say of a call."""

import math
from pathlib import Path

import pytest
import torch

from refinedet.profiling import ceilings
from refinedet.profiling.ceilings import Ceilings, Memory, Rate, measure_ceilings

MACHINE = Ceilings("cpu", "float32", 1, 100.0, (Memory("L2", 1e6, 50.0), Memory("memory", math.inf, 10.0)))


@pytest.mark.parametrize(
    ("operations", "moved", "milliseconds", "bound"),
    [
        (1e9, 1e6, 10.0, "compute"),
        (1e6, 1e6, 0.02, "L2"),  # 1 MB at 50 GB/s
        (1e6, 2e6, 0.2, "memory"),  # does not fit in L2
        (2e7, 2e6, 0.2, "compute"),  # at the ridge of memory: both take as long
        (0.0, 1e9, 100.0, "memory"),
    ],
)
def test_least_time_and_what_it_is_spent_on(operations: float, moved: float, milliseconds: float, bound: str) -> None:
    rate = Rate(operations, moved, milliseconds=2 * milliseconds)
    assert MACHINE.milliseconds(operations, moved) == pytest.approx(milliseconds)
    assert rate.bound(MACHINE) == bound
    assert rate.share(MACHINE) == pytest.approx(0.5)


def test_rates() -> None:
    rate = Rate(operations=3e9, moved=1.5e9, milliseconds=500.0)
    assert (rate.intensity, rate.gflops, rate.bandwidth) == (2.0, 6.0, 3.0)


def test_a_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "MOST", 1 << 22)
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (64,)})
    found = measure_ceilings(torch.device("cpu"), seconds=0.01)
    assert found.compute > 0
    assert found.memories[-1].name == "memory"
    assert found.memories[-1].room == math.inf
    rooms = [memory.room for memory in found.memories]
    bandwidths = [memory.bandwidth for memory in found.memories]
    assert rooms == sorted(rooms)
    assert bandwidths == sorted(bandwidths, reverse=True)  # what a small call loses is no property of a cache
    assert min(bandwidths) > 0
    assert found.to_json()["memories"][-1]["bytes"] is None


def test_bytes_and_operations_are_those_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_cpu_caches", lambda: {"L2": 2400.0})
    monkeypatch.setattr(ceilings, "LEAST", 0)
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (100,)})
    sizes = []

    def second(call, seconds):  # as if each took one
        sizes.append(call().numel())
        return 1.0

    monkeypatch.setattr(ceilings, "_cpu_seconds", second)
    found = measure_ceilings(torch.device("cpu"))
    assert sizes == [800, 800, 100, 100, 10000]  # of each of three arrays of float32; the matrix
    assert [memory.bandwidth for memory in found.memories] == [9.6e-6, 9.6e-6]  # triad; no cache below the memory
    assert found.compute == pytest.approx(2 * 100**3 / 1e9)


def test_caches_are_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, (level, size) in enumerate([(1, "48K"), (1, "32K"), (2, "1280K"), (3, "49152K")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    monkeypatch.setattr(ceilings, "CACHES", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert ceilings._cpu_caches() == {"L2": 2 * 1280 * 1024, "L3": 49152 * 1024}
    monkeypatch.setattr(ceilings, "CACHES", tmp_path / "absent")
    assert ceilings._cpu_caches() == ceilings.ASSUMED


class Event:
    """In the place of CUDA's: the calls between records take three milliseconds."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at, Event.now = Event.now, Event.now + 3.0

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def test_a_gpu_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    assert ceilings._gpu_seconds(lambda: torch.zeros(1), 0.0) == pytest.approx(0.003)
