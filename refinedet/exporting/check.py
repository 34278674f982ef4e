"""How far an exported file is from PyTorch, and how fast both are."""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinedet import __version__
from refinedet.boxes import box_iou
from refinedet.data import DetectionDataset
from refinedet.errors import ExportError
from refinedet.evaluation.evaluate import evaluate
from refinedet.inference.detector import Detector
from refinedet.inference.timing import repetitions, wait_for
from refinedet.ops import Detected
from refinedet.parsing import to_json
from refinedet.preprocessing import PIXELS, prepare
from refinedet.profiling.model import Photographs
from refinedet.progress import busy
from refinedet.records import Detections, LevelOutput, RawOutput
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.runtimes.description import Description

MOST_IMAGES = 4
SURE = 0.1  # score from which a detection has to be found by both
SAME = 0.5  # least IoU of what counts as the same object
SECONDS = 2.0  # of both, in turns, for their times
MOST_TURNS = 20

# Of the outputs, as a share of their root mean square: what is beyond is no rounding.
LIMITS = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.5, "int8": 2.0}


@dataclass(frozen=True)
class Report:
    """What an export came to. Differences are from PyTorch in float32; times are of one image, network and detections,
    in turns; all on this machine."""

    path: str
    format: str
    dtype: str
    bytes: int
    runtime: str
    images: str
    detections: int  # of PyTorch, of score `SURE` and more
    unmatched: int  # of them and of the file's, those that the other does not have
    box_difference: float  # largest, in pixels, of those that both have
    score_difference: float
    output_difference: float  # largest, of all outputs, as a share of their root mean square
    own_rows_differ: int | None  # rows of the file's own detections that ops.detect does not give; None: it has none
    seconds: float  # median per image of the file, and of PyTorch
    torch_seconds: float
    threads: int
    dataset: str | None = None  # whose annotated images both were measured on, if any
    mean_ap: float | None = None  # area under the curve at IoU 0.5, of the file, and of PyTorch
    torch_mean_ap: float | None = None
    refinedet: str = __version__
    torch: str = torch.__version__

    def to_json(self) -> str:
        """The document that is written beside the file."""
        return to_json(self.document(), indent=1) + "\n"

    def document(self) -> dict[str, Any]:
        """As `to_json`; every number has its unit in its name."""
        names = {
            "box_difference": "largest_box_difference_pixels",
            "score_difference": "largest_score_difference",
            "output_difference": "largest_output_difference_of_rms",
            "seconds": "seconds_per_image",
            "torch_seconds": "torch_seconds_per_image",
        }
        return {names.get(name, name): value for name, value in asdict(self).items()}

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.path}: {self.format}, {self.dtype}, {self.bytes / 1e6:.1f} MB, run by {self.runtime}",
            f"Beside PyTorch in float32 ({self.images}): {self.detections} objects, {self.unmatched} of them or of the "
            f"file's not in the other; boxes differ by {self.box_difference:.2g} pixels at most, scores by "
            f"{self.score_difference:.2g}, outputs by {self.output_difference:.2g} of their root mean square",
        ]
        if self.own_rows_differ is not None:
            lines.append(f"The file's own detections: {self.own_rows_differ} rows that ops.detect does not give")
        if self.mean_ap is not None and self.torch_mean_ap is not None:
            lines.append(
                f"mAP of {self.dataset}: {self.mean_ap:.4f}, PyTorch {self.torch_mean_ap:.4f}, "
                f"{self.mean_ap - self.torch_mean_ap:+.4f}"
            )
        lines.append(
            f"Time of an image, {self.threads} threads: {1e3 * self.seconds:.1f} ms, PyTorch "
            f"{1e3 * self.torch_seconds:.1f} ms"
        )
        return "\n".join(lines)


