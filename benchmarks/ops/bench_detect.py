"""``ops.detect`` beside the pipeline a practitioner writes with PyTorch and torchvision."""

from collections.abc import Callable

import peers
import pytest
import torch
from problems import golden_outputs

from refinedet import ops

BAR = {"typical_voc320": 8.0, "clusters_voc320": 8.0}  # at least this many times faster


@pytest.mark.parametrize("name", ["typical_voc320", "clusters_voc320", "typical_voc512", "coco81_320"])
def test_detect(name: str, compare: Callable[..., None]) -> None:
    inputs = golden_outputs(name)
    peers.assert_detects_the_same(inputs)
    compare(lambda: ops.detect(*inputs), lambda: peers.detect(*inputs), at_least=BAR.get(name, 1.0))


def test_levels(compare: Callable[..., None]) -> None:
    """Head maps as they are, beside the same concatenated first."""
    *outputs, anchors = golden_outputs("typical_voc320")
    levels = [[level.contiguous() for level in output.split((4800, 1200, 300, 75), dim=1)] for output in outputs]

    def concatenated() -> ops.Detected:
        return ops.detect(*(torch.cat(output, dim=1) for output in levels), anchors)

    for ours, theirs in zip(ops.detect(*levels, anchors), concatenated(), strict=True):
        assert torch.equal(ours, theirs)
    compare(lambda: ops.detect(*levels, anchors), concatenated, at_least=1.0)
