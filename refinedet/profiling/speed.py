"""How fast a detector is, as whole calls and by stages, within a given time.

Of every batch size calls follow one another, and each is one measurement:

* *everything*: from files in memory to annotated pictures: decode, `Detector.detect_batch`, draw;
* *detector*: `Detector.detect_batch` alone, from decoded images to boxes on the host;
* *network*: one prepared input, already on the device, to raw output, as Caffe's ``caffe time`` measures.

The first two are of the same calls. Reading files from disk is never counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from refinedet.errors import is_out_of_memory
from refinedet.inference.detector import Detector
from refinedet.inference.draw import draw
from refinedet.inference.scales import make_inputs
from refinedet.inference.timing import STAGES, Seconds, current_device, noted_calls, repetitions, timed, timed_module
from refinedet.models import RefineDet
from refinedet.ops.reference import portable
from refinedet.preprocessing import normalize
from refinedet.profiling import machine
from refinedet.profiling.model import Photographs
from refinedet.profiling.resident import PeakMemory
from refinedet.records import LevelOutput, RawOutput

PARTS = ("backbone", "TCB and heads")  # of the network
WHOLE_SPLIT = (*STAGES, "draw")  # where an exported file runs, whose parts cannot be told apart
SPLIT = tuple(part for stage in WHOLE_SPLIT for part in (PARTS if stage == "network" else (stage,)))
DRAWN = 0.5  # least score of what is drawn
NETWORK_SHARE = 0.25  # of the time, for the network alone
WARM_UP = 3  # calls that do not count, or fewer where they would take more than a tenth of the time
MOST_CALLS = 1000
NEEDED = {50: 3, 90: 10, 99: 100}  # calls for a percentile to have others above it (50: on both sides)


class Times:
    """Seconds of calls of ``images`` each."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.seconds: list[float] = []

    @property
    def images_per_second(self) -> float | None:
        """All images by all the time; None before the first call."""
        return self.images * len(self.seconds) / sum(self.seconds) if self.seconds else None

    def percentile(self, percent: int) -> float | None:
        """Milliseconds of a call by nearest rank: so many percent of the calls took no longer. None where fewer than
        `NEEDED` were measured."""
        if len(self.seconds) < NEEDED[percent]:
            return None
        return 1e3 * sorted(self.seconds)[math.ceil(percent / 100 * len(self.seconds)) - 1]


@dataclass
class BatchSpeed:
    """What was measured of one batch size. ``error``: why it ended early, if it did."""

    batch: int
    everything: Times
    detector: Times
    network: Times
    stages: list[Seconds] = field(default_factory=list)  # of each call, by `SPLIT`
    optimized: bool = False  # the detector ran a network that it made for inference, not the one it was given
    first: float | None = None  # seconds of the first call, everything
    found: list[int] = field(default_factory=list)  # objects above the model's score threshold, of each image
    surviving: float | None = None  # anchors per image that the ARM does not reject; None without an ARM
    resident: int | None = None  # most bytes of the process in memory
    on_gpu: int | None = None  # most bytes that torch allocated on the GPU
    error: str | None = None

    @classmethod
    def of(cls, batch: int) -> BatchSpeed:
        """Nothing measured yet."""
        return cls(batch, Times(batch), Times(batch), Times(batch))

    def split(self) -> Seconds:
        """Mean milliseconds per image of every stage, of `SPLIT` or `WHOLE_SPLIT`; empty before the first call."""
        if not self.stages:
            return {}
        names = SPLIT if PARTS[0] in self.stages[0] else WHOLE_SPLIT
        return {stage: 1e3 * statistics.fmean(each[stage] for each in self.stages) / self.batch for stage in names}


