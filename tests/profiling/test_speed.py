"""What `refinedet benchmark` measures: times of whole calls, stages that add up, batches that fail alone."""

import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from refinedet import build
from refinedet.inference import timing
from refinedet.inference.detector import Detector
from refinedet.profiling import machine, speed
from refinedet.profiling.model import Photographs, open_photographs
from refinedet.profiling.speed import SPLIT, BatchSpeed, Times, measure_batches


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(build("squeezenet", size=64, num_classes=3).eval())


@pytest.fixture(scope="module")
def photographs() -> Photographs:
    return open_photographs()


def times(*seconds: float, images: int = 1) -> Times:
    found = Times(images)
    found.seconds += seconds
    return found


def test_percentiles_are_calls_that_were_measured():
    hundred = times(*(number / 1e3 for number in reversed(range(1, 101))))
    assert [hundred.percentile(percent) for percent in (50, 90, 99)] == pytest.approx([50, 90, 99])
    assert times(*[0.1] * 99).percentile(99) is None
    assert times(*[0.1] * 9).percentile(90) is None
    assert times(0.1, 0.1).percentile(50) is None
    assert times(0.3, 0.1, 0.2).percentile(50) == pytest.approx(200)


def test_images_per_second_are_of_all_calls():
    assert times(0.5, 1.5, images=8).images_per_second == pytest.approx(8)
    assert times().images_per_second is None


def test_the_stages_add_up_to_the_call(detector, photographs):
    (found,) = measure_batches(detector, photographs, [2], 1.0)
    assert found.error is None
    assert len(found.stages) == len(found.everything.seconds) == len(found.detector.seconds) >= 1
    assert len(found.network.seconds) >= 1
    assert found.first is not None
    for stages, everything, of_detector in zip(
        found.stages, found.everything.seconds, found.detector.seconds, strict=True
    ):
        assert stages["backbone"] > 0
        assert stages["TCB and heads"] > 0
        assert stages["network"] == pytest.approx(stages["backbone"] + stages["TCB and heads"])
        inside = sum(stages[stage] for stage in SPLIT if stage not in ("decode", "draw"))
        assert inside < of_detector < everything
        assert inside + stages["decode"] + stages["draw"] < everything
    split = found.split()
    assert tuple(split) == SPLIT
    assert sum(split.values()) < 1e3 / found.everything.images_per_second


def test_a_slow_part_is_seen_in_its_stage_alone(detector, photographs, monkeypatch):
    """Also where the detector runs another network than its own."""
    other = build("squeezenet", size=64, num_classes=3).eval()
    forward = other.backbone.forward

    def slow(images):
        time.sleep(0.4)
        return forward(images)

    monkeypatch.setattr(other.backbone, "forward", slow)
    monkeypatch.setattr(detector.network, "forward", lambda images, by_level: other(images, by_level=by_level))
    (found,) = measure_batches(detector, photographs, [1], 0.5)
    assert found.optimized
    split = found.split()
    assert split["backbone"] > 400
    assert split["backbone"] > sum(split.values()) / 2


def test_the_network_itself_is_not_called_optimised(detector, photographs, monkeypatch):
    monkeypatch.setattr(Detector, "run", lambda detector, images: detector.network(images, by_level=True))
    (found,) = measure_batches(detector, photographs, [1], 0.1)
    assert not found.optimized


def test_each_batch_has_its_share_of_the_time(detector, photographs):
    start = time.perf_counter()
    found = measure_batches(detector, photographs, [1, 2], 0.8)
    assert time.perf_counter() - start < 10.0  # all calls that there may be take longer
    assert [each.batch for each in found] == [1, 2]
    assert all(each.everything.seconds for each in found)
    assert found[1].surviving == pytest.approx(len(detector.network.anchors), rel=0.5)  # per image, not per batch
    assert len(found[1].found) == 2 * len(found[1].everything.seconds)


def test_a_batch_that_memory_does_not_suffice_for_fails_alone(detector, photographs, monkeypatch):
    detect_batch = detector.detect_batch

    def refuse(images, *arguments):
        if len(images) == 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte\nmore")
        return detect_batch(images, *arguments)

    monkeypatch.setattr(detector, "detect_batch", refuse)
    monkeypatch.setattr(machine, "available_memory", lambda: 4 << 30)
    small, refused, untried = measure_batches(detector, photographs, [1, 3, 5], 0.6, bytes_per_image=1 << 30)
    assert small.error is None
    assert small.everything.seconds
    reason = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte"
    assert refused.error == f"out of memory ({reason}); give a smaller batch"
    assert untried.error == "needs 5.0 GiB of memory, and 4.0 GiB are free; give a smaller batch"


