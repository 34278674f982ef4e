"""How good a detector is on a data set: run it, collect boxes in pixels, measure with VOC's or COCO's rules."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import torch

from refinedet.choices import METRICS
from refinedet.data import DetectionDataset, open_dataset
from refinedet.errors import InputError
from refinedet.evaluation.coco_ap import coco_ap
from refinedet.evaluation.pixels import (
    Collected,
    EvaluatedImage,
    coco_ground_truth,
    coco_results,
    image_ranks,
    truth_to_pixels,
)
from refinedet.evaluation.report import Evaluation, class_row, measure, optional
from refinedet.evaluation.voc_ap import GroundTruth, ScoredBoxes, check_iou_threshold, mean_ap, voc_ap
from refinedet.inference.detector import Detector, Testing, check_options, load, scale_teller
from refinedet.inference.pictures import batches
from refinedet.inference.timing import STAGES, timed
from refinedet.progress import busy, show_progress
from refinedet.protocols import Protocol, get_protocol

PHASES = (*STAGES, "metric")


def evaluate(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    protocol: Testing = None,
    metric: str = "voc",
    iou_threshold: float = 0.5,
    score_threshold: float | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> Evaluation:
    """Run ``detector`` on every image of ``dataset`` and measure average precision.

    Args:
        detector: on any device; its network is evaluated in eval mode and left in the mode it was in. Its classes must
            be the data set's, in the same order (open the data set with ``classes=detector.classes``).
        dataset: a data set, or what joins, wraps or shortens one: samples by number, their count, ``classes``, and
            ``category_ids`` where the detections shall have those of an annotation file.
        protocol: a testing protocol of `refinedet.protocols`, its name or a TOML file; default: the thresholds of the
            detector's preset at the network's size.
        metric: "voc" (AP at ``iou_threshold``, the area under the curve), "voc07" (the same by the 11 points of VOC
            2007) or "coco" (the mean of AP at IoU 0.50:0.95, and COCO's other numbers).
        iou_threshold: of the VOC metrics and of the precision-recall curves.
        score_threshold: drops detections up to it; default: the protocol's. A high one lowers AP.
        batch_size: images at a time, as in `Detector.detect`.
        progress: a bar on stderr.

    Raises InputError for arguments out of range and for classes that disagree, DataError for an unreadable image.
    """
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")
    check_iou_threshold(iou_threshold)
    check_options(score_threshold, batch_size)
    testing = None if protocol is None else get_protocol(protocol)
    _check_classes(detector, dataset)
    seconds = dict.fromkeys(PHASES, 0.0)
    collected = _collect(detector, dataset, testing, score_threshold, batch_size, seconds, progress)
    with timed(seconds, "metric"), busy("measuring average precision", shown=progress):
        curves = voc_ap(
            collected.truth,
            collected.found,
            len(dataset.classes) + 1,
            iou_threshold=iou_threshold,
            eleven_points=metric == "voc07",
        )
        coco = None
        if metric == "coco":
            labels = {result.label: result.label for result in curves}
            results = coco_results(collected.found, image_ranks(collected.images), labels)
            coco = coco_ap(coco_ground_truth(dataset.classes, collected), results)
    ap = [result.ap if coco is None else coco.category_ap[result.label] for result in curves]
    return Evaluation(
        metric=metric,
        measure=measure(metric, iou_threshold),
        mean_ap=optional(mean_ap(curves) if coco is None else coco.metrics["AP"]),
        iou_threshold=iou_threshold,
        dataset=_name(dataset),
        images=len(dataset),
        protocol=None if testing is None else testing.name,
        rows=[class_row(*values) for values in zip(dataset.classes, curves, ap, strict=True)],
        coco=None if coco is None else {name: optional(value) for name, value in coco.metrics.items()},
        seconds=seconds,
        curves=curves,
        found=collected.found,
        image_ids=[image.image_id for image in collected.images],
        image_sizes=[(image.height, image.width) for image in collected.images],
        category_ids=getattr(dataset, "category_ids", {result.label: result.label for result in curves}),
    )


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "test",
    *,
    format: str | None = None,
    allow_outside: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Evaluation:
    """:func:`evaluate` a checkpoint (file or shipped name, or an exported file) on a split of a data set folder.

    The data set is opened with the checkpoint's classes: an annotation of any other class is a DataError. ``format``
    and ``allow_outside`` are those of :func:`refinedet.data.open_dataset`, ``device`` that of `refinedet.load`,
    ``options`` those of :func:`evaluate`. ``dtype``: in which the network computes.
    """
    if options.get("protocol") is not None:  # a mistake in it is told before anything is read
        options["protocol"] = get_protocol(options["protocol"])
    detector = load(checkpoint, device).to(dtype)
    dataset = open_dataset(data, split, format=format, classes=detector.classes, allow_outside=allow_outside)
    return evaluate(detector, dataset, **options)


def _name(dataset: DetectionDataset) -> str:
    return getattr(dataset, "name", type(dataset).__name__)


def _check_classes(detector: Detector, dataset: DetectionDataset) -> None:
    if not hasattr(dataset, "classes"):
        raise InputError(
            f"{_name(dataset)}: the data set has no classes; set them to those of the data set that it wraps"
        )
    if not len(dataset):
        raise InputError(f"{_name(dataset)}: the data set holds no images; nothing can be evaluated")
    if tuple(dataset.classes) != tuple(detector.classes):
        raise InputError(
            f"{_name(dataset)}: the model's classes are {', '.join(detector.classes)}, the data set's "
            f"{', '.join(dataset.classes)}; open the data set with classes=detector.classes"
        )


_Rows: TypeAlias = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # image number, labels [n], boxes [n,4], values [n]


def _collect(
    detector: Detector,
    dataset: DetectionDataset,
    protocol: Protocol | None,
    score_threshold: float | None,
    batch_size: int,
    seconds: dict[str, float],
    progress: bool,
) -> Collected:
    truth: list[_Rows] = []
    areas: list[np.ndarray] = []
    found: list[_Rows] = []
    images: list[EvaluatedImage] = []
    with show_progress("evaluating", "image", len(dataset), shown=progress) as bar:
        for numbers in batches(range(len(dataset)), batch_size):
            with timed(seconds, "decode"):
                samples = [dataset[number] for number in numbers]
            arrays, paths = [sample.image for sample in samples], [sample.path for sample in samples]
            detected = detector.detect_batch(arrays, paths, score_threshold, seconds, protocol, scale_teller(bar))
            for sample, detections in zip(samples, detected, strict=True):
                number = len(images)
                truth.append((number, sample.labels, truth_to_pixels(sample), sample.difficult))
                areas.append(np.full(len(sample.labels), np.nan) if sample.areas is None else sample.areas)
                pixels, labels = detections.boxes.double().numpy(), detections.labels.numpy()
                found.append((number, labels, pixels, detections.scores.numpy()))
                images.append(EvaluatedImage(sample.image_id, *detections.size))
            bar.update(len(samples))
    return Collected(GroundTruth(*_stack(truth)), np.concatenate(areas), ScoredBoxes(*_stack(found)), images)


def _stack(rows: list[_Rows]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The boxes of all images in one: image numbers, labels, boxes, values."""
    numbers, labels, boxes, values = zip(*rows, strict=True)
    images = np.repeat(numbers, [len(row) for row in labels])
    return images, np.concatenate(labels), np.concatenate(boxes), np.concatenate(values)
