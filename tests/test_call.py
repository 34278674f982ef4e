"""What the Python faces of all operators have in common."""

import numpy as np
import pytest
import torch

from refinedet import ops
from refinedet.errors import InputError

BOXES, SCORES = torch.zeros(3, 4), torch.zeros(3)
LABELS, OFFSETS = torch.ones(3, dtype=torch.int64), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (ops.nms, (BOXES.numpy(), SCORES, 0.5), "nms: boxes is of type ndarray; give Tensor"),
        (ops.nms, (BOXES, SCORES, "0.5"), "nms: iou_threshold is of type str; give float"),
        (ops.batched_nms, (BOXES, SCORES, [1, 1, 1], 0.5), r"nms: labels is of type list; give .*Tensor"),
        (ops.refine, (BOXES, BOXES[None].numpy()), "refine: offsets is of type ndarray"),
        (ops.match, (BOXES, BOXES, LABELS, np.array([0, 3])), "match: gt_offsets is of type ndarray"),
        (ops.mine, (SCORES[None], LABELS[None], SCORES[None].numpy(), None), "mine: ious is of type ndarray"),
        (ops.detect, (None, None, BOXES[None], BOXES[None], BOXES.tolist()), "detect: anchors is of type list"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(function, arguments, message):
    with pytest.raises(InputError, match=rf"^refinedet\.{message}"):
        function(*arguments)


def test_no_operator_is_differentiable():
    """The multi-task loss takes refined anchors, matches and mined negatives as constants (spec section 7)."""
    boxes = torch.rand(1, 3, 4, requires_grad=True)
    scores = torch.rand(1, 3, requires_grad=True)
    found = [
        ops.refine(boxes[0], boxes),
        *ops.match(boxes[0], boxes[0], LABELS, OFFSETS),
        ops.mine(scores, LABELS[None], scores, None),
        ops.nms(boxes[0], scores[0], 0.5),
        *ops.detect(boxes, boxes[..., :2], boxes, boxes, boxes[0]),
    ]
    assert not any(tensor.requires_grad for tensor in found)
