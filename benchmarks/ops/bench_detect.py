"""``ops.detect`` of head maps as they are, beside the same concatenated first. `bench_operators.py` has its peers."""

from collections.abc import Callable

import torch
from problems import golden_outputs

from refinedet import ops


def test_levels(compare: Callable[..., None]) -> None:
    *outputs, anchors = golden_outputs("typical_voc320")
    levels = [[level.contiguous() for level in output.split((4800, 1200, 300, 75), dim=1)] for output in outputs]

    def concatenated() -> ops.Detected:
        return ops.detect(*(torch.cat(output, dim=1) for output in levels), anchors)

    for ours, theirs in zip(ops.detect(*levels, anchors), concatenated(), strict=True):
        assert torch.equal(ours, theirs)
    compare(lambda: ops.detect(*levels, anchors), {"concatenated": concatenated}, {"concatenated": 1.0})
