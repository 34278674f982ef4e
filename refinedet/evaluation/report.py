"""What an evaluation found, as a table and as files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refinedet.errors import printable
from refinedet.evaluation.pixels import coco_results
from refinedet.evaluation.voc_ap import ClassResult, ScoredBoxes, best_f1
from refinedet.files import atomic_write, write_text
from refinedet.parsing import to_json

_NOT_IN_JSON = ("rows", "curves", "found", "image_ids", "image_sizes", "category_ids")


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
    """The result of :func:`refinedet.evaluation.evaluate.evaluate`.

    ``mean_ap`` is the mean over the classes that have ground truth (None if none has); the others have AP None, "-" in
    the table. ``curves`` are always VOC's, at ``iou_threshold``, one per class in the order of ``rows``.
    """

    metric: str  # "voc", "voc07" or "coco"
    measure: str  # what AP means here, in words
    mean_ap: float | None
    iou_threshold: float
    dataset: str
    images: int
    protocol: str | None  # the name of the testing protocol; None: the thresholds of the model's preset, at its size
    rows: list[ClassRow]
    coco: dict[str, float | None] | None  # COCO's twelve numbers, None where nothing is to be found
    seconds: dict[str, float]  # by stage: `refinedet.inference.timing.STAGES` and metric
    curves: list[ClassResult] = field(repr=False)
    found: ScoredBoxes = field(repr=False)  # all detections: image numbers, labels, boxes in 0-based pixels, scores
    image_ids: list[int | str] = field(repr=False)  # by image number
    image_sizes: list[tuple[int, int]] = field(repr=False)  # height, width in pixels, by image number
    category_ids: dict[int, int | str] = field(repr=False)  # by label; one that a COCO annotation file lacks is absent

    def to_json(self) -> str:
        """The numbers, without curves and detections, as JSON text; numbers that do not exist are null."""
        values = {name: value for name, value in vars(self).items() if name not in _NOT_IN_JSON}
        return to_json({**values, "rows": [asdict(row) for row in self.rows]}, indent=2)

    def table(self) -> str:
        """A line per class, the mean, COCO's numbers if measured, and the time per stage."""
        width = max(len("class"), *(len(printable(row.name)) for row in self.rows))
        lines = [
            f"{'class':<{width}}  objects  detections     AP  precision  recall  at score",
            *(_table_line(row, width) for row in self.rows),
            f"mean {self.measure} of {sum(row.ap is not None for row in self.rows)} classes: {_number(self.mean_ap)}",
        ]
        if self.coco:
            numbers = [f"{name} {_number(value)}" for name, value in self.coco.items()]
            lines += ["  ".join(numbers[:6]), "  ".join(numbers[6:])]
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items())
        tested = "" if self.protocol is None else f", protocol {printable(self.protocol)}"
        lines.append(f"{self.images} images{tested}, {sum(self.seconds.values()):.2f} s: {stages}")
        return "\n".join(lines)

    def coco_results(self) -> Iterator[dict[str, Any]]:
        """The detections in COCO's results format, one by one; those of a class without a category are left out."""
        return coco_results(self.found, self.image_ids, self.category_ids)

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


def class_row(name: str, result: ClassResult, ap: float) -> ClassRow:
    """The row of a class from its curve and its AP, which is NaN without ground truth."""
    score, precision, recall, f1 = best_f1(result) or (None, None, None, None)
    return ClassRow(name, result.ground_truth, result.detections, optional(ap), score, precision, recall, f1)


def measure(metric: str, iou_threshold: float) -> str:
    """What AP means under a metric, in words."""
    if metric == "coco":
        return "AP@0.50:0.95"
    return f"AP@{iou_threshold:g} ({'11-point' if metric == 'voc07' else 'area'})"


def optional(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if math.isnan(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table_line(row: ClassRow, width: int) -> str:
    return (
        f"{printable(row.name):<{width}}  {row.ground_truth:>7}  {row.detections:>10}  {_number(row.ap):>5}  "
        f"{_number(row.precision):>9}  {_number(row.recall):>6}  {_number(row.score_threshold):>8}"
    )


def _write_list(path: Path, items: Iterator[Any]) -> None:
    """A JSON list, written item by item: a large one need not fit in memory."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, item in enumerate(items):
            file.write((", " if number else "") + to_json(item))
        file.write("]")
