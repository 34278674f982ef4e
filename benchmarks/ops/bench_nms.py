"""``ops.nms`` and ``ops.batched_nms`` beside torchvision's."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from problems import crowd

from refinedet import ops


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