def check(
    detector: Detector,
    description: Description,
    network: RuntimeNetwork,
    path: Path,
    photographs: Photographs,
    dataset: DetectionDataset | None = None,
) -> Report:
    """Run the file and ``detector`` in float32 on the first `MOST_IMAGES` photographs, and measure both on ``dataset``,
    where given. ExportError where the outputs are no rounding apart, or not finite."""
    images = [photographs.decode(i) for i in range(min(MOST_IMAGES, len(photographs.files)))]
    reference = _reference(detector, description)
    exported = Detector(network, preprocessing=PIXELS)
    differences = [_differ(reference, exported, image) for image in images]
    worst = max(each.outputs for each in differences)
    limit = LIMITS[description.choices.dtype]
    if not worst <= limit:
        raise ExportError(
            f"{path.name} not written: its outputs differ from PyTorch's by {worst:.2g} of their root mean square, and "
            f"{description.choices.dtype} explains {limit:g}; report it with the versions of the packages"
        )
    own = [each.own_rows for each in differences if each.own_rows is not None]
    ours, theirs = _times(exported, reference, images[0])
    means = [None if dataset is None else evaluate(each, dataset).mean_ap for each in (exported, reference)]
    return Report(
        path=str(path),
        format=description.choices.format,
        dtype=description.choices.dtype,
        bytes=sum(each.stat().st_size for each in path.parent.iterdir()),
        runtime=network.runtime,
        images=f"{len(images)} of {photographs.what}",
        detections=sum(each.found for each in differences),
        unmatched=sum(each.unmatched for each in differences),
        box_difference=max(each.boxes for each in differences),
        score_difference=max(each.scores for each in differences),
        output_difference=worst,
        own_rows_differ=sum(own) if own else None,
        seconds=ours,
        torch_seconds=theirs,
        threads=torch.get_num_threads(),
        dataset=None if dataset is None else f"{len(dataset)} images of {dataset.name}",
        mean_ap=means[0],
        torch_mean_ap=means[1],
    )


def _reference(detector: Detector, description: Description) -> Detector:
    """The detector at the size of the file and with its thresholds, in float32."""
    network = deepcopy(detector.trained_network).float()
    network.config = description.config
    reference = Detector(network, preprocessing=detector.preprocessing)
    return reference.to(description.device)


@dataclass(frozen=True)
class _Difference:
    found: int
    unmatched: int
    boxes: float
    scores: float
    outputs: float
    own_rows: int | None


def _differ(reference: Detector, exported: Detector, image: np.ndarray) -> _Difference:
    raw, expected = (each.run(prepare(image, each.size, each.preprocessing)[None]) for each in (exported, reference))
    outputs = max(_of_rms(*pair) for pair in zip(_whole(raw), _whole(expected), strict=True))
    ours, theirs = (each.detect(image, score_threshold=SURE)[0] for each in (exported, reference))
    pairs = _match(ours, theirs)
    boxes = max((float((ours.boxes[i] - theirs.boxes[j]).abs().max()) for i, j in pairs), default=0.0)
    scores = max((float((ours.scores[i] - theirs.scores[j]).abs()) for i, j in pairs), default=0.0)
    unmatched = len(ours.scores) + len(theirs.scores) - 2 * len(pairs)
    return _Difference(len(theirs.scores), unmatched, boxes, scores, outputs, _own_rows(exported, image, raw))


def _whole(raw: RawOutput | LevelOutput) -> list[Tensor]:
    return [output for output in raw.concatenate() if output is not None]


def _of_rms(output: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the expected root mean square; NaN where one is not finite."""
    return float((output - expected).abs().max() / expected.square().mean().sqrt())


def _match(ours: Detections, theirs: Detections) -> list[tuple[int, int]]:
    """Rows of both that are of one object: the same class, and boxes that overlap most, best scores first."""
    iou = box_iou(ours.boxes, theirs.boxes) * (ours.labels[:, None] == theirs.labels)
    pairs = []
    for i in range(len(ours.scores)):
        if len(theirs.scores) and iou[i].max() >= SAME:
            j = int(iou[i].argmax())
            pairs.append((i, j))
            iou[:, j] = 0
    return pairs


def _own_rows(exported: Detector, image: np.ndarray, raw: RawOutput | LevelOutput) -> int | None:
    """Of the file's own detections those that `ops.detect` does not give for the file's own outputs, and of these those
    that the file does not give."""
    assert isinstance(exported.network, RuntimeNetwork)
    own = exported.network.detections(prepare(image, exported.size, exported.preprocessing)[None])
    return None if own is None else len(_rows(own) ^ _rows(exported.select(raw)))


def _rows(found: Detected) -> set[tuple[int, int]]:
    """Class and anchor of each row, which name it: no box or score is compared by its last bit."""
    count = int(found.counts[0])
    return set(zip(found.labels[0, :count].tolist(), found.indices[0, :count].tolist(), strict=True))


def _times(exported: Detector, reference: Detector, image: np.ndarray) -> tuple[float, float]:
    """Median seconds of an image, of both in turns."""
    seconds: tuple[list[float], list[float]] = [], []
    with busy("comparing with PyTorch"):
        for _ in repetitions(SECONDS, MOST_TURNS):
            for detector, times in zip((exported, reference), seconds, strict=True):
                times.append(_time(detector, image))
    ours, theirs = (statistics.median(times[1:] or times) for times in seconds)
    return ours, theirs


def _time(detector: Detector, image: np.ndarray) -> float:
    start = time.perf_counter()
    detector.detect_batch([image], [None], None)
    wait_for(detector.device)
    return time.perf_counter() - start
