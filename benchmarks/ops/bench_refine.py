"""``ops.refine`` beside the same decoding in PyTorch."""

from collections.abc import Callable

import pytest
import torch

from refinedet import generate_anchors, ops
from refinedet.boxes import decode


@pytest.mark.parametrize("batch", [1, 8])
def test_refine(batch: int, compare: Callable[..., None]) -> None:
    anchors = generate_anchors((320, 320))
    offsets = torch.randn(batch, len(anchors), 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.refine(anchors, offsets), decode(anchors, offsets), rtol=1e-6, atol=1e-6)
    compare(lambda: ops.refine(anchors, offsets), lambda: decode(anchors, offsets))
