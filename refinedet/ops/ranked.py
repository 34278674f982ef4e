"""The last part of the operators that score rows anew: the rows as detections, best first."""

import torch
from torch import Tensor

from refinedet.ops.detect import Detected


def ranked(boxes: Tensor, scores: Tensor, labels: Tensor) -> Detected:
    """The rows of each image as detections, K = N: by score descending, equal scores by row ascending, then padding.

    Args:
        boxes: [B,N,4].
        scores: [B,N] float32; a NaN drops the row.
        labels: [B,N] int64.

    ``indices`` are rows. One stable sort, which is torch's, and gathers: nothing waits for the device.
    """
    # Ascending, as NaN comes last then; not the NaN of the negation, whose sign a radix sort would look at.
    keys = torch.where(scores.isnan(), torch.nan, -scores)
    order = keys.sort(dim=1, stable=True).indices
    scores = scores.gather(1, order)
    used = ~scores.isnan()
    corners = boxes.detach().float().gather(1, order[..., None].expand(-1, -1, 4))
    return Detected(
        torch.where(used[..., None], corners, 0.0),
        torch.where(used, scores, 0.0),
        torch.where(used, labels.gather(1, order), 0),
        torch.where(used, order, -1),
        used.sum(dim=1),
    )
