"""The tests of nms, on a GPU."""

import pytest
from support.gpu import on_gpu, require_gpu
from test_nms import (  # noqa: F401  these run here too, with the fixture `nms` of this file
    NmsOp,
    crowd,
    test_equals_reference_and_brute_force,
    test_literal,
    test_order_of_the_input_does_not_matter,
    test_policy_for_troubled_boxes,
    test_size_and_place_of_the_boxes_do_not_matter,
    test_survivors_survive_again,
    test_the_threshold_itself_does_not_suppress,
)
from torch import Tensor

from refinedet import ops

require_gpu()


@pytest.fixture(scope="module")
def nms() -> NmsOp:
    def run(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
        if labels is None:
            return ops.nms(boxes, scores, iou_threshold)
        return ops.batched_nms(boxes, scores, labels, iou_threshold)

    return on_gpu(run)
