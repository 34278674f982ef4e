"""Box voting and soft box voting: the merge of what several passes found in an image."""

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.ops.checks import MAX_BATCH_ON_CUDA, Checks
from refinedet.ops.detect import Detected
from refinedet.ops.ranked import ranked


def vote(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float = 0.45,
    soft: bool = False,
    score_threshold: float = 0.05,
    official: bool = False,
) -> Detected:
    """Merge boxes of a class that overlap the best of them into their mean (spec section 10.4).

    In each class of each image the box of the highest score, equal scores by row ascending, is a top. It and all boxes
    whose IoU with it is at least ``iou_threshold`` become one, with its score and the mean of their corners, weighted
    by score. Then the best of the others is a top, until none is left.

    Args:
        boxes: [B,N,4] corners x1, y1, x2, y2, any unit.
        scores: [B,N]. One below 0 has no weight.
        labels: [B,N] int64; boxes of different labels never meet. Rows with a label of 0 or below are padding: what
            `detect` returns, and several of it concatenated along N, goes in as it is.
        iou_threshold: a box joins a top from there on; at 0 all boxes of a class become one, above 1 nothing is merged.
        soft: soft box voting: a box that joined a top also comes out itself, with score * (1 - IoU with the top).
        score_threshold: of soft voting alone: such a box goes when that score is below.
        official: as the released code has it, for boxes in pixels: a box reaches to the end of its last pixel (sides
            are x2 - x1 + 1).

    Returns:
        The tops, and with ``soft`` what joined them: K = N, ``indices`` are the input's rows; a mean has its top's.

    A row with a NaN score or a coordinate that is not finite is dropped. A box without area overlaps nothing. A top
    that nothing joins keeps its box, and so does one whose mean is not finite: no score of its boxes is above 0, one
    is infinite, or numbers overflow. Inputs of float16, bfloat16 and float64 are converted to float32.

    Raises:
        InputError: shapes that do not fit, integer boxes or scores, labels that are not int64, a negative or NaN
            ``iou_threshold``, or a ``score_threshold`` that is NaN.
    """
    voted_boxes, voted_scores = call("vote", boxes, scores, labels, iou_threshold, soft, score_threshold, official)
    return ranked(voted_boxes, voted_scores, labels)


@extension.register_fake("vote")
def _(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    soft: bool,
    score_threshold: float,
    official: bool,
) -> tuple[Tensor, Tensor]:
    checks = Checks("vote")
    checks.same_device(("boxes", boxes), ("scores", scores), ("labels", labels))
    checks.shape("boxes", boxes, (None, None, 4))
    batch, num_boxes, _ = boxes.shape
    checks.shape("scores", scores, (batch, num_boxes))
    checks.shape("labels", labels, (batch, num_boxes))
    checks.at_least(0, iou_threshold=iou_threshold)
    checks.number(score_threshold=score_threshold)
    limited = "the number of boxes", num_boxes
    checks.limits(
        boxes,
        cpu=[(*limited, 2**32 - 1)],
        cuda=[("the batch size", batch, MAX_BATCH_ON_CUDA), (*limited, 2**31 - 1)],
    )
    checks.floats(("boxes", boxes), ("scores", scores))
    checks.int64(("labels", labels))
    return (
        boxes.new_empty((batch, num_boxes, 4), dtype=torch.float32),
        boxes.new_empty((batch, num_boxes), dtype=torch.float32),
    )
