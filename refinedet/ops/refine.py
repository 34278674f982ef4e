"""Moving anchors by predicted offsets: the decoding step of both stages."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.ops.checks import Checks
from refinedet.presets import OFFICIAL


def refine(anchors: Tensor, offsets: Tensor, variances: Sequence[float] = OFFICIAL.variances) -> Tensor:
    """Decode ``offsets`` relative to ``anchors`` (spec section 6).

    Args:
        anchors: [N,4], or [B,N,4] for anchors that differ between images; cx, cy, w, h.
        offsets: [B,N,4] encoded dx, dy, dw, dh.
        variances: scales of the four offsets.

    Returns:
        [B,N,4] float32 cx, cy, w, h, in the unit of ``anchors``; neither clipped nor clamped. Decoding is a constant in
        the losses (spec section 7), so no gradient flows through it.

    Inputs of float16, bfloat16 and float64 are converted to float32.

    Raises:
        InputError: shapes that do not fit, devices that differ, integers, or variances that are not four numbers
            above 0.
    """
    refined: Tensor = call("refine", anchors, offsets, tuple(variances))
    return refined


@extension.register_fake("refine")
def _(anchors: Tensor, offsets: Tensor, variances: Sequence[float]) -> Tensor:
    checks = Checks("refine")
    checks.same_device(("offsets", offsets), ("anchors", anchors))
    checks.shape("offsets", offsets, (None, None, 4))
    batch, num_anchors, _ = offsets.shape
    checks.shape("anchors", anchors, (num_anchors, 4) if anchors.dim() == 2 else (batch, num_anchors, 4))
    checks.variances(variances)
    checks.floats(("anchors", anchors), ("offsets", offsets))
    return offsets.new_empty(offsets.shape, dtype=torch.float32)
