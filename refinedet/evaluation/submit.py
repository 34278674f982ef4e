"""Results for the evaluation servers of VOC and COCO (spec section 10.5): checked, and packed as the servers want them.

VOC (its development kit, section "Submission of Results"): a text file per class, a line per box, "image score x1 y1 x2
y2", the first pixel being 1; the files lie in results/VOC2012/Main of a .tar.gz. COCO (its pages "Results Format" and
"Upload"): a JSON list of boxes in 0-based pixels, detections_SPLIT_ALGORITHM_results.json, alone in a .zip.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO

from refinedet.choices import COMPETITIONS
from refinedet.data import COCO_CLASSES, VOC_CLASSES, COCODataset, DetectionDataset, VOCDataset, open_dataset
from refinedet.errors import InputError, shorten, show
from refinedet.evaluation.evaluate import evaluate
from refinedet.evaluation.pixels import coco_results
from refinedet.evaluation.report import Evaluation
from refinedet.evaluation.voc_ap import ScoredBoxes
from refinedet.files import atomic_write
from refinedet.inference.detector import load
from refinedet.parsing import to_json
from refinedet.progress import SHORT, show_progress, track

COCO_BOXES = 100  # COCOeval counts so many of an image and category: the best
_TOLERANCE = 0.01  # pixels that a box may be outside its image by rounding, as the mean of boxes at its edge; it is cut
_NAMED = 10  # images in a message
_ROWS = 50_000  # that pycocotools is given at a time


class Submission(NamedTuple):
    """What was written for a server."""

    file: Path
    images: int
    detections: int  # in the file
    annotated: bool  # whether the split has annotations here, so that the evaluation could measure it


def submit_checkpoint(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str,
    out: str | os.PathLike[str],
    *,
    competition: str | None = None,
    algorithm: str | None = None,
    format: str | None = None,
    allow_outside: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    save: Callable[[Evaluation], None] | None = None,
    **options: Any,
) -> tuple[Evaluation, Submission]:
    """Run a checkpoint on a split, with or without annotations, and write the server's file into the folder ``out``.

    ``competition`` (VOC's; default: "comp4") and ``algorithm`` (COCO's; default: the name of the checkpoint's file) are
    those of :func:`submit`, the others those of :func:`refinedet.evaluation.evaluate.evaluate_checkpoint`. ``save`` is
    given the evaluation before the server's file is written, so that it is not lost where that fails. AP is None where
    the split has no annotations. What the server would refuse by its classes, its split or the name of the file, an
    option of the other server, and a folder that cannot be made are told before any image is run.
    """
    detector = load(checkpoint, device).to(dtype)
    dataset = open_dataset(
        data, split, format=format, classes=detector.classes, allow_outside=allow_outside, need_annotations=False
    )
    for option, value, kind in (("competition", competition, VOCDataset), ("algorithm", algorithm, COCODataset)):
        if value is not None and not isinstance(dataset, kind):
            server = "VOC" if kind is VOCDataset else "COCO"
            raise InputError(
                f"{option} is {show(value)}, which is of {server}'s server; leave it out for {dataset.name}"
            )
    competition = COMPETITIONS[-1] if competition is None else competition
    algorithm = default_algorithm(checkpoint) if algorithm is None else algorithm
    file = submission_file(dataset, out, competition=competition, algorithm=algorithm)
    file.parent.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate(detector, dataset, **options)
    if save is not None:
        save(evaluation)
    return evaluation, submit(evaluation, dataset, out, competition=competition, algorithm=algorithm)


def submit(
    evaluation: Evaluation,
    dataset: DetectionDataset,
    out: str | os.PathLike[str],
    *,
    competition: str = COMPETITIONS[-1],
    algorithm: str = "refinedet",
) -> Submission:
    """Write the detections of a whole split as the server of VOC or COCO wants them, whole or not at all.

    Args:
        evaluation: of every image of ``dataset``.
        dataset: a `VOCDataset` or `COCODataset` of the benchmark's classes: the server is chosen by it.
        out: the folder; it is made.
        competition: VOC's: "comp3" (trained on VOC2012 trainval alone) or "comp4" (on any data but the test images;
            pretrained backbones count).
        algorithm: the name of the method in COCO's file.

    Of an image and category the 100 best go to COCO: its metric counts no more.

    Raises InputError, before anything is written, for classes, a split or a name that the server refuses, for images
    that were not run (by name) or do not belong to the split, for boxes that are not inside their images, scores
    outside 0..1, and when there is no detection at all.
    """
    file = submission_file(dataset, out, competition=competition, algorithm=algorithm)
    _check_images(evaluation, dataset)
    evaluation = replace(evaluation, found=_check_boxes(evaluation))
    if isinstance(dataset, VOCDataset):
        count = _write_voc(file, evaluation, dataset, competition)
    else:
        count = _write_coco(file, evaluation)
    return Submission(file, len(dataset), count, dataset.annotated)


def default_algorithm(checkpoint: str | os.PathLike[str]) -> str:
    """A name for a checkpoint's method: its file's, with - for what is neither a letter nor a digit."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(checkpoint).stem).strip("-") or "refinedet"


