"""What `refinedet benchmark` found, as text and as one JSON document."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refinedet.inference.detector import Detector
from refinedet.models import RefineDet
from refinedet.models.build import outline
from refinedet.profiling.flops import gigaflop, list_layers
from refinedet.profiling.machine import Machine
from refinedet.profiling.speed import NEEDED, BatchSpeed, Times
from refinedet.runtimes.base import RuntimeNetwork

SCHEMA = "refinedet-benchmark-1"
REST = "rest"  # of the time of a call, in no stage

BUSY = 0.5  # load average from which it is told

PAPER = {(320, 320): 24.8, (512, 512): 41.5}  # milliseconds of VGG-16 at batch 1 (paper, table 1; spec section 10.6)
PAPER_DEVICE = "Titan X (Maxwell), cuDNN 6"

CONVENTIONS = {
    "everything": "from files in memory to annotated pictures: decode, detect, draw. Reading from disk and writing are "
    "not counted.",
    "detector": "Detector.detect_batch on decoded images, until the boxes are on the host: prepare to download. Of the "
    "same calls as everything. The model's own thresholds.",
    "network": "one prepared input, already on the device, to raw output: neither decoding nor suppression. So `caffe "
    "time` measures, and most likely the paper did (spec section 10.6). On a GPU between two events.",
    "images/s": "all images by all the time of the calls, warm-up left out.",
    "percentiles": "of a call, by nearest rank: p99 is the time that 99 of 100 calls stay within. "
    f"{NEEDED[90]} calls are needed for p90, {NEEDED[99]} for p99.",
    "split": "mean ms per image of each stage. decode: the file's bytes to pixels; prepare: mean and warp; upload: to "
    "the device; detect: decoding and suppression, boxes to pixels; download: boxes to the host, with class names; "
    f"draw: boxes of score 0.5 and more. {REST}: what lies between the stages. On a GPU the split is of calls of its "
    "own, in which the host waits after each stage, so that the stages, which else overlap, add up to more: the rest "
    "may be negative.",
    "cold": "import of torch and of this package; load: from the file, or random values, to the device; the first call "
    "of everything, which is no part of the other numbers.",
    "GFLOP": "per image, of convolutions, deconvolutions, linear layers and matrix products, a multiplication and an "
    "addition counted as 2, biases not.",
    "memory": "peak: the most memory of the process that was resident while a batch size was measured, above what it "
    "had before the model was loaded; on a GPU also the most that torch had allocated there.",
}


@dataclass(frozen=True)
class Model:
    """What is measured."""

    name: str
    backbone: str
    size: tuple[int, int]  # height, width in pixels
    classes: int  # without background
    dtype: str
    random: bool  # weights
    anchors: int
    parameters: int
    gflop: float  # per image
    largest_layer_bytes: int  # that it reads and writes for one image, weights included


def describe_model(name: str, detector: Detector, random: bool) -> Model:
    """The detector's network, or the one that an exported file was made of; ``name``: what was asked for."""
    config = detector.network.config
    network = detector.network if isinstance(detector.network, RefineDet) else outline(config)
    layers = list_layers(network, detector.size)
    return Model(
        name,
        config.backbone,
        detector.size,
        len(detector.classes),
        _dtype(detector),
        random,
        len(detector.network.anchors),
        sum(each.numel() for each in network.parameters()),
        gigaflop(layers),
        max(layer.bytes for layer in layers),
    )


