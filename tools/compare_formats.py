"""Every format and dtype that a model is exported to, beside PyTorch in float32: the same objects, mAP, size and time.

    python tools/compare_formats.py DATA [--model bccd] [--split test] [--calibrate FOLDER] [--only onnx,mnn]
                                    [--other TREE] [--threads 2] [--turns 15]

DATA: a VOC or COCO folder with the model's classes. An object is the same where both have it with a box of IoU 0.999
and more and a score that differs by 1e-3 at most; counted are those of score 0.01 and more, the model's own threshold.
int8 is calibrated on the images of ``--calibrate``, else left out. With ``--other``, another tree of this package,
compiled, times are ratios to its `Detector.detect`, measured as `compare_networks` does. Rows are of a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import compare_networks
import numpy as np
import torch
from compare_builds import quartiles

import refinedet
from refinedet.boxes import box_iou
from refinedet.data import DetectionDataset, open_dataset
from refinedet.data.images import list_images
from refinedet.evaluation.evaluate import evaluate
from refinedet.evaluation.voc_ap import ScoredBoxes
from refinedet.formats import FORMATS, Choices
from refinedet.inference.detector import Detector
from refinedet.weights.checkpoint import resolve

SAME_IOU, SAME_SCORE = 0.999, 1e-3
MOST_CALIBRATION = 128
HEADER = "| format | dtype | size, MB | objects that are the same | mAP | time, ratio (quartiles) |\n|" + "---|" * 6


def same(ours: ScoredBoxes, theirs: ScoredBoxes) -> int:
    """How many rows of ``ours`` are rows of ``theirs`` too."""
    count = 0
    for image in np.unique(ours.images):
        a, b = ours.images == image, theirs.images == image
        close = box_iou(*(torch.from_numpy(boxes) for boxes in (ours.boxes[a], theirs.boxes[b]))).numpy() >= SAME_IOU
        close &= np.abs(ours.scores[a][:, None] - theirs.scores[b]) <= SAME_SCORE
        close &= ours.labels[a][:, None] == theirs.labels[b]
        count += int(close.any(axis=1).sum())
    return count


def combinations(only: Sequence[str], calibrated: bool) -> Iterator[Choices]:
    for form in FORMATS.values():
        for dtype in form.dtypes:
            if form.name in only and (dtype != "int8" or calibrated):
                yield Choices(form.name, dtype=dtype)


class Reference:
    """The model in PyTorch, what it finds in the images, and its mAP."""

    def __init__(self, detector: Detector, dataset: DetectionDataset) -> None:
        self.dataset = dataset
        measured = evaluate(detector, dataset)
        self.found, self.mean_ap = measured.found, measured.mean_ap

    def compare(self, exported: Detector) -> tuple[str, float]:
        """Share of rows that are the same, of both sides together, and the exported file's mAP."""
        measured = evaluate(exported, self.dataset)
        assert measured.mean_ap is not None
        rows = len(measured.found.scores) + len(self.found.scores)
        return f"{same(measured.found, self.found) + same(self.found, measured.found)} of {rows}", measured.mean_ap


def time_ratio(model: Path, exported: str, other: Path, threads: int, turns: int) -> str:
    ours = compare_networks.Worker(compare_networks.ROOT, threads, model, exported)
    theirs = compare_networks.Worker(other, threads, model)
    times = compare_networks.take_turns(ours, theirs, turns)
    for worker in (ours, theirs):
        worker.process.kill()
    lower, median, upper = quartiles(times[ours], times[theirs])
    return f"{median:.2f} ({lower:.2f}, {upper:.2f})"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--model", default="bccd")
    parser.add_argument("--split", default="test")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default=",".join(FORMATS), help="formats (default: all)")
    parser.add_argument("--other", type=Path, metavar="TREE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    detector, model = refinedet.load(arguments.model), resolve(arguments.model)
    reference = Reference(detector, open_dataset(arguments.data, arguments.split, classes=detector.classes))
    other = arguments.other and arguments.other.resolve()
    ratio = time_ratio(model, "", other, arguments.threads, arguments.turns) if other else ""
    print(HEADER)
    print(f"| PyTorch | float32 | {model.stat().st_size / 1e6:.1f} | | {reference.mean_ap:.4f} | {ratio} |", flush=True)
    calibration = list_images(arguments.calibrate)[:MOST_CALIBRATION] if arguments.calibrate else []
    for choices in combinations(arguments.only.split(","), bool(calibration)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{FORMATS[choices.format].suffix}"
            images = calibration if choices.dtype == "int8" else []
            report = refinedet.export(detector, path, choices, calibration=images)
            equal, mean_ap = reference.compare(refinedet.load(path))
            ratio = time_ratio(model, str(path), other, arguments.threads, arguments.turns) if other else ""
        size = report.bytes / 1e6
        print(f"| {choices.format} | {choices.dtype} | {size:.1f} | {equal} | {mean_ap:.4f} | {ratio} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