def measure_batches(
    detector: Detector,
    photographs: Photographs,
    batches: Sequence[int],
    seconds: float,
    bytes_per_image: int = 0,
    on_call: Callable[[str], object] = lambda what: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[BatchSpeed]:
    """Measure every batch size, each in its share of what is left of ``seconds``; what is too large for the memory ends
    alone.

    ``bytes_per_image``: of the host, that are needed at least; a batch of more than there are is not tried, as Linux
    would rather end the process than refuse them. ``on_call`` is told before each call what it is of; once ``stop()``
    is true no other begins.
    """
    measured: list[BatchSpeed] = []
    end = time.perf_counter() + seconds
    for batch in batches:
        if stop():
            break
        left = max(0.0, end - time.perf_counter())
        speed = BatchSpeed.of(batch)
        speed.error = _shortage(batch * bytes_per_image)
        if speed.error is None:
            with current_device(detector.device):
                _Run(detector, photographs, speed, on_call, stop).measure(left / (len(batches) - len(measured)))
        measured.append(speed)
    return measured


def _shortage(needed: int) -> str | None:
    """Why so many bytes of the host's memory cannot be had, if they cannot."""
    available = machine.available_memory()
    if available is None or needed <= available:
        return None
    return f"needs {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB are free; give a smaller batch"


class _Run:
    """The measurement of one batch size."""

    def __init__(
        self,
        detector: Detector,
        photographs: Photographs,
        speed: BatchSpeed,
        on_call: Callable[[str], object],
        stop: Callable[[], bool],
    ) -> None:
        self._detector, self._photographs, self.speed = detector, photographs, speed
        self._on_call, self._stop = on_call, stop
        self._on_gpu = detector.device.type == "cuda"
        self._calls = 0
        self._raw: RawOutput | LevelOutput | None = None
        self._backbone: nn.Module | None = None  # of the network that runs, unless an exported file does

    def measure(self, seconds: float) -> None:
        """Fill ``speed`` in so many seconds, or those of one call of each kind."""
        memory = PeakMemory(self._detector.device)
        try:
            self._measure(seconds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.speed.error = f"out of memory ({str(error).strip().partition(chr(10))[0]}); give a smaller batch"
        self.speed.resident = memory.resident()
        self.speed.on_gpu = memory.on_gpu()
        if self.speed.error is not None and self._on_gpu:
            torch.cuda.empty_cache()

    def _measure(self, seconds: float) -> None:
        start = time.perf_counter()
        with noted_calls(RefineDet) as called:
            self.speed.first, _ = self._call(None)
        if called:
            self._backbone, self.speed.optimized = called[-1].backbone, called[-1] is not self._detector.network
        for _ in range(min(WARM_UP, int(seconds / 10 / self.speed.first))):
            if not self._stop():
                self._call(None)
        self.speed.found.clear()
        end = start + seconds
        self._repeat(self._measure_call, end - NETWORK_SHARE * seconds)
        if not self._stop():
            inputs = self._prepare(self._photographs.batch(0, self.speed.batch))
            self._repeat(lambda: self.speed.network.seconds.append(self._time_network(inputs)), end)
            self.speed.surviving = self._count_surviving()

    def _repeat(self, call: Callable[[], object], end: float) -> None:
        """Call at least once, then as long as another call is likely to be done at ``end``."""
        for _ in repetitions(end - time.perf_counter(), MOST_CALLS):
            if self._stop():
                return
            call()

    def _measure_call(self) -> None:
        """One call, whole. Its stages are those of the same call, but on a GPU, which is waited for after each of
        them, those of another one."""
        seconds: Seconds = dict.fromkeys(WHOLE_SPLIT, 0.0)
        everything, detector = self._call(None if self._on_gpu else seconds)
        if self._on_gpu:
            self._call(seconds)
        if self._backbone is not None:
            seconds["TCB and heads"] = seconds["network"] - seconds["backbone"]
        self.speed.stages.append(seconds)
        self.speed.everything.seconds.append(everything)
        self.speed.detector.seconds.append(detector)

    def _call(self, seconds: Seconds | None) -> tuple[float, float]:
        """Seconds of everything and of the detector, which ends with the boxes on the host and so with the GPU idle."""
        indices = self._photographs.batch(self._calls, self.speed.batch)
        self._calls += 1
        self._on_call(f"batch {self.speed.batch}, everything")
        start = time.perf_counter()
        with timed(seconds, "decode"):
            images = [self._photographs.decode(index) for index in indices]
        begin = time.perf_counter()
        with self._timed_backbone(seconds):
            found = self._detector.detect_batch(images, [None] * len(images), None, seconds)
        end = time.perf_counter()
        with timed(seconds, "draw"):
            for image, objects in zip(images, found, strict=True):
                draw(image, objects, DRAWN)
        everything = time.perf_counter() - start
        self.speed.found += [len(objects.scores) for objects in found]
        return everything, end - begin

    def _timed_backbone(self, seconds: Seconds | None) -> AbstractContextManager[None]:
        if seconds is None or self._backbone is None:
            return nullcontext()
        return timed_module(seconds, "backbone", self._backbone, self._detector.device)

    def _time_network(self, inputs: Tensor) -> float:
        """Seconds of one forward pass; on a GPU between two events."""
        self._on_call(f"batch {self.speed.batch}, network")
        if not self._on_gpu:
            start = time.perf_counter()
            self._raw = self._detector.run(inputs)
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._raw = self._detector.run(inputs)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def _prepare(self, indices: Sequence[int]) -> Tensor:
        """The images as the detector gives them to the network, on its device and in its dtype."""
        detector = self._detector
        images = [normalize(self._photographs.decode(index), detector.preprocessing) for index in indices]
        inputs = make_inputs(images, detector.size, (False,), detector.preprocessing)
        return inputs.to(detector.device, detector.dtype)

    def _count_surviving(self) -> float | None:
        """Anchors per image, in the last output of the network, that the ARM does not reject."""
        if self._raw is None or self._raw.arm_conf is None:
            return None
        arm_conf = self._raw.arm_conf
        whole = arm_conf if isinstance(arm_conf, Tensor) else torch.cat(arm_conf, dim=1)
        passed = portable.objectness(whole.float())
        return int((passed >= self._detector.preset.objectness_threshold).sum()) / self.speed.batch
