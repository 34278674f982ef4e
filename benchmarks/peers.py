"""What a practitioner writes with PyTorch and torchvision: the peers of the operators, with their arguments.

The peers of nms and batched_nms are torchvision's, that of refine is refinedet.boxes.decode.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from refinedet import ops
from refinedet.boxes import decode, encode, to_corners


def detect(
    arm_loc: Tensor,
    arm_conf: Tensor,
    odm_loc: Tensor,
    odm_conf: Tensor,
    anchors: Tensor,
    objectness_threshold: float = 0.01,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 1000,
    keep_top_k: int = 500,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Boxes, scores, labels and anchor indices per image: filter first, then everything for the survivors only."""
    found = []
    for image in range(len(odm_loc)):
        kept = (arm_conf[image].softmax(-1)[:, 1] >= objectness_threshold).nonzero().squeeze(1)
        boxes = to_corners(decode(decode(anchors[kept], arm_loc[image, kept]), odm_loc[image, kept]))
        scores = odm_conf[image, kept].softmax(-1)[:, 1:]
        if len(kept) > top_k:
            values, rows = scores.topk(top_k, dim=0)
            above = values > score_threshold
            rows, classes, values = rows[above], above.nonzero()[:, 1], values[above]
        else:
            rows, classes = (scores > score_threshold).nonzero(as_tuple=True)
            values = scores[rows, classes]
        best = batched_nms(boxes[rows], values, classes, iou_threshold)[:keep_top_k]
        found.append((boxes[rows[best]], values[best], classes[best] + 1, kept[rows[best]]))
    return found


def assert_detects_the_same(inputs: tuple[Tensor, ...]) -> None:
    """``ops.detect`` finds what its peer does."""
    detected = ops.detect(*inputs)
    for image, (boxes, scores, labels, indices) in enumerate(detect(*inputs)):
        count = int(detected.counts[image])
        assert torch.equal(detected.indices[image, :count], indices)
        assert torch.equal(detected.labels[image, :count], labels)
        torch.testing.assert_close(detected.scores[image, :count], scores, rtol=1e-5, atol=0)
        torch.testing.assert_close(detected.boxes[image, :count], boxes, rtol=1e-5, atol=1e-6)


def match(
    anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, gt_offsets: Tensor, iou_threshold: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, targets, indices and best IoUs by vectorised PyTorch: a loop only where two objects want one anchor."""
    size, device = (len(gt_offsets) - 1, len(anchors)), anchors.device
    labels, indices = torch.zeros(size, dtype=torch.int64, device=device), torch.full(size, -1, device=device)
    targets, ious = torch.zeros(*size, 4, device=device), torch.zeros(size, device=device)
    corners = to_corners(anchors)
    for image, (first, last) in enumerate(pairwise(gt_offsets.tolist())):
        iou = box_iou(gt_boxes[first:last], corners)
        ious[image], best = iou.max(dim=0)
        best[ious[image] < iou_threshold] = -1
        truths, taken = _bipartite(iou)
        best[taken] = truths
        indices[image] = best
        matched = (best >= 0).nonzero().squeeze(1)
        rows = best[matched] + first
        labels[image, matched] = gt_labels[rows]
        targets[image, matched] = encode(gt_boxes[rows], anchors[matched])
    return labels, targets, indices, ious


def _bipartite(iou: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy pairs of rows and columns of ``iou``, which it overwrites."""
    best, column = iou.max(dim=1)
    if len(column.unique()) == len(column):
        return torch.arange(len(column), device=column.device), column
    rows, columns = [], []
    for _ in range(len(iou)):
        row = best.argmax()
        rows.append(row)
        columns.append(column[row].clone())
        iou[row] = -1
        iou[:, columns[-1]] = -1
        best[row] = -1
        stale = (column == columns[-1]) & (best > 0)
        if stale.any():
            best[stale], column[stale] = iou[stale].max(dim=1)
    return torch.stack(rows), torch.stack(columns)


def mine(losses: Tensor, labels: Tensor, ious: Tensor, objectness: Tensor) -> Tensor:
    """The usual mining: sort the losses of all anchors, rank them, keep the first ranks."""
    if losses.dim() == 3:
        losses = -losses.log_softmax(dim=-1)[..., 0]
    eligible = (labels == 0) & (ious < 0.5) & (objectness >= 0.01)
    losses = losses.masked_fill(~eligible, -torch.inf)
    rank = losses.argsort(dim=1, descending=True).argsort(dim=1)
    wanted = 3 * (labels > 0).sum(dim=1, keepdim=True)
    return eligible & (rank < wanted)