def _dtype(detector: Detector) -> str:
    """In which the network computes; of an exported file in which it was exported."""
    if isinstance(detector.network, RuntimeNetwork):
        return detector.network.description.choices.dtype
    return str(detector.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Spent:
    """Seconds that a measurement was given and took, loading included, and those of the measuring itself."""

    given: float
    taken: float
    measuring: float

    def text(self) -> str:
        """In one line."""
        return f"time: {self.taken:.0f} s, {self.measuring:.0f} s of them measuring; --seconds {self.given:g}"


@dataclass(frozen=True)
class Report:
    """A whole measurement. Times in seconds, memory in bytes, None where it is not known."""

    model: Model
    machine: Machine
    images: str
    imported: float
    loaded: float
    resident: int | None  # before the model was loaded
    batches: Sequence[BatchSpeed]
    spent: Spent

    @property
    def tried(self) -> list[BatchSpeed]:
        """The batch sizes of which a call was done."""
        return [each for each in self.batches if each.first is not None]

    def document(self) -> dict[str, Any]:
        """For ``--json``; every name ends in its unit where it has one."""
        height, width = self.model.size
        model = asdict(self.model) | {"size": {"height_pixels": height, "width_pixels": width}}
        model["gflop_per_image"] = model.pop("gflop")
        return {
            "schema": SCHEMA,
            "model": model,
            "machine": asdict(self.machine),
            "images": self.images,
            "cold": {"import_seconds": self.imported, "load_seconds": self.loaded},
            "spent": {f"{name}_seconds": value for name, value in asdict(self.spent).items()},
            "resident_before_load_bytes": self.resident,
            "batches": [self._batch_document(each) for each in self.batches],
            "paper": {"milliseconds": self._paper(), "device": PAPER_DEVICE, "applicable": self._paper_applies()},
            "conventions": CONVENTIONS,
        }

    def text(self) -> str:
        """For a terminal."""
        parts = ["\n".join(self.facts()), self._calls(), self._split(), "\n".join(self.remarks())]
        return "\n\n".join(filter(None, parts))

    def remarks(self) -> list[str]:
        """Rate, cold start, time, memory, the paper, and what went wrong: a line each."""
        errors = [f"batch {each.batch}: {each.error}" for each in self.batches if each.error]
        rates = {each.batch: self._gflops(each) for each in self.batches}
        told = [f"{rate:.1f} GFLOP/s at batch {batch}" for batch, rate in rates.items() if rate is not None]
        network = f"network: {', '.join(told) or 'not measured'}"
        return [network, self._cold(), self.spent.text(), self._memory(), self._paper_text(), *errors]

    def _batch_document(self, speed: BatchSpeed) -> dict[str, Any]:
        return {
            "batch": speed.batch,
            "optimized_for_inference": speed.optimized,
            "first_call_seconds": speed.first,
            **{name: _times_document(times) for name, times in calls(speed).items()},
            "split_ms_per_image": split_with_rest(speed),
            "network_gflop_per_second": self._gflops(speed),
            "surviving_anchors_per_image": speed.surviving,
            "objects_per_image": statistics.fmean(speed.found) if speed.found else None,
            "peak_resident_bytes": speed.resident,
            "peak_resident_above_start_bytes": self.above_start(speed),
            "peak_gpu_bytes": speed.on_gpu,
            "error": speed.error,
        }

    def _gflops(self, speed: BatchSpeed) -> float | None:
        rate = speed.network.images_per_second
        return None if rate is None else rate * self.model.gflop

    def above_start(self, speed: BatchSpeed) -> int | None:
        """Bytes of the peak above those before the model was loaded."""
        return None if speed.resident is None or self.resident is None else max(0, speed.resident - self.resident)

    def facts(self) -> list[str]:
        """What was measured, where, on which images: a line each."""
        model = self.model
        what = ["random weights" if model.random else "trained weights", f"{model.dtype} on {self.machine.device}"]
        if any(each.optimized for each in self.batches):
            what.append("optimised for inference")
        size = f"{model.size[0]}x{model.size[1]}"
        lines = [
            f"{model.name}: {model.backbone} at {size}, {model.classes} classes, {', '.join(what)}; "
            f"{model.parameters:,} parameters, {model.gflop:.2f} GFLOP per image",
            *self.machine.text().splitlines(),
            f"images: {self.images}",
            *self._load(),
        ]
        if model.random:
            lines.append("Random heads are biased until as much passes the thresholds as in trained networks.")
        average = self.machine.load_average
        if average is not None and average > BUSY:
            lines.append(f"Other work kept the machine busy (load average {average}): times are longer than alone.")
        return lines

    def _load(self) -> list[str]:
        """What the images give the operators to do."""
        known = [each for each in self.batches if each.found]
        if not known:
            return []
        found, surviving = statistics.fmean(known[0].found), known[0].surviving
        anchors = "" if surviving is None else f"{surviving:.0f} of {self.model.anchors} anchors survive the ARM, "
        return [f"per image {anchors}{found:.1f} objects are above the score threshold"]

    def _cold(self) -> str:
        first = [f"first call of {each.batch} {each.first:.2f} s" for each in self.batches if each.first is not None]
        return "cold: " + ", ".join([f"import {self.imported:.2f} s, load {self.loaded:.2f} s", *first])

    def _calls(self) -> str:
        rows = [["batch", "what", "images/s", "p50 ms", "p90 ms", "p99 ms", "calls"]]
        for speed in self.tried:
            rows += [[str(speed.batch), name, *cells(times)] for name, times in calls(speed).items()]
        return _columns(rows, left=2)

    def _split(self) -> str:
        known = [each for each in self.batches if each.stages]
        if not known:
            return ""
        rows = [["ms per image", *(f"batch {each.batch}" for each in known)]]
        splits = [split_with_rest(each) for each in known]
        for stage in splits[0]:
            rows.append([stage, *(f"{split[stage]:.2f}  {share(split, stage):5.1%}" for split in splits)])
        rows.append(["everything", *(f"{sum(split.values()):.2f}       " for split in splits)])
        return _columns(rows, left=1)

    def _memory(self) -> str:
        told = []
        for speed in self.tried:
            above = self.above_start(speed)
            host = "host n/a" if above is None else f"host {above / 2**20:.0f} MiB"
            gpu = "" if speed.on_gpu is None else f", GPU {speed.on_gpu / 2**20:.0f} MiB"
            told.append(f"batch {speed.batch}: {host}{gpu}")
        return f"peak memory: {'; '.join(told) or 'not measured'}"

    def _paper(self) -> float | None:
        return PAPER.get(self.model.size) if self.model.backbone == "vgg16" else None

    def _paper_applies(self) -> bool:
        return self._paper() is not None and self.machine.driver is not None

    def _paper_text(self) -> str:
        """The network alone at batch 1 beside the paper's time."""
        paper = self._paper()
        if paper is None:
            return "paper: not applicable (24.8 and 41.5 ms are of VGG-16 at 320 and 512)"
        told = f"paper: {paper} ms for the network at batch 1 on a {PAPER_DEVICE}"
        ours = next((each.network.percentile(50) for each in self.batches if each.batch == 1), None)
        if not self._paper_applies():
            return f"{told}; not applicable to a CPU"
        return told if ours is None else f"{told}; here {ours:.2f} ms, {ours / paper:.0%} of it"


def calls(speed: BatchSpeed) -> dict[str, Times]:
    """The three kinds of calls, by name."""
    return {"everything": speed.everything, "detector": speed.detector, "network": speed.network}


def split_with_rest(speed: BatchSpeed) -> dict[str, float]:
    """The split, and what is left of the time of everything; empty where nothing was measured."""
    split = speed.split()
    rate = speed.everything.images_per_second
    if not split or rate is None:
        return {}
    return {**split, REST: 1e3 / rate - sum(split.values())}


def share(split: dict[str, float], stage: str) -> float:
    """Of a stage in the whole."""
    return split[stage] / sum(split.values())


def cells(times: Times) -> list[str]:
    """images/s, percentiles and the number of calls, as texts."""
    rate, count = times.images_per_second, len(times.seconds)
    percentiles = [times.percentile(percent) for percent in NEEDED]
    return [
        "n/a" if rate is None else f"{rate:.2f}",
        *(f"n/a ({count} run{'s' * (count != 1)})" if value is None else f"{value:.2f}" for value in percentiles),
        str(count),
    ]


def _times_document(times: Times) -> dict[str, Any]:
    return {
        "calls": len(times.seconds),
        "images_per_second": times.images_per_second,
        **{f"p{percent}_ms": times.percentile(percent) for percent in NEEDED},
        "calls_ms": [round(1e3 * seconds, 3) for seconds in times.seconds],
    }


def _columns(rows: Sequence[Sequence[str]], left: int) -> str:
    """The rows in columns; the first ``left`` are flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [text.ljust(width) for text, width in zip(row[:left], widths[:left], strict=True)]
        numbers = [text.rjust(width) for text, width in zip(row[left:], widths[left:], strict=True)]
        lines.append("  ".join([*texts, *numbers]).rstrip())
    return "\n".join(lines)
