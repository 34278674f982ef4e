"""The float32 arithmetic of csrc/box_math.h in PyTorch, bit for bit.

The kernels use their own exponential, the same on every device, so that a score lands on the same side of a threshold
everywhere. The references use it too, which lets tests demand equal indices instead of a tolerance. Every PyTorch
operation here is one correctly rounded IEEE operation; their order is the kernels' order.
"""

import torch
from torch import Tensor

ROUNDER = 12582912.0  # 1.5 * 2^23: adding it rounds to the nearest integer


def exp(x: Tensor) -> Tensor:
    """e^x of a float32 tensor: ``portable_exp`` of box_math.h, where the method and its error bound are described."""
    x = torch.where(x > 89.0, 89.0, x)
    x = torch.where(x < -104.0, -104.0, x)
    shifted = x * 1.44269504 + ROUNDER
    n = shifted - ROUNDER
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    p = torch.full_like(r, 1.3814467e-3)
    for coefficient in (8.3687808e-3, 4.1668393e-2, 1.6666520e-1, 4.9999994e-1):
        p = p * r + coefficient
    y = (p * (r * r) + r) + 1.0
    exponent = n.nan_to_num().to(torch.int32)
    half = exponent >> 1
    return (y * _power_of_two(half)) * _power_of_two(exponent - half)


def _power_of_two(n: Tensor) -> Tensor:
    return ((n + 127) << 23).view(torch.float32)


def softmax(logits: Tensor) -> Tensor:
    """Softmax of float32 logits [...,C], summed in class order; NaN throughout for a row with NaN or +inf."""
    terms = exp(logits - logits.amax(dim=-1, keepdim=True))
    total = torch.zeros_like(terms[..., 0])
    for term in terms.unbind(-1):
        total = total + term
    return terms / total[..., None]


def objectness(arm_conf: Tensor) -> Tensor:
    """P(object) [...] from ARM logits [...,2] (background, object)."""
    return 1.0 / (1.0 + exp(arm_conf[..., 0] - arm_conf[..., 1]))


def iou(box: Tensor, boxes: Tensor, official: bool) -> Tensor:
    """IoU [N] of corners [4] and [N,4]; 0 where nothing overlaps. ``official``: sides reach to the end of a pixel."""

    def product(sides: Tensor) -> Tensor:
        return (sides + float(official)).clamp(min=0).prod(dim=-1)

    inter = product(torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2]))
    value = inter / (product(box[2:] - box[:2]) + product(boxes[:, 2:] - boxes[:, :2]) - inter)
    return torch.where(value > 0, value, 0.0)
