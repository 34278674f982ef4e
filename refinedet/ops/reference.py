"""The plain-PyTorch twin of every operator, under the operator's name. Tests compare the kernels with these."""

from refinedet.ops.detect import detect_reference as detect
from refinedet.ops.match import match_reference as match
from refinedet.ops.mine import mine_reference as mine
from refinedet.ops.nms import batched_nms_reference as batched_nms
from refinedet.ops.nms import nms_reference as nms
from refinedet.ops.refine import refine_reference as refine

__all__ = ["batched_nms", "detect", "match", "mine", "nms", "refine"]
