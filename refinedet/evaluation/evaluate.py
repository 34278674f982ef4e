"""How good a model is on a data set: run it, collect boxes in pixels, measure with VOC's or COCO's rules.

From network output to metric, as the released evaluation scripts do (spec sections 1.2, 1.3, 7.1, 10.5):

1. The image is warped to the input size; ``ops.detect`` gives boxes in units of the image side.
2. Detections: x times W, clipped to [0, W-1]; y likewise. These are 0-based pixels, the last one inclusive, so a box is
   x2 - x1 + 1 wide. The VOC scripts add 1 to get VOC's 1-based frame; the COCO scripts write [x1, y1, width, height].
3. Ground truth, brought into the same 0-based inclusive frame: VOC's 1-based corners minus 1; COCO's x, y, x + w - 1,
   y + h - 1. (IoU does not depend on the origin, so comparing here equals comparing in VOC's frame.)

Either metric works on either data set; a VOC difficult object is to COCO's metric a crowd, and the other way round.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refinedet.data import COCODataset, VOCDataset, eval_batches, open_dataset
from refinedet.errors import InputError
from refinedet.evaluation import ClassResult, COCOResult, GroundTruth, ScoredBoxes, best_f1, coco_ap, mean_ap, voc_ap
from refinedet.evaluation.voc_ap import check_iou_threshold
from refinedet.files import atomic_write, write_text
from refinedet.inference.predict import select_detections, to_pixels

if TYPE_CHECKING:
    from refinedet.data import DetectionDataset
    from refinedet.models import RefineDet
    from refinedet.records import Sample

METRICS = ("voc", "coco")
STAGES = ("load", "forward", "detect", "metric")
# Boxes travel as float32 fractions of the image side; annotation files hold at most a few decimals of a pixel.
ANNOTATION_DECIMALS = 3
_NOT_IN_JSON = ("rows", "curves", "found", "image_ids", "category_ids")
BOX_DECIMALS, SCORE_DECIMALS = 4, 8  # in detections.json and so in COCO's metric


@dataclass(frozen=True)
class ClassRow:
    """One class of an evaluation. ``precision``, ``recall``, ``f1`` are those at ``score_threshold``, where F1 is best;
    None without ground truth or detections."""

    name: str
    ground_truth: int  # objects that are not difficult
    detections: int
    ap: float | None  # None without ground truth
    score_threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    ``mean_ap`` is the mean over the classes that have ground truth (None if none has); the others have AP None, "-" in
    the table. ``curves`` are always VOC's, at ``iou_threshold``, one per class in the order of ``rows``.
    """

    metric: str  # "voc" or "coco"
    measure: str  # what AP means here, in words
    mean_ap: float | None
    iou_threshold: float
    use_07_metric: bool
    dataset: str
    images: int
    rows: list[ClassRow]
    coco: dict[str, float | None] | None  # COCO's twelve numbers, None where nothing is to be found
    seconds: dict[str, float]  # per stage: load, forward, detect, metric
    curves: list[ClassResult] = field(repr=False)
    found: ScoredBoxes = field(repr=False)  # all detections: image numbers, labels, boxes in 0-based pixels, scores
    image_ids: list[int | str] = field(repr=False)  # by image number
    category_ids: dict[int, int] = field(repr=False)  # by label; one that a COCO annotation file lacks is absent

    def to_json(self) -> str:
        """The numbers, without curves and detections, as JSON text; numbers that do not exist are null."""
        values = {name: value for name, value in vars(self).items() if name not in _NOT_IN_JSON}
        return json.dumps({**values, "rows": [asdict(row) for row in self.rows]}, indent=2)

    def table(self) -> str:
        """A line per class, the mean, COCO's numbers if measured, and the time per stage."""
        width = max(len("class"), *(len(row.name) for row in self.rows))
        lines = [
            f"{'class':<{width}}  objects  detections     AP  precision  recall  at score",
            *(_table_line(row, width) for row in self.rows),
            f"mean {self.measure} of {sum(row.ap is not None for row in self.rows)} classes: {_number(self.mean_ap)}",
        ]
        if self.coco:
            numbers = [f"{name} {_number(value)}" for name, value in self.coco.items()]
            lines += ["  ".join(numbers[:6]), "  ".join(numbers[6:])]
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items())
        lines.append(f"{self.images} images, {sum(self.seconds.values()):.2f} s: {stages}")
        return "\n".join(lines)

    def coco_results(self) -> Iterator[dict[str, Any]]:
        """The detections in COCO's results format, one by one; those of a class without a category are left out."""
        return _coco_results(self.found, self.image_ids, self.category_ids)

    def save(self, out_dir: str | os.PathLike[str]) -> None:
        """Write ``evaluation.json``, ``detections.json`` (COCO results format) and ``precision_recall.png``, each whole
        or not at all. The folder is made."""
        from refinedet.evaluation.plots import plot_precision_recall

        folder = Path(out_dir)
        write_text(folder / "evaluation.json", self.to_json() + "\n")
        _write_list(folder / "detections.json", self.coco_results())
        plot_precision_recall(
            folder / "precision_recall.png",
            [row.name for row in self.rows],
            self.curves,
            [float("nan") if row.ap is None else row.ap for row in self.rows],
            title=f"{self.dataset}: mean {self.measure} = {_number(self.mean_ap)}",
            curves_label=f"IoU > {self.iou_threshold:g}",
        )