def test_another_error_is_no_lack_of_memory(detector, photographs, monkeypatch):
    monkeypatch.setattr(detector, "detect_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_batches(detector, photographs, [1], 0.1)


def test_a_stop_keeps_what_is_measured(detector, photographs):
    told: list[str] = []
    found = measure_batches(detector, photographs, [1, 2], 600.0, on_call=told.append, stop=lambda: len(told) >= 8)
    assert len(told) == 8
    (first,) = found
    assert len(first.everything.seconds) == 4  # after the first call and three of warm-up
    assert not first.network.seconds


class Gpu:
    """Stands in for torch.cuda: work is done when the host waits for it, and events know when they are passed."""

    def __init__(self) -> None:
        self.waited = 0
        self.events = 0

    def synchronize(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.waited += 1

    def Event(self, enable_timing: bool) -> "Gpu.Passed":
        assert enable_timing
        self.events += 1
        return Gpu.Passed()

    class Passed:
        at: float | None = None
        complete = False

        def record(self) -> None:
            self.at = time.perf_counter()

        def synchronize(self) -> None:
            assert self.at is not None
            self.complete = True

        def elapsed_time(self, end: "Gpu.Passed") -> float:
            assert end.complete, "the time is asked for before the GPU has passed the event"
            return 1e3 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    gpu = Gpu()
    for name in ("synchronize", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    return gpu


def test_on_a_gpu_the_split_is_of_other_calls_and_the_network_between_events(detector, photographs, gpu, monkeypatch):
    """The whole calls are not waited in."""
    calls: list[bool] = []  # whether the stages were asked for
    detect_batch = detector.detect_batch

    def detect(images, paths, threshold, seconds=None):
        calls.append(seconds is not None)
        return detect_batch(images, paths, threshold, seconds)

    monkeypatch.setattr(detector, "detect_batch", detect)
    run = speed._Run(detector, photographs, BatchSpeed.of(1), lambda what: None, lambda: False)
    run._on_gpu = True
    run._measure(0.5)
    counted = len(run.speed.everything.seconds)
    assert calls[-2 * counted :] == [False, True] * counted
    assert not any(calls[: -2 * counted])
    assert len(run.speed.stages) == counted
    assert gpu.events == 2 * len(run.speed.network.seconds) > 0
    assert all(0 < seconds < 1 for seconds in run.speed.network.seconds)


def test_what_names_no_gpu_is_of_the_detectors(detector, photographs, monkeypatch):
    """Events above all: those of another GPU are passed at once."""
    log: list[object] = []

    @contextmanager
    def current(device):
        log.append(device)
        yield
        log.append("left")

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(Detector, "device", torch.device("cuda", 1))
    monkeypatch.setattr(speed._Run, "measure", lambda run, seconds: log.append("measured"))
    measure_batches(detector, photographs, [1], 0.1)
    assert log == [torch.device("cuda", 1), "measured", "left"]


def test_repetitions_end_before_another_would_be_too_late(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def count(each: float, seconds: float, most: int = 100) -> int:
        done = 0
        for _ in timing.repetitions(seconds, most):
            clock[0] += each
            done += 1
        return done

    assert count(each=1.0, seconds=3.5) == 3
    assert count(each=2.0, seconds=3.5) == 1
    assert count(each=9.0, seconds=3.5) == count(each=9.0, seconds=-1.0) == 1
    assert count(each=0.25, seconds=10.0, most=7) == 7


def test_a_gpu_is_waited_for_at_the_end_of_a_stage(gpu):
    cuda, seconds = torch.device("cuda"), {}
    with timing.timed(seconds, "network", cuda):
        assert gpu.waited == 0
    assert gpu.waited == 1
    with timing.timed(None, "network", cuda), timing.timed(seconds, "draw"):
        pass
    assert gpu.waited == 1
    module = torch.nn.Identity()
    with timing.timed_module(seconds, "backbone", module, cuda):
        module(torch.zeros(1))
    module(torch.zeros(1))
    assert gpu.waited == 2
    assert set(seconds) == {"network", "draw", "backbone"}


def test_inputs_go_to_a_gpu_from_pinned_memory(detector, monkeypatch):
    done: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: done.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **options: done.append((*where, options)) or tensor)
    inputs = torch.zeros(1)
    monkeypatch.setattr(Detector, "device", torch.device("cuda", 0))
    assert detector._upload(inputs) is inputs
    assert done == ["pinned", (torch.device("cuda", 0), {"non_blocking": True})]


def test_images_take_turns(photographs):
    three = replace(photographs, files=photographs.files[:1] * 3, names=("a", "b", "c"))
    assert [three.batch(number, 2) for number in range(3)] == [[0, 1], [2, 0], [1, 2]]
    assert three.batch(0, 4) == [0, 1, 2, 0]


def test_memory_that_is_free_is_that_of_the_control_group_too(tmp_path, monkeypatch):
    memory = tmp_path / "meminfo"
    monkeypatch.setattr(machine, "_MEMORY", memory)
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    assert machine.available_memory() is None
    memory.write_text("MemTotal:       8 kB\nMemAvailable:       3000 kB\n")
    assert machine.available_memory() == 3000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert machine.available_memory() == 3000 * 1024
    (tmp_path / "memory.max").write_text("25000\n")
    assert machine.available_memory() == 20000


@pytest.mark.parametrize("module", ["x86_64 Kernel Module", "Open Kernel Module for x86_64"])
def test_the_machine_is_described(module, tmp_path, monkeypatch):
    cpu, driver = tmp_path / "cpuinfo", tmp_path / "version"
    cpu.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f\n" * 2)
    driver.write_text(f"NVRM version: NVIDIA UNIX {module}  580.65.06  Sun Jul 27 2025\nGCC version: 12.2.0\n")
    monkeypatch.setattr(machine, "_CPU_INFO", cpu)
    monkeypatch.setattr(machine, "_DRIVER", driver)
    found = machine.describe(torch.device("cpu"))
    assert (found.cpu, found.instructions, found.driver) == ("Some CPU @ 2 GHz", ("avx2", "avx512f"), None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    found = machine.describe(torch.device("cuda"))
    assert (found.device, found.driver) == ("Some GPU", "580.65.06")
    assert found.text().startswith("Some GPU, driver 580.65.06, ")
