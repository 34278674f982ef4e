"""nms on the harness: the launcher with the face of ``ops.batched_nms``, and the quick cases that mutate.py uses."""

import numpy as np
import torch
from simulated.harness import Harness
from simulated.torch_arrays import DTYPES, to_array
from torch import Tensor

from refinedet import ops

BAND = 4096  # boxes that are resolved together, kBandTiles of csrc/ops/nms/nms_cuda.cu


def nms(
    harness: Harness,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    iou_threshold: float,
    *,
    misaligned: bool = False,
    seed: int = 0,
) -> Tensor:
    """The CUDA ``nms`` after the sort that its registration does."""
    count = len(boxes)
    if boxes.dtype not in DTYPES:
        boxes = boxes.float()
    scores = scores.float()
    arrays = {
        "boxes": to_array(boxes.contiguous()),
        "scores": scores.numpy(),
        "order": scores.argsort(descending=True, stable=True).numpy(),
    }
    if labels is not None:
        arrays["labels"] = labels.numpy()
    result = harness.run(
        "nms",
        arrays,
        {"type": DTYPES.index(boxes.dtype), "num_boxes": count, "iou_threshold": float(iou_threshold)},
        {"kept": (np.int64, (count,)), "count": (np.int64, (1,))},
        seed=seed,
        misaligned=("boxes",) if misaligned else (),
    )
    bands = -(-count // BAND)
    assert result.launches == (3 * bands if bands > 0 else 0)
    return torch.from_numpy(result.outputs["kept"][: result.outputs["count"][0]].copy())


def check_case(
    harness: Harness, boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, *, seed: int = 0
) -> Tensor:
    """Runs the kernels and the CPU operator, which must agree."""
    kept = nms(harness, boxes, scores, labels, iou_threshold, seed=seed)
    if labels is None:
        expected = ops.nms(boxes, scores, iou_threshold)
    else:
        expected = ops.batched_nms(boxes, scores, labels, iou_threshold)
    assert torch.equal(kept, expected)
    return kept


def random_case(seed: int, count: int, classes: int, *, size: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in the unit square with sides up to ``size``, scores with ties, labels."""
    rng = np.random.default_rng(seed)
    low, sides = rng.uniform(0, 1, (count, 2)), rng.uniform(0, size, (count, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + sides], axis=1).astype(np.float32))
    scores = torch.from_numpy(rng.integers(0, 4 * count + 1, count).astype(np.float32))
    return boxes, scores, torch.from_numpy(rng.integers(0, classes, count))


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    check_case(harness, *random_case(0, 200, 2), 0.3, seed=1)
    if harness.variant == "plain":
        check_case(harness, *random_case(1, BAND + 100, 2), 0.3, seed=2)
