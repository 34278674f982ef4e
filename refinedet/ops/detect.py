"""From the raw outputs of the network to detections: the whole inference path after the last convolution."""

from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.ops.checks import MAX_BATCH_ON_CUDA, Checks, Size
from refinedet.presets import KEEP_TOP_K, NMS_IOU, OFFICIAL, TOP_K
from refinedet.records import exportable

TOP_K_ON_CUDA, KEEP_TOP_K_ON_CUDA = 2048, 1024  # at most (csrc/ops/detect/detect.h)


@exportable
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

_WHOLE = (Tensor, NoneType)


def detect(
    arm_loc: Levels | None,
    arm_conf: Levels | None,
    odm_loc: Levels,
    odm_conf: Levels,
    anchors: Tensor,
    *,
    objectness_threshold: float = OFFICIAL.objectness_threshold,
    score_threshold: float = OFFICIAL.score_threshold,
    iou_threshold: float = NMS_IOU,
    top_k: int = TOP_K,
    keep_top_k: int = KEEP_TOP_K,
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
            instead of floating-point numbers, devices that differ, ``top_k`` or ``keep_top_k`` below 1, a negative
            ``iou_threshold``, a threshold that is NaN, or variances that are not four numbers above 0.
    """
    outputs = arm_loc, arm_conf, odm_loc, odm_conf
    options = objectness_threshold, score_threshold, iou_threshold, top_k, keep_top_k, tuple(variances)
    if (
        isinstance(odm_loc, _WHOLE)
        and isinstance(odm_conf, _WHOLE)
        and isinstance(arm_loc, _WHOLE)
        and isinstance(arm_conf, _WHOLE)
    ):
        return Detected._make(call("detect", *outputs, anchors, *options, overload="whole"))
    return Detected._make(call("detect", *map(_to_levels, outputs), anchors, *options))


def _to_levels(output: Levels | None) -> Sequence[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [] if output is None else output


def _level(outputs: dict[str, Sequence[Tensor]], i: int) -> dict[str, tuple[str, Tensor]]:
    """Name and tensor of the outputs that the network has, by output: those of level ``i``."""
    return {
        output: (output if len(levels) == 1 else f"{output}[{i}]", levels[i])
        for output, levels in outputs.items()
        if i < len(levels)
    }


def _check_devices(checks: Checks, outputs: dict[str, Sequence[Tensor]], anchors: Tensor) -> None:
    if not outputs["odm_loc"]:
        return  # _check_shapes refuses it
    first = _level(outputs, 0)["odm_loc"]
    for output in ("odm_loc", "arm_loc", "arm_conf", "odm_conf"):
        for i in range(len(outputs[output])):
            checks.same_device(first, _level(outputs, i)[output])
    checks.same_device(first, ("anchors", anchors))


def _check_shapes(checks: Checks, outputs: dict[str, Sequence[Tensor]], anchors: Tensor) -> tuple[Size, Size, Size]:
    """Returns batch, number of anchors and number of classes."""
    counts = {output: len(levels) for output, levels in outputs.items()}
    count = counts["odm_loc"]
    checks.require(1 <= count <= 4, f"odm_loc has {count} levels, expected 1 to 4")
    for output, absent in (("odm_conf", count), ("arm_loc", 0), ("arm_conf", 0)):
        given = counts[output]
        differs = f"the number of levels differs: {output} has {given}, odm_loc {count}"
        checks.require(given in (count, absent), differs)
    batch, num_classes = None, None
    num_anchors: Size = 0
    for i in range(count):
        level = _level(outputs, i)
        checks.shape(*level["odm_loc"], (batch, None, 4))
        batch, in_level, _ = level["odm_loc"][1].shape
        checks.shape(*level["odm_conf"], (batch, in_level, num_classes))
        num_classes = level["odm_conf"][1].shape[2]
        for output, width in (("arm_loc", 4), ("arm_conf", 2)):
            if output in level:
                checks.shape(*level[output], (batch, in_level, width))
        num_anchors = num_anchors + in_level
    checks.shape("anchors", anchors, (num_anchors, 4))
    batch, _, num_classes = outputs["odm_conf"][0].shape
    checks.require(num_classes >= 1, "odm_conf must have at least one class, the background")
    return batch, num_anchors, num_classes


@extension.register_fake("detect")
def _fake(
    arm_loc: Sequence[Tensor],
    arm_conf: Sequence[Tensor],
    odm_loc: Sequence[Tensor],
    odm_conf: Sequence[Tensor],
    anchors: Tensor,
    objectness_threshold: float,
    score_threshold: float,
    iou_threshold: float,
    top_k: int,
    keep_top_k: int,
    variances: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    checks = Checks("detect")
    outputs = {"arm_loc": arm_loc, "arm_conf": arm_conf, "odm_loc": odm_loc, "odm_conf": odm_conf}
    _check_devices(checks, outputs, anchors)
    batch, num_anchors, num_classes = _check_shapes(checks, outputs, anchors)
    checks.number(objectness_threshold=objectness_threshold, score_threshold=score_threshold)
    checks.at_least(0, iou_threshold=iou_threshold)
    checks.at_least(1, top_k=top_k, keep_top_k=keep_top_k)
    checks.variances(variances)
    limited = "the number of anchors", num_anchors, (2**32 - 1) // num_classes
    no_list_is_longer = isinstance(num_anchors, int) and num_anchors <= TOP_K_ON_CUDA
    checks.limits(
        anchors,
        cpu=[limited],
        cuda=[
            ("the batch size", batch, MAX_BATCH_ON_CUDA),
            ("the number of classes", num_classes, 4095),
            limited,
            ("top_k", 0 if no_list_is_longer else top_k, TOP_K_ON_CUDA),
            ("keep_top_k", keep_top_k, KEEP_TOP_K_ON_CUDA),
        ],
    )
    for i in range(len(odm_loc)):
        checks.floats(*_level(outputs, i).values())
    checks.floats(("anchors", anchors))
    return (
        anchors.new_empty((batch, keep_top_k, 4), dtype=torch.float32),
        anchors.new_empty((batch, keep_top_k), dtype=torch.float32),
        anchors.new_empty((batch, keep_top_k), dtype=torch.int64),
        anchors.new_empty((batch, keep_top_k), dtype=torch.int64),
        anchors.new_empty((batch,), dtype=torch.int64),
    )


@extension.register_fake("detect.whole")
def _(
    arm_loc: Tensor | None,
    arm_conf: Tensor | None,
    odm_loc: Tensor | None,
    odm_conf: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _fake(_to_levels(arm_loc), _to_levels(arm_conf), _to_levels(odm_loc), _to_levels(odm_conf), *arguments)
