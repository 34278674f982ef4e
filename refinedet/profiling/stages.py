"""Time and memory of every stage between files and annotated copies."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from refinedet.inference.detector import Detector
from refinedet.inference.draw import draw
from refinedet.inference.timing import Seconds, around_stages, noted_calls, repetitions, timed
from refinedet.models import RefineDet
from refinedet.models.optimized import run_in_parts
from refinedet.profiling.model import Photographs
from refinedet.profiling.ranges import around_parts, layer_ranges, named_range
from refinedet.profiling.resident import PeakMemory
from refinedet.profiling.speed import DRAWN, SPLIT
from refinedet.profiling.trace import Memory, Trace, record
from refinedet.records import LevelOutput

MOST_CALLS = 50


class Peaks(NamedTuple):
    """Bytes of the process and of the GPU; None where there is none or nothing tells it."""

    resident: int | None
    on_gpu: int | None


@dataclass(frozen=True)
class Stage:
    """Median ``milliseconds`` of so many ``calls``, and the memory of one call: what torch allocated on the device, and
    peaks."""

    name: str
    milliseconds: float
    calls: int
    allocated: Memory
    peaks: Peaks


class Watched(Detector):
    """A detector like ``detector`` that runs the same network, in eval mode, with or without hooks in it.

    ``running``: that network. It is the detector's own or, ``optimized``, what it made of it to run faster, which it
    would not use with hooks.
    """

    def __init__(self, detector: Detector, image: np.ndarray) -> None:
        super().__init__(detector.network, preset=detector.preset, preprocessing=detector.preprocessing)
        with noted_calls(RefineDet) as called:
            detector.eval().detect_batch([image], [None], None)
        self.running = called[-1]
        self.optimized = self.running is not detector.network

    @torch.inference_mode()
    def run(self, images: Tensor) -> LevelOutput:
        """As `Detector.run`."""
        images = images.to(self.device, self.dtype)
        raw: LevelOutput = run_in_parts(self.running, images) if self.optimized else self.running(images, by_level=True)
        return raw


class Pipeline:
    """Calls of a detector on ``batch`` of ``photographs`` at a time, from the files to the annotated copies."""

    def __init__(self, detector: Detector, photographs: Photographs, batch: int) -> None:
        self.detector = Watched(detector, photographs.decode(0))
        self.photographs, self.batch = photographs, batch
        self._calls = 0

    def __call__(self, seconds: Seconds) -> None:
        """One call; the times of its stages are added to ``seconds``, the network's also by `PARTS`."""
        device = self.detector.device
        with around_parts(self.detector.running, lambda part: timed(seconds, part, device)):
            with timed(seconds, "decode"):
                chosen = self.photographs.batch(self._calls, self.batch)
                arrays = [self.photographs.decode(index) for index in chosen]
            found = self.detector.detect_batch(arrays, [None] * len(arrays), None, seconds)
            with timed(seconds, "draw"):
                for array, detections in zip(arrays, found, strict=True):
                    draw(array, detections, DRAWN)
        self._calls += 1


def time_stages(pipeline: Pipeline, seconds: float) -> tuple[dict[str, float], int]:
    """Median milliseconds of `SPLIT` of the calls that ``seconds`` allow, at least one, and how many they were. The
    pipeline is to be warm."""
    calls: list[Seconds] = []
    for _ in repetitions(seconds, MOST_CALLS):
        calls.append({})
        pipeline(calls[-1])
    return {stage: statistics.median(1e3 * each[stage] for each in calls) for stage in SPLIT}, len(calls)


def trace_call(pipeline: Pipeline) -> Trace:
    """One call with a range for every stage and layer."""
    device = pipeline.detector.device
    with around_stages(lambda stage: named_range(stage, device)), layer_ranges(pipeline.detector.running, device):
        return record(lambda: pipeline({}), device)


def measure_peaks(pipeline: Pipeline) -> dict[str, Peaks]:
    """Those of each stage in one call, in which nothing else is measured."""
    peaks: dict[str, Peaks] = {}

    @contextmanager
    def measured(stage: str) -> Iterator[None]:
        peak = PeakMemory(pipeline.detector.device)
        yield
        found = Peaks(peak.resident(), peak.on_gpu())
        before = peaks.get(stage, found)  # of several ranges of one name the largest
        pairs = zip(before, found, strict=True)
        peaks[stage] = Peaks(*(None if a is None or b is None else max(a, b) for a, b in pairs))

    with around_stages(measured):
        pipeline({})
    return peaks


def profile_stages(pipeline: Pipeline, trace: Trace, seconds: float) -> list[Stage]:
    """One for each of `SPLIT`; ``trace``: what `trace_call` returned."""
    peaks = measure_peaks(pipeline)
    times, calls = time_stages(pipeline, seconds)
    allocated = trace.memory(SPLIT, pipeline.detector.device)
    return [Stage(name, times[name], calls, allocated[name], peaks[name]) for name in SPLIT]