def submission_file(
    dataset: DetectionDataset, out: str | os.PathLike[str], *, competition: str, algorithm: str
) -> Path:
    """The file that `submit` writes; raises as it does for what is known before any image is run."""
    if os.path.lexists(out) and not os.path.isdir(out):
        raise InputError(f"{os.fspath(out)}: is a file; give a folder for the server's file")
    file = Path(out) / _file_name(dataset, competition, algorithm)
    if file.is_dir():
        raise InputError(f"{file}: is a folder, where the server's file is to be; move it, or give another folder")
    return file


def _file_name(dataset: DetectionDataset, competition: str, algorithm: str) -> str:
    if isinstance(dataset, VOCDataset):
        if competition not in COMPETITIONS:
            raise InputError(f"competition is {competition!r}; choose one of {', '.join(COMPETITIONS)}")
        _check_classes(dataset, VOC_CLASSES, "VOC")
        _voc_year(dataset)
        return f"{competition}_det_{dataset.split}.tar.gz"
    if isinstance(dataset, COCODataset):
        if not re.fullmatch(r"[A-Za-z0-9.-]+", algorithm):
            raise InputError(f"algorithm is {show(algorithm)}; give a name of letters, digits, dots and hyphens")
        _check_classes(dataset, COCO_CLASSES, "COCO")
        return f"detections_{dataset.split}_{algorithm}_results.zip"
    raise InputError(f"{dataset.name}: there are servers for VOC and COCO; open the split of one of them alone")


def _check_classes(dataset: DetectionDataset, wanted: Sequence[str], server: str) -> None:
    names = {dataset.classes[label - 1] for label in dataset.category_ids}
    missing, others = [n for n in wanted if n not in names], [n for n in dataset.classes if n not in wanted]
    if missing or others:
        raise InputError(
            f"{dataset.name}: the server of {server} takes its {len(wanted)} classes; the model or the annotation "
            f"file lacks {shorten(missing) or 'none'}, and of others has {shorten(others) or 'none'}; take a model of "
            f"{server}'s classes"
        )


def _voc_year(dataset: VOCDataset) -> str:
    """The name of the challenge, which is that of the data folder, or of the link to it."""
    year = Path(os.path.abspath(dataset.root)).name
    if not re.fullmatch(r"VOC20\d\d", year):
        raise InputError(f"{dataset.root}: the server wants the challenge's name, such as VOC2012; call the folder so")
    return year


def _check_images(evaluation: Evaluation, dataset: DetectionDataset) -> None:
    wanted, done = [record.image_id for record in dataset.records], evaluation.image_ids
    run, known = set(done), set(wanted)
    missing = [str(image) for image in wanted if image not in run]
    if missing:
        raise InputError(
            f"{dataset.name}: {len(missing)} of {len(wanted)} images were not run ({shorten(missing, _NAMED)}); a "
            "submission needs every image of the split"
        )
    others = [str(image) for image in done if image not in known]
    if others or len(run) < len(done):
        raise InputError(
            f"{dataset.name}: of the images that were run {shorten(others, _NAMED) or 'some'} do not belong to the "
            "split, or were run twice; run the images of the split, once each"
        )


