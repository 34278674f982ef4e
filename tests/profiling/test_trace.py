"""Traces: of what they are made, that they are valid, and what is read from them."""

import json
from pathlib import Path

import pytest
import torch
from support.synthetic import tiny_model
from torch import nn

from refinedet.inference.detector import Detector
from refinedet.models.layers import L2Norm
from refinedet.models.optimized import images_at_a_time
from refinedet.profiling.model import open_photographs
from refinedet.profiling.ranges import layer_ranges, named_range
from refinedet.profiling.speed import PARTS, SPLIT
from refinedet.profiling.stages import Pipeline, profile_stages, trace_call
from refinedet.profiling.trace import Kernel, Memory, Trace, record
from refinedet.records import LevelOutput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(Detector(tiny_model()), open_photographs(), batch=2)


@pytest.fixture(scope="module")
def trace(pipeline: Pipeline) -> Trace:
    return trace_call(pipeline)


def ranges(trace: Trace) -> dict[str, tuple[float, float]]:
    """Start and end of each named range, of the first one of its name."""
    found: dict[str, tuple[float, float]] = {}
    for event in trace.events:
        if event.get("cat") == "user_annotation":
            found.setdefault(event["name"], (event["ts"], event["ts"] + event["dur"]))
    return found


def test_a_trace_is_what_perfetto_and_chrome_read(trace: Trace, tmp_path: Path) -> None:
    trace.write(tmp_path / "trace.json")
    document = json.loads((tmp_path / "trace.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    events = document["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) > 300
    assert all(event["dur"] >= 0 and event["ts"] > 0 and event["name"] for event in complete)
    assert all({"pid", "tid"} <= event.keys() for event in complete)
    assert {event["ph"] for event in events} <= set("XiM")  # complete, instant, metadata: nothing is left open
    assert not {"host_name", "traceName"} & document.keys()


def test_ranges_of_one_thread_are_nested(trace: Trace) -> None:
    for thread in {event["tid"] for event in trace.events if event.get("cat") == "user_annotation"}:
        spans = [
            (event["ts"], event["ts"] + event["dur"], event["name"])
            for event in trace.events
            if event.get("cat") in ("user_annotation", "cpu_op") and event["tid"] == thread
        ]
        open_ends: list[tuple[float, str]] = []
        for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_ends and open_ends[-1][0] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1][0] + 0.001, f"{name} outlasts {open_ends[-1]}"
            open_ends.append((end, name))


def test_every_stage_and_layer_has_its_range(trace: Trace, pipeline: Pipeline) -> None:
    found = ranges(trace)
    network = pipeline.detector.running
    layers = [
        name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, L2Norm))
    ]
    assert {*SPLIT, "network", *layers} <= found.keys()
    for part in PARTS:
        assert found["network"][0] <= found[part][0] <= found[part][1] <= found["network"][1]
    assert found["backbone.features.0"][1] <= found["backbone"][1] <= found["TCB and heads"][0]
    assert found["tcb.lateral1.3.conv"][0] >= found["TCB and heads"][0]
    order = [found[stage][0] for stage in SPLIT]
    assert order == sorted(order)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_operations_lie_in_the_range_of_their_layer(trace: Trace) -> None:
    start, end = ranges(trace)["tcb.up.0.conv"]
    inside = {event["name"] for event in trace.events if event["ph"] == "X" and start < event["ts"] < end}
    assert any("conv" in name and "transpose" in name for name in inside)
    assert "refinedet::detect" not in inside


def test_stages_have_time_and_memory(pipeline: Pipeline, trace: Trace) -> None:
    stages = {stage.name: stage for stage in profile_stages(pipeline, trace, seconds=0)}
    assert list(stages) == list(SPLIT)
    assert all(stage.milliseconds > 0 for stage in stages.values())
    images = min(2, images_at_a_time(torch.empty(2)))
    first_map, taps = 64 * 32 * 32 * 4, 4 * (8 * 8 * 256 + 4 * 4 * 512 + 2 * 2 * 512 + 256)
    assert stages["backbone"].allocated.peak >= images * first_map
    assert stages["backbone"].allocated.held >= images * taps
    assert stages["TCB and heads"].allocated.held <= 0  # the taps go, and less is put out
    assert stages["decode"].allocated == Memory(0, 0)  # OpenCV's memory is not torch's
    assert all(stage.peaks.on_gpu is None for stage in stages.values())
    assert all(stage.peaks.resident is None or stage.peaks.resident > 1 << 26 for stage in stages.values())


