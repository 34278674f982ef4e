"""``ops.mine`` beside the usual mining: sort the losses of all anchors, rank them, keep the first ranks."""

from collections.abc import Callable

import peers
import pytest
import torch
from torch import Tensor

from refinedet import ops


def problem(anchors: int, classes: int, trained: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, IoUs and objectness of 32 images; ``trained``: objectness rejects most anchors."""
    generator = torch.Generator().manual_seed(0)
    size = (32, anchors)
    labels = (torch.rand(size, generator=generator) < 0.005).long()
    ious = torch.rand(size, generator=generator) ** 4
    objectness = torch.rand(size, generator=generator) ** (30 if trained else 1)
    return torch.randn(*size, classes, generator=generator), labels, ious, objectness


@pytest.mark.parametrize("kind", ["losses", "logits"])
@pytest.mark.parametrize(
    ("anchors", "classes", "trained"), [(6375, 21, False), (6375, 21, True), (16320, 81, True), (6375, 2, False)]
)
def test_mine(anchors: int, classes: int, trained: bool, kind: str, compare: Callable[..., None]) -> None:
    values, *others = problem(anchors, classes, trained)
    if kind == "losses":
        values = -values.log_softmax(dim=-1)[..., 0]
    mask = ops.mine(values, *others)
    assert torch.equal(mask, peers.mine(values, *others))
    assert mask.any()
    compare(lambda: ops.mine(values, *others), lambda: peers.mine(values, *others), rounds=5)
