"""Box arithmetic in plain PyTorch. Coordinates are in units of the image side unless a docstring says pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refinedet.presets import OFFICIAL


def to_corners(boxes: Tensor) -> Tensor:
    """Convert [...,4] cx,cy,w,h to x1,y1,x2,y2."""
    center, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([center - half, center + half], dim=-1)


def to_centers(boxes: Tensor) -> Tensor:
    """Convert [...,4] x1,y1,x2,y2 to cx,cy,w,h."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def encode(boxes: Tensor, anchors: Tensor, variances: Sequence[float] = OFFICIAL.variances) -> Tensor:
    """Offsets [...,4] with which :func:`decode` turns ``anchors`` (cx,cy,w,h) into ``boxes`` (corners); spec 6."""
    target = to_centers(boxes)
    scale = anchors.new_tensor(variances)
    shift = (target[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    return torch.cat([shift, (target[..., 2:] / anchors[..., 2:]).log()], dim=-1) / scale


def decode(anchors: Tensor, offsets: Tensor, variances: Sequence[float] = OFFICIAL.variances) -> Tensor:
    """Move ``anchors`` (cx,cy,w,h) by ``offsets``; returns cx,cy,w,h, neither clipped nor clamped (spec section 6)."""
    scaled = offsets * offsets.new_tensor(variances)
    center = scaled[..., :2] * anchors[..., 2:] + anchors[..., :2]
    return torch.cat([center, scaled[..., 2:].exp() * anchors[..., 2:]], dim=-1)


def to_pixels(boxes: Tensor, size: tuple[int, int] | Sequence[tuple[int, int]]) -> Tensor:
    """Corner boxes [n,4] in units of the image side to pixels of an image of ``size`` = (height, width), clipped to
    [0, width-1] x [0, height-1] (spec section 1.3). Boxes [B,n,4] take a size for each of the B images, too."""
    sides = boxes.new_tensor(size)[..., None, [1, 0, 1, 0]]
    return torch.minimum((boxes * sides).clamp(min=0), sides - 1)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU [n,m] of corner boxes [n,4] and [m,4]; a box without area overlaps nothing."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    union = _area(first)[:, None] + _area(second)[None, :] - intersection
    return torch.where(intersection > 0, intersection / union, 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=-1)