def test_what_a_detector_makes_of_its_network_is_watched() -> None:
    """One that runs a copy for inference, but not where its own network has hooks."""
    fast = tiny_model(seed=1)

    class Fast(Detector):
        def run(self, images: torch.Tensor) -> LevelOutput:
            hooked = any(module._forward_hooks for module in self.network.modules())
            with torch.inference_mode():
                return (self.network if hooked else fast)(images, by_level=True)

    made = Pipeline(Fast(tiny_model()), open_photographs(), batch=1)
    assert made.detector.running is fast
    assert {"backbone", "tcb.up.0.conv"} <= ranges(trace_call(made)).keys()


def test_memory_of_a_range() -> None:
    def work() -> torch.Tensor:
        with named_range("work", CPU):
            first = torch.ones(1000)
            second = first.neg()
            del first
            third = second.neg()
            del second
            return third

    kept: list[torch.Tensor] = []
    assert record(lambda: kept.append(work()), CPU).memory(["work", "absent"], CPU) == {"work": Memory(8000, 4000)}


def event(name: str, category: str, start: float, duration: float) -> dict[str, object]:
    return {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, "ts": start, "dur": duration, "args": {}}


def test_the_kernel_table_of_a_gpu() -> None:
    """A stand-in for what torch writes of a GPU: kernels, copies, what the host calls, ranges on the GPU's line."""
    events = [
        event("decode_kernel", "kernel", 10, 250),
        event("cudaLaunchKernel", "cuda_runtime", 5, 3000),
        event("implicit_gemm<float>", "kernel", 300, 1500),
        event("decode_kernel", "kernel", 2000, 150),
        event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 0, 90),
        event("Memset (Device)", "gpu_memset", 2, 10),
        event("backbone", "gpu_user_annotation", 0, 9000),
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
    ]
    assert Trace({"traceEvents": events}).kernels() == [
        Kernel("implicit_gemm<float>", 1, 1.5, 0.75),
        Kernel("decode_kernel", 2, 0.4, 0.2),
        Kernel("Memcpy HtoD (Pinned -> Device)", 1, 0.09, pytest.approx(0.045)),
        Kernel("Memset (Device)", 1, 0.01, pytest.approx(0.005)),
    ]


def test_memory_of_a_gpu_is_told_from_the_hosts() -> None:
    def change(at: float, kind: int, size: int) -> dict[str, object]:
        return {"ph": "i", "name": "[memory]", "ts": at, "args": {"Device Type": kind, "Bytes": size}}

    events = [
        event("network", "user_annotation", 10, 10),
        change(5, 1, 1000),
        change(12, 1, 300),
        change(13, 0, 70),
        change(14, 1, -300),
        change(15, 1, 200),
        change(25, 1, 4000),
    ]
    trace = Trace({"traceEvents": events})
    assert trace.memory(["network"], torch.device("cuda")) == {"network": Memory(300, 200)}
    assert trace.memory(["network"], CPU) == {"network": Memory(70, 70)}


def test_nsight_sees_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: seen.append(f"push {name}"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: seen.append("pop"))
    network = tiny_model()
    with layer_ranges(network.backbone.extra64, torch.device("cuda")), torch.no_grad():
        network.backbone.extra64(torch.rand(1, 512, 4, 4))
    block = ["push {0}", "push {0}.conv", "pop", "push {0}.norm", "pop", "pop"]
    assert seen == [step.format(number) for number in (0, 1) for step in block]
    with pytest.raises(KeyError), named_range("lost", torch.device("cuda")):
        raise KeyError
    assert seen[-2:] == ["push lost", "pop"]
