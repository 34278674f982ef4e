"""OpenVINO's ``DetectionOutput``, which has RefineDet's five inputs: the peer of ``ops.detect`` in one operator.

It takes probabilities, so the two softmaxes that ``ops.detect`` does as well are left out of its time.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from refinedet import ops
from refinedet.boxes import to_corners
from refinedet.runtimes.openvino import without_telemetry

with without_telemetry():
    import openvino
    from openvino import opset8

VARIANCES = (0.1, 0.1, 0.2, 0.2)


def openvino_detection_output(inputs: tuple[Tensor, ...], threads: int = 1) -> Callable[[], NDArray[np.float32]]:
    """``DetectionOutput`` compiled for these arguments of ``ops.detect``, with its defaults.

    A call runs it and gives rows of image, label, score, x1, y1, x2, y2, a view that the next call overwrites. What
    follows the first row of a negative image is padding.
    """
    arm_loc, arm_conf, odm_loc, odm_conf, anchors = inputs
    variances = np.tile(np.float32(VARIANCES), len(anchors))
    values = [
        _by_image(odm_loc),
        _by_image(odm_conf.softmax(-1)),
        np.stack([to_corners(anchors).numpy().reshape(-1), variances])[None],
        _by_image(arm_conf.softmax(-1)),
        _by_image(arm_loc),
    ]
    attributes = {
        "background_label_id": 0,
        "top_k": 1000,
        "keep_top_k": [500],
        "nms_threshold": 0.45,
        "confidence_threshold": 0.01,
        "objectness_score": 0.01,
        "code_type": "caffe.PriorBoxParameter.CENTER_SIZE",
        "share_location": True,  # one box for all classes
        "normalized": True,  # priors in units of the image side, four numbers each
        "variance_encoded_in_target": False,  # the second row of the priors has the variances
    }
    parameters = [opset8.parameter(value.shape, np.float32) for value in values]
    output = opset8.detection_output(*parameters[:3], attributes, *parameters[3:])
    model = openvino.Model([output], parameters)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
    request = compiled.create_infer_request()
    for i, value in enumerate(values):
        request.set_input_tensor(i, openvino.Tensor(value, shared_memory=True))
    return partial(_run, request, values)


def _run(request: openvino.InferRequest, values: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """``values`` are the arrays of the request, which does not keep them alive."""
    request.infer()
    found: NDArray[np.float32] = request.get_output_tensor(0).data.reshape(-1, 7)
    return found


def assert_detects_the_same(inputs: tuple[Tensor, ...], found: NDArray[np.float32]) -> None:
    """``ops.detect`` finds what its peer did, but for rounding."""
    padding = np.flatnonzero(found[:, 0] < 0)
    rows = found[: padding[0]] if len(padding) else found
    detected = ops.detect(*inputs)
    for image, count in enumerate(detected.counts.tolist()):
        boxes, scores, labels = (field[image, :count].numpy() for field in detected[:3])
        ours = np.column_stack([labels, scores, boxes])[np.lexsort((-scores, labels))]
        theirs = rows[rows[:, 0] == image, 1:]
        theirs = theirs[np.lexsort((-theirs[:, 1], theirs[:, 0]))]
        np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
        np.testing.assert_allclose(ours[:, 1], theirs[:, 1], rtol=1e-5, atol=0)
        np.testing.assert_allclose(ours[:, 2:], theirs[:, 2:], rtol=1e-5, atol=2e-6)


def _by_image(output: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = output.reshape(len(output), -1).contiguous().numpy()
    return array