def _check_boxes(evaluation: Evaluation) -> ScoredBoxes:
    """The detections, exactly inside their images; InputError where boxes, scores or labels are out of range."""
    images, labels, boxes, scores = evaluation.found
    if not len(scores):
        raise InputError(
            "there is no detection at all, and servers refuse an empty file; take a model that "
            "finds something, or a protocol with a lower score_threshold"
        )
    sizes = np.asarray(evaluation.image_sizes)[images]  # height, width
    last = sizes[:, [1, 0, 1, 0]] - 1.0  # 0-based inclusive pixels
    inside = np.clip(boxes, 0.0, last)
    sound = (np.abs(inside - boxes) <= _TOLERANCE).all(1)  # False for NaN
    ordered = (boxes[:, :2] <= boxes[:, 2:] + _TOLERANCE).all(1)
    scored = (scores >= 0) & (scores <= 1)
    labelled = (labels >= 1) & (labels <= len(evaluation.rows))
    wrong = np.flatnonzero(~(sound & ordered & scored & labelled))
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"image {evaluation.image_ids[images[row]]}: box {boxes[row].tolist()} of label {labels[row]} and score "
            f"{scores[row]} is not inside {sizes[row][1]}x{sizes[row][0]} pixels, or score or label are out of range "
            f"({len(wrong)} of {len(scores)} detections); clip boxes to their image, scores to 0..1"
        )
    inside[:, 2:] = np.maximum(inside[:, :2], inside[:, 2:])
    return ScoredBoxes(images, labels, inside, scores)


def _write_voc(file: Path, evaluation: Evaluation, dataset: VOCDataset, competition: str) -> int:
    folder = f"results/{_voc_year(dataset)}/Main"
    found = evaluation.found
    with (
        atomic_write(file) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        labels = range(1, len(evaluation.rows) + 1)
        for label in track(labels, "writing the files of the server", "class"):
            rows = np.flatnonzero(found.labels == label)
            rows = rows[np.argsort(-found.scores[rows], kind="stable")]
            text = "".join(_voc_lines(rows, evaluation)).encode()
            entry = tarfile.TarInfo(f"{folder}/{competition}_det_{dataset.split}_{dataset.classes[label - 1]}.txt")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return len(found.scores)


def _voc_lines(rows: np.ndarray, evaluation: Evaluation) -> Iterator[str]:
    """Coordinates count from 1, and have six decimals as the released code writes them (spec section 10.5)."""
    images, _, boxes, scores = evaluation.found
    columns = images[rows].tolist(), scores[rows].tolist(), (boxes[rows] + 1).tolist()
    for image, score, (x1, y1, x2, y2) in zip(*columns, strict=True):
        yield f"{evaluation.image_ids[image]} {score:.6f} {x1:.6f} {y1:.6f} {x2:.6f} {y2:.6f}\n"


def _write_coco(file: Path, evaluation: Evaluation) -> int:
    found = _best_of_each(evaluation.found)
    rows = coco_results(found, evaluation.image_ids, evaluation.category_ids)
    entry = zipfile.ZipInfo(f"{file.stem}.json")
    entry.compress_type = zipfile.ZIP_DEFLATED
    with (
        atomic_write(file) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as document,
        show_progress(
            "writing the file of the server", "detection", len(found.scores), delay=SHORT, leave=False
        ) as bar,
    ):
        document.write(b"[")
        for number, chunk in enumerate(_chunks(rows)):
            text = to_json(chunk)[1:-1]
            _load_as_coco(chunk, evaluation)
            document.write(f"{',' if number else ''}\n{text}".encode())
            bar.update(len(chunk))
        document.write(b"]\n")
    return len(found.scores)


def _best_of_each(found: ScoredBoxes) -> ScoredBoxes:
    """The best `COCO_BOXES` of each image and label, by image, label and descending score; ties in the order given."""
    order = np.lexsort((-found.scores, found.labels, found.images))
    images, labels = found.images[order], found.labels[order]
    begins = np.flatnonzero(np.r_[True, (np.diff(images) != 0) | (np.diff(labels) != 0)])
    ranks = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    kept = order[ranks < COCO_BOXES]
    return ScoredBoxes(*(np.asarray(column)[kept] for column in found))


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(islice(rows, _ROWS)):
        yield chunk


def _load_as_coco(rows: list[dict[str, Any]], evaluation: Evaluation) -> None:
    """Give the rows to pycocotools as the server does, which sees no more than that the images are known."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in evaluation.image_ids],
        "categories": [{"id": category} for category in evaluation.category_ids.values()],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        truth.loadRes(rows)
