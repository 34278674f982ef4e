"""The plain-PyTorch twin of every operator, under the operator's name. Tests compare the kernels with these."""

from refinedet.ops.reference.detect import detect
from refinedet.ops.reference.match import match
from refinedet.ops.reference.mine import mine
from refinedet.ops.reference.nms import batched_nms, nms
from refinedet.ops.reference.refine import refine
from refinedet.ops.reference.soft_nms import soft_nms
from refinedet.ops.reference.vote import vote

__all__ = ["batched_nms", "detect", "match", "mine", "nms", "refine", "soft_nms", "vote"]
