"""match on the harness: the launcher with the face of ``ops.match``, and the quick cases that mutate.py uses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from simulated.harness import Harness
from torch import Tensor

from refinedet import ops
from refinedet.boxes import to_corners
from refinedet.ops import Match

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # anchors, boxes, labels, offsets


def match(
    harness: Harness,
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    iou_threshold: float = 0.5,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    *,
    misaligned: bool = False,
    seed: int = 0,
) -> Match:
    """The CUDA ``match``; like the operator, converts half types to float32 before the kernels."""
    arrays = {
        "anchors": anchors.float().numpy(),
        "gt_boxes": gt_boxes.float().numpy(),
        "gt_labels": gt_labels.numpy(),
        "gt_offsets": gt_offsets.numpy(),
    }
    size = (len(gt_offsets) - 1, anchors.shape[-2])
    scalars = {
        "batch": size[0],
        "num_anchors": size[1],
        "num_truths": len(gt_boxes),
        "shared_anchors": anchors.dim() == 2,
        "iou_threshold": float(iou_threshold),
        **{f"variance_{axis}": float(value) for axis, value in zip("xywh", variances, strict=True)},
    }
    outputs = {
        "labels": (np.int64, size),
        "targets": (np.float32, (*size, 4)),
        "indices": (np.int64, size),
        "ious": (np.float32, size),
    }
    wanted = ("anchors", "gt_boxes") if misaligned else ()
    result = harness.run("match", arrays, scalars, outputs, seed=seed, misaligned=wanted)
    assert result.launches <= 2
    assert result.workspace_bytes <= 8 * len(gt_boxes) + size[0] * (size[1] / 2 + 16) + 512  # O(B N + M)
    return Match(*(torch.from_numpy(result.outputs[name].copy()) for name in outputs))


def check_case(harness: Harness, inputs: Inputs, **arguments: Any) -> Match:
    """Runs the kernels and the CPU operator: the same matches and IoUs, targets within a rounding of the logarithm."""
    found = match(harness, *inputs, **arguments)
    options = {name: value for name, value in arguments.items() if name not in ("misaligned", "seed")}
    expected = ops.match(*inputs, **options)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.ious, expected.ious)
    torch.testing.assert_close(found.targets, expected.targets, rtol=1e-6, atol=1e-6)
    return found


def random_inputs(
    seed: int, anchors: int, counts: Sequence[int], *, shared: bool = False, copies: int = 1, usable: int | None = None
) -> Inputs:
    """Boxes of all sizes; each box of an image ``copies`` times in a row, so that they compete for anchors.

    Of all boxes only about ``usable`` overlap anything; the others are inverted.
    """
    random = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=random) * torch.tensor([1.0, 1.0, 0.5, 0.5])

    gt = [to_corners(boxes(-(-count // copies))).repeat_interleave(copies, dim=0)[:count] for count in counts]
    gt_boxes, total = torch.cat(gt).reshape(-1, 4), sum(counts)
    if usable is not None:
        inverted = torch.rand(total, generator=random) > usable / total
        gt_boxes[inverted] = gt_boxes[inverted].roll(2, dims=1)
    labels = torch.randint(1, 21, (total,), generator=random)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return boxes(anchors) if shared else boxes(len(counts), anchors), gt_boxes, labels, offsets


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    # More boxes than a tile holds, in an image that is not the last; anchors that end within a block.
    check_case(harness, random_inputs(0, 300, [290, 0, 40], copies=2), seed=1)
    # One block of anchors, for ThreadSanitizer; boxes compete.
    check_case(harness, random_inputs(1, 70, [20], copies=4), seed=2)
    # A ground truth that moves on to an anchor of another warp's search, again and again.
    check_case(harness, random_inputs(2, 600, [30], copies=30), seed=3)
    # Offsets are not trusted.
    anchors, boxes, labels, _ = random_inputs(3, 20, [5])
    match(harness, anchors.expand(3, -1, -1), boxes, labels, torch.tensor([-7, 3, 1, 12]))
