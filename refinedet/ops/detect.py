"""From the raw outputs of the network to detections: the whole inference path after the last convolution."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.presets import OFFICIAL


class Detected(NamedTuple):
    """Detections of B images, K rows each; of image b the first ``counts[b]`` rows are real.

    Rows come by score descending, equal scores by anchor ascending, then by class ascending.
    """

    boxes: Tensor  # [B,K,4] float32 corners x1, y1, x2, y2 in units of the image side, not clipped; padding 0
    scores: Tensor  # [B,K] float32 probability of the class; padding 0
    labels: Tensor  # [B,K] int64 class, >= 1; padding 0
    indices: Tensor  # [B,K] int64 anchor the detection comes from; padding -1
    counts: Tensor  # [B] int64


Levels: TypeAlias = Tensor | Sequence[Tensor]
"""An output of the network for all anchors, or a tensor for each level."""


def detect(
    arm_loc: Levels | None,
    arm_conf: Levels | None,
    odm_loc: Levels,
    odm_conf: Levels,
    anchors: Tensor,
    *,
    objectness_threshold: float = OFFICIAL.objectness_threshold,
    score_threshold: float = OFFICIAL.score_threshold,
    iou_threshold: float = OFFICIAL.nms_iou,
    top_k: int = OFFICIAL.top_k,
    keep_top_k: int = OFFICIAL.keep_top_k,
    variances: Sequence[float] = OFFICIAL.variances,
) -> Detected:
    """Filter, decode and suppress, fused (spec section 8).

    An anchor whose P(object) is below ``objectness_threshold`` is dropped before any other work. The others are moved
    twice (ARM, then ODM offsets). Per class, boxes scoring above ``score_threshold`` compete: the best ``top_k`` go
    through non-maximum suppression. The best ``keep_top_k`` of all classes of the image are returned.

    Each output of the network is one tensor [B,N,*], or a sequence of one to four tensors [B,n,*], the levels: outputs
    of consecutive anchors, as many of each level in all four. Levels are read where they lie, so nothing has to be
    concatenated before: give ``conv(x).permute(0, 2, 3, 1).reshape(B, -1, 4)``, a view if the convolution puts out
    channels-last. What is not contiguous is copied once.

    Args:
        arm_loc: [B,N,4] offsets of the refinement stage; None to decode the plain anchors (no cascade).
        arm_conf: [B,N,2] logits (background, object); None to keep every anchor.
        odm_loc: [B,N,4] offsets of the detection stage.
        odm_conf: [B,N,C] logits, class 0 = background.
        anchors: [N,4] cx, cy, w, h in units of the image side.
        objectness_threshold: 1 - theta of the paper.
        score_threshold: a class score must be above it.
        iou_threshold: a box goes when intersection > iou_threshold * union with a kept box of its class.
        top_k: boxes per class that enter suppression.
        keep_top_k: detections per image, and the number K of rows returned.
        variances: scales of the offsets, both stages.

    Inputs of float16, bfloat16 and float64 are converted to float32. A NaN score or objectness and a box with a
    coordinate that is not finite are dropped.

    Raises:
        InputError: shapes that do not fit together, levels that are more than four or differ in number, integers
            instead of floating-point numbers, ``top_k`` or ``keep_top_k`` below 1, a negative ``iou_threshold``, or a
            threshold that is NaN.
    """
    outputs = call(
        "detect",
        *(_to_levels(output) for output in (arm_loc, arm_conf, odm_loc, odm_conf)),
        anchors,
        objectness_threshold,
        score_threshold,
        iou_threshold,
        top_k,
        keep_top_k,
        tuple(variances),
    )
    return Detected(*outputs)


def _to_levels(output: Levels | None) -> Sequence[Tensor]:
    if output is None:
        return []
    return [output] if isinstance(output, Tensor) else output


@extension.register_fake("detect")
def _(
    arm_loc: Sequence[Tensor],
    arm_conf: Sequence[Tensor],
    odm_loc: Sequence[Tensor],
    odm_conf: Sequence[Tensor],
    anchors: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, keep_top_k, _variances = options
    batch = odm_loc[0].shape[0]
    return (
        anchors.new_empty((batch, keep_top_k, 4), dtype=torch.float32),
        anchors.new_empty((batch, keep_top_k), dtype=torch.float32),
        anchors.new_empty((batch, keep_top_k), dtype=torch.int64),
        anchors.new_empty((batch, keep_top_k), dtype=torch.int64),
        anchors.new_empty((batch,), dtype=torch.int64),
    )
