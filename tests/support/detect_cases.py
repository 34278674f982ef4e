"""Inputs of the operator tests: golden cases of the official layer, and random numbers with trouble mixed in."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from support.paths import GOLDEN
from torch import Tensor

from refinedet.boxes import to_centers
from refinedet.ops import Detected

DETOUT = GOLDEN / "detout"
GOLDEN_NAMES = sorted(path.stem for path in DETOUT.glob("*.npz"))


@dataclass(frozen=True)
class GoldenRun:
    """One parameter set of a golden case: arguments of ``ops.detect`` and the official rows."""

    tag: str
    options: dict
    rows: np.ndarray  # [K,7] image, label, score, x1, y1, x2, y2
    anchors: np.ndarray  # [K]


def load_golden(name: str) -> tuple[tuple[Tensor, ...], list[GoldenRun]]:
    """(arm_loc, arm_conf, odm_loc, odm_conf, anchors), log-probabilities as logits, and the official runs."""
    with np.load(DETOUT / f"{name}.npz") as data:
        arm_loc, arm_conf, odm_loc, odm_conf = (
            torch.from_numpy(data[key]) for key in ("arm_loc", "arm_conf", "odm_loc", "odm_conf")
        )
        inputs = (arm_loc, arm_conf.log(), odm_loc, odm_conf.log(), to_centers(torch.from_numpy(data["priors"])))
        return inputs, [_run(data, run["tag"], run["params"]) for run in json.loads(str(data["meta"]))["runs"]]


def _run(data: np.lib.npyio.NpzFile, tag: str, params: dict) -> GoldenRun:
    options = {
        "objectness_threshold": params["objectness_score"],
        "score_threshold": params["confidence_threshold"],
        "iou_threshold": params["nms_threshold"],
        "top_k": params["top_k"],
        "keep_top_k": params["keep_top_k"],
    }
    anchors = data[f"prior_idx__{tag}"]
    real = anchors >= 0  # an empty batch has a placeholder row per image
    return GoldenRun(tag, options, data[f"det__{tag}"][real], anchors[real])


def official_rows(detected: Detected) -> tuple[np.ndarray, np.ndarray]:
    """Detections as the official layer lists them: by image, label, score descending, anchor."""
    rows, anchors = [], []
    for image, count in enumerate(detected.counts.tolist()):
        boxes, scores, labels, indices = (field[image, :count].numpy() for field in detected[:4])
        order = np.lexsort((indices, -scores, labels))
        rows.append(np.column_stack([np.full(count, image), labels, scores, boxes])[order])
        anchors.append(indices[order])
    return np.concatenate(rows), np.concatenate(anchors)


def in_levels(inputs: tuple[Tensor | None, ...], sizes: Sequence[int]) -> tuple:
    """The four outputs of the network in levels of so many anchors, and the anchors."""
    *outputs, anchors = inputs
    return (*(None if output is None else output.split(list(sizes), dim=1) for output in outputs), anchors)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


TROUBLE = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30)


def random_tensor(
    rng: np.random.Generator, shape: tuple[int, ...], *, scale: float, steps: bool, trouble: float
) -> Tensor:
    """Normal numbers; in quarters when ``steps`` (many ties); a share ``trouble`` becomes NaN, inf, zeros."""
    values = rng.normal(0, scale, shape)
    if steps:
        values = np.round(values * 4) / 4
    replaced = rng.random(shape) < trouble
    values[replaced] = rng.choice(TROUBLE, replaced.sum())
    return torch.from_numpy(values.astype(np.float32))


def random_anchors(rng: np.random.Generator, count: int) -> Tensor:
    """[count,4] cx, cy, w, h; some of no or negative size."""
    centers = rng.uniform(0, 1, (count, 2))
    sizes = rng.uniform(0.05, 0.6, (count, 2))
    sizes[rng.random((count, 2)) < 0.05] = 0
    sizes[rng.random((count, 2)) < 0.05] *= -1
    return torch.from_numpy(np.concatenate([centers, sizes], axis=1).astype(np.float32))
