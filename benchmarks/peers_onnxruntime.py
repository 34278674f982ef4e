"""ONNX Runtime's ``NonMaxSuppression``, the operator that exported detectors call: the peer of nms and batched_nms.

As run with onnxruntime 1.32.0, and as the model below takes it:

- Without ``max_output_boxes_per_class``, or with 0, it selects nothing.
- A score has to be above ``score_threshold``; with a threshold of 0 a box of score 0 does not come out, nor one of
  score NaN. A box goes where its IoU is above ``iou_threshold``.
- ``center_point_box`` 0 takes two corners of the diagonal in either order: a box that is inverted counts like the one
  it would be. In `ops.nms` it overlaps nothing. The cases have none.
- Rows (image, class, box) come image by image, class by class, within one by score descending, equal scores by index.
- Every class has a score for every box, so a set of boxes with labels becomes a matrix that is zero nearly everywhere.
  It is made before the clock starts, for a network puts out scores like that.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

OPSET = 11


def suppression(iou_threshold: float, threads: int = 1) -> onnxruntime.InferenceSession:
    """Boxes [B,N,4] and scores [B,C,N] -> rows [K,3]."""
    constants = [
        helper.make_tensor("max_output_boxes_per_class", TensorProto.INT64, [1], [np.iinfo(np.int32).max]),
        helper.make_tensor("iou_threshold", TensorProto.FLOAT, [1], [iou_threshold]),
        helper.make_tensor("score_threshold", TensorProto.FLOAT, [1], [0.0]),
    ]
    node = helper.make_node(
        "NonMaxSuppression", ["boxes", "scores", *(constant.name for constant in constants)], ["kept"]
    )
    graph = helper.make_graph(
        [node],
        "suppression",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["B", "N", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", "C", "N"]),
        ],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, ["K", 3])],
        initializer=constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Callable[[], NDArray[np.int64]]:
    """The call for the arguments of `ops.nms`: kept indices, best first."""
    session = suppression(iou_threshold)
    given = {"boxes": boxes[None].numpy(), "scores": scores[None, None].numpy()}
    return lambda: session.run(None, given)[0][:, 2]


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Callable[[], NDArray[np.int64]]:
    """The call for the arguments of `ops.batched_nms`: kept indices, best first, for which NumPy sorts the classes."""
    session = suppression(iou_threshold)
    classes, rows = labels.unique(return_inverse=True)
    matrix = torch.zeros(1, len(classes), len(boxes))
    matrix[0, rows, torch.arange(len(boxes))] = scores
    given, values = {"boxes": boxes[None].numpy(), "scores": matrix.numpy()}, -scores.numpy()

    def call() -> NDArray[np.int64]:
        kept = session.run(None, given)[0][:, 2]
        return kept[values[kept].argsort(kind="stable")]

    return call
