"""``ops.nms`` and ``ops.batched_nms`` beside torchvision's."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

from refinedet import ops


def crowd(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes around 40 objects, scores, labels of 20 classes."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(40, 4, generator=generator) * 0.5
    chosen = objects[torch.randint(40, (count,), generator=generator)]
    center = chosen[:, :2] * 2 + torch.randn(count, 2, generator=generator) * 0.03
    half = chosen[:, 2:] * 0.3 + 0.02
    labels = torch.randint(20, (count,), generator=generator)
    return torch.cat([center - half, center + half], dim=1), torch.rand(count, generator=generator), labels


@pytest.mark.parametrize("count", [200, 1000, 6375])
def test_nms(count: int, compare: Callable[..., None]) -> None:
    boxes, scores, _ = crowd(count)
    assert torch.equal(ops.nms(boxes, scores, 0.45), torchvision.ops.nms(boxes, scores, 0.45))
    compare(lambda: ops.nms(boxes, scores, 0.45), lambda: torchvision.ops.nms(boxes, scores, 0.45))


@pytest.mark.parametrize("count", [200, 1000, 6375])
def test_batched_nms(count: int, compare: Callable[..., None]) -> None:
    inputs = (*crowd(count), 0.45)
    assert torch.equal(ops.batched_nms(*inputs), torchvision.ops.batched_nms(*inputs))
    compare(lambda: ops.batched_nms(*inputs), lambda: torchvision.ops.batched_nms(*inputs))
