"""The operators of RefineDet: compiled kernels behind one Python function each.

Every operator has a twin in plain PyTorch in :mod:`refinedet.ops.reference`, under the same name: shorter, slower, and
the place to start reading.
"""

from refinedet.ops import reference
from refinedet.ops.detect import Detected, detect
from refinedet.ops.extension import library_path
from refinedet.ops.match import Match, match
from refinedet.ops.mine import mine
from refinedet.ops.nms import batched_nms, nms
from refinedet.ops.refine import refine
from refinedet.ops.soft_nms import soft_nms
from refinedet.ops.vote import vote

__all__ = [
    "Detected",
    "Match",
    "batched_nms",
    "detect",
    "library_path",
    "match",
    "mine",
    "nms",
    "reference",
    "refine",
    "soft_nms",
    "vote",
]