@torch.inference_mode()
def evaluate(
    model: RefineDet,
    dataset: DetectionDataset,
    *,
    metric: str = "voc",
    iou_threshold: float = 0.5,
    use_07_metric: bool = False,
    score_threshold: float | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> Evaluation:
    """Run ``model`` on every image of ``dataset`` and measure average precision.

    Args:
        model: on any device; evaluated in eval mode and left in the mode it was in. Its classes must be the data set's,
            in the same order (open the data set with ``classes=model.config.classes``).
        metric: "voc" (AP at ``iou_threshold``) or "coco" (the mean of AP at IoU 0.50:0.95, and COCO's other numbers).
        iou_threshold: of the VOC metric and of the precision-recall curves.
        use_07_metric: 11-point AP (VOC 2007) instead of the area under the curve; VOC metric only.
        score_threshold: drops detections up to it; default: the model's preset. A high one lowers AP.
        batch_size: images per forward pass.
        progress: a bar on stderr.

    Raises InputError for arguments out of range and for classes that disagree, DataError for an unreadable image.
    """
    threshold = model.config.preset.score_threshold if score_threshold is None else score_threshold
    _check_choices(metric, iou_threshold, use_07_metric, threshold, batch_size)
    _check_classes(model, dataset)
    seconds = dict.fromkeys(STAGES, 0.0)
    collected = _collect(model, dataset, threshold, batch_size, seconds, progress)
    with _timed(seconds, "metric"), _announce("measuring average precision", progress):
        curves = voc_ap(
            collected.truth,
            collected.found,
            len(dataset.classes) + 1,
            iou_threshold=iou_threshold,
            use_07_metric=use_07_metric,
        )
        image_ids, category_ids = _coco_ids(dataset, collected.images)
        coco = None
        if metric == "coco":
            results = _coco_results(collected.found, image_ids, category_ids)
            coco = coco_ap(_coco_ground_truth(dataset, collected), results)
    ap = [result.ap for result in curves] if coco is None else _class_ap(coco, category_ids, len(curves))
    return Evaluation(
        metric=metric,
        measure=_measure(metric, iou_threshold, use_07_metric),
        mean_ap=_optional(mean_ap(curves) if coco is None else coco.metrics["AP"]),
        iou_threshold=iou_threshold,
        use_07_metric=use_07_metric,
        dataset=dataset.name,
        images=len(dataset),
        rows=[_row(*values) for values in zip(dataset.classes, curves, ap, strict=True)],
        coco=None if coco is None else {name: _optional(value) for name, value in coco.metrics.items()},
        seconds=seconds,
        curves=curves,
        found=collected.found,
        image_ids=image_ids,
        category_ids=category_ids,
    )


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "test",
    *,
    format: str | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Evaluation:
    """:func:`evaluate` a checkpoint (file or shipped name) on a split of a data set folder.

    The data set is opened with the checkpoint's classes: an annotation of any other class is a DataError. ``format`` is
    that of :func:`refinedet.data.open_dataset`, ``options`` are those of :func:`evaluate`.
    """
    from refinedet.weights.checkpoint import load

    model = load(checkpoint).to(device)
    return evaluate(model, open_dataset(data, split, format=format, classes=model.config.classes), **options)


def _check_choices(
    metric: str, iou_threshold: float, use_07_metric: bool, score_threshold: float, batch_size: int
) -> None:
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")
    if metric == "coco" and use_07_metric:
        raise InputError("use_07_metric belongs to the VOC metric; leave it out or choose metric='voc'")
    check_iou_threshold(iou_threshold)
    if not 0.0 <= score_threshold <= 1.0:
        raise InputError(f"score_threshold is {score_threshold}; give a value from 0 to 1")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")


def _check_classes(model: RefineDet, dataset: DetectionDataset) -> None:
    if tuple(dataset.classes) != tuple(model.config.classes):
        raise InputError(
            f"{dataset.name}: the model's classes are {', '.join(model.config.classes)}, the data set's "
            f"{', '.join(dataset.classes)}; open the data set with classes=model.config.classes"
        )


class _Image(NamedTuple):
    """What is kept of an image after it was run."""

    image_id: str
    height: int
    width: int


_Rows: TypeAlias = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # image number, labels [n], boxes [n,4], values [n]


class _Collected(NamedTuple):
    """Boxes of all images in 0-based inclusive pixels; images are numbered in the data set's order."""

    truth: GroundTruth
    found: ScoredBoxes
    images: list[_Image]


def _collect(
    model: RefineDet,
    dataset: DetectionDataset,
    score_threshold: float,
    batch_size: int,
    seconds: dict[str, float],
    progress: bool,
) -> _Collected:
    truth: list[_Rows] = []
    found: list[_Rows] = []
    images: list[_Image] = []
    one_based = isinstance(dataset, VOCDataset)
    batches = eval_batches(dataset, model.config.size, model.config.preprocessing, batch_size)
    with _eval_mode(model), tqdm(total=len(dataset), desc="evaluating", unit="image", disable=not progress) as bar:
        while True:
            with _timed(seconds, "load"):
                batch = next(batches, None)
            if batch is None:
                break
            blobs, samples = batch
            for sample, (boxes, labels, scores) in zip(
                samples, _run(model, blobs, score_threshold, seconds), strict=True
            ):
                number, size = len(images), sample.image.shape[:2]
                truth.append((number, sample.labels, truth_to_pixels(sample, one_based=one_based), sample.difficult))
                pixels = to_pixels(boxes, size).double().numpy()
                # Copies: a view would keep the padding of the whole batch.
                found.append((number, labels.numpy().copy(), pixels, scores.numpy().copy()))
                images.append(_Image(sample.image_id, *size))
            bar.update(len(samples))
    return _Collected(GroundTruth(*_stack(truth)), ScoredBoxes(*_stack(found)), images)


def _run(
    model: RefineDet, blobs: Tensor, score_threshold: float, seconds: dict[str, float]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Boxes [n,4] in units of the image side, labels [n] and scores [n] of each image of a batch, on the CPU."""
    device = model.anchors.device
    with _timed(seconds, "forward", device):
        raw = model(blobs.to(device), by_level=True)
    with _timed(seconds, "detect", device):
        detected = select_detections(model, raw, score_threshold)
        boxes, labels, scores = detected.boxes.cpu(), detected.labels.cpu(), detected.scores.cpu()
    for i, count in enumerate(detected.counts.tolist()):
        yield boxes[i, :count], labels[i, :count], scores[i, :count]


def truth_to_pixels(sample: Sample, *, one_based: bool) -> np.ndarray:
    """Ground truth [n,4] of ``sample`` in 0-based inclusive pixels, float64 (step 3 at the top of this file)."""
    height, width = sample.image.shape[:2]
    corners = np.round(sample.boxes.astype(np.float64) * (width, height, width, height), ANNOTATION_DECIMALS)
    return corners - (1.0 if one_based else (0.0, 0.0, 1.0, 1.0))


def _stack(rows: list[_Rows]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The boxes of all images in one: image numbers, labels, boxes, values."""
    numbers, labels, boxes, values = zip(*rows, strict=True)
    images = np.repeat(numbers, [len(row) for row in labels])
    return images, np.concatenate(labels), np.concatenate(boxes), np.concatenate(values)


@contextmanager
def _eval_mode(model: RefineDet) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _announce(what: str, progress: bool) -> Iterator[None]:
    """Say on stderr what is going on while no bar can tell how far it is (pycocotools: a minute on all of COCO val)."""
    with tqdm(total=1, desc=what, bar_format="{desc}: {elapsed} {postfix}", disable=not progress) as bar:
        yield
        bar.set_postfix_str("done")


@contextmanager
def _timed(seconds: dict[str, float], stage: str, device: torch.device | None = None) -> Iterator[None]:
    """Add the time of the block to ``seconds[stage]``, the work it queued on a GPU included."""
    start = time.perf_counter()
    yield
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] += time.perf_counter() - start


def _coco_ids(dataset: DetectionDataset, images: list[_Image]) -> tuple[list[int | str], dict[int, int]]:
    """Image ids by image number and category ids by label: those of the annotation file, or else made."""
    if isinstance(dataset, COCODataset):
        return [dataset.image_ids[image.image_id] for image in images], dataset.category_ids
    return [image.image_id for image in images], {label: label for label in range(1, len(dataset.classes) + 1)}


def _coco_results(
    found: ScoredBoxes, image_ids: list[int | str], category_ids: dict[int, int]
) -> Iterator[dict[str, Any]]:
    sizes = found.boxes[:, 2:] - found.boxes[:, :2] + 1
    boxes = np.round(np.concatenate([found.boxes[:, :2], sizes], axis=1), BOX_DECIMALS)
    scores = np.round(found.scores.astype(np.float64), SCORE_DECIMALS)
    for image, label, box, score in zip(found.images, found.labels, boxes, scores, strict=True):
        if label in category_ids:
            yield {
                "image_id": image_ids[image],
                "category_id": category_ids[label],
                "bbox": box.tolist(),
                "score": score.item(),
            }


def _class_ap(result: COCOResult, category_ids: dict[int, int], classes: int) -> list[float]:
    """AP of the labels 1..classes; NaN for a class without a category."""
    ap = {label: result.category_ap[category] for label, category in category_ids.items()}
    return [ap.get(label, float("nan")) for label in range(1, classes + 1)]


def _coco_ground_truth(dataset: DetectionDataset, collected: _Collected) -> dict[str, Any]:
    """COCO data keep their own annotations, whose areas are those of the objects' outlines; others get them made."""
    if isinstance(dataset, COCODataset):
        content = json.loads(dataset.annotation_file.read_bytes())
        # As the data set does; pycocotools could never match these, but would count them as missed.
        content["annotations"] = [item for item in content["annotations"] if _has_area(item["bbox"])]
        return content
    truth, images = collected.truth, collected.images
    boxes = np.concatenate([truth.boxes[:, :2], truth.boxes[:, 2:] - truth.boxes[:, :2] + 1], axis=1)
    rows = zip(truth.images.tolist(), truth.labels.tolist(), boxes.tolist(), truth.difficult.tolist(), strict=True)
    return {
        "images": [{"id": image.image_id, "height": image.height, "width": image.width} for image in images],
        "categories": [{"id": label, "name": name} for label, name in enumerate(dataset.classes, start=1)],
        "annotations": [
            {"image_id": images[image].image_id, "category_id": label, "bbox": box, "iscrowd": int(difficult)}
            for image, label, box, difficult in rows
        ],
    }


def _has_area(box: list[float]) -> bool:
    """Whether a COCO box x, y, width, height is finite, not inverted and not empty."""
    return all(map(math.isfinite, box)) and min(box[2:]) > 0


def _write_list(path: Path, items: Iterator[Any]) -> None:
    """A JSON list, written item by item: a large one need not fit in memory."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, item in enumerate(items):
            file.write((", " if number else "") + json.dumps(item))
        file.write("]")


def _row(name: str, result: ClassResult, ap: float) -> ClassRow:
    score, precision, recall, f1 = best_f1(result) or (None, None, None, None)
    return ClassRow(name, result.ground_truth, result.detections, _optional(ap), score, precision, recall, f1)


def _measure(metric: str, iou_threshold: float, use_07_metric: bool) -> str:
    if metric == "coco":
        return "AP@0.50:0.95"
    return f"AP@{iou_threshold:g} ({'11-point' if use_07_metric else 'area'})"


def _optional(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table_line(row: ClassRow, width: int) -> str:
    return (
        f"{row.name:<{width}}  {row.ground_truth:>7}  {row.detections:>10}  {_number(row.ap):>5}  "
        f"{_number(row.precision):>9}  {_number(row.recall):>6}  {_number(row.score_threshold):>8}"
    )
