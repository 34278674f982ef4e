"""OpenVINO: the network and, behind it, OpenVINO's own DetectionOutput, which has RefineDet's five inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinedet.boxes import to_corners
from refinedet.exporting.job import Job
from refinedet.exporting.openvino_int8 import import_nncf, quantize
from refinedet.inference.selection import NOTHING_GOES
from refinedet.presets import Preset
from refinedet.runtimes.description import KEY
from refinedet.runtimes.openvino import DETECTIONS, WEIGHTS_KEY, digest_of, import_openvino


def write(job: Job, path: Path) -> None:
    """Write ``path`` (.xml) and the .bin beside it."""
    openvino = import_openvino(path)
    dtype = job.description.choices.dtype
    nncf = import_nncf(path) if dtype == "int8" else None  # its absence is told before work starts
    model = convert(job, openvino)
    if dtype == "float16":
        store_half(model, openvino)
    elif nncf is not None:
        model = quantize(model, job, nncf)
    if not job.description.choices.raw:
        model = with_detections(model, job, openvino)
    model.set_rt_info(job.description.to_json(), KEY)
    # By default it would store every float as half, those of the anchors, too (2026.4.1).
    openvino.save_model(model, path, compress_to_fp16=False)
    model.set_rt_info(digest_of(path.with_suffix(".bin")), WEIGHTS_KEY)  # known now; the same weights are written again
    openvino.save_model(model, path, compress_to_fp16=False)


def convert(job: Job, openvino: Any) -> Any:
    """The network as a model of OpenVINO, from ``pixels`` [B,3,H,W] to the raw outputs by name."""
    choices = job.description.choices
    height, width = job.description.config.size
    example = torch.zeros(choices.batch or 2, 3, height, width)
    dynamic = {"pixels": {0: torch.export.Dim("batch")}} if choices.batch is None else None
    program = torch.export.export(job.network, (example,), dynamic_shapes=dynamic)
    model = openvino.convert_model(program)
    model.reshape([choices.batch or -1, 3, height, width])
    _name(model.inputs, ("pixels",))
    _name(model.outputs, job.description.outputs)
    return model


def _name(ports: Any, names: tuple[str, ...]) -> None:
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)


def store_half(model: Any, openvino: Any) -> None:
    """Store the weights of the convolutions in half precision. What computes is converted from them when the file is
    opened. All else stays in float32: few numbers, and among them those that half precision would round to zero."""
    opset = openvino.opset8
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "ConvolutionBackpropData", "GroupConvolution"):
            continue
        weights = node.input_value(1).get_node()
        if weights.get_type_name() == "Constant":
            half = opset.constant(weights.data.astype(np.float16))
            node.input(1).replace_source_output(opset.convert(half, "f32").output(0))


def with_detections(model: Any, job: Job, openvino: Any) -> Any:
    """The model with the output `DETECTIONS` as well."""
    opset = openvino.opset8
    raw = {
        name: output.get_node().input_value(0)
        for name, output in zip(job.description.outputs, model.outputs, strict=True)
    }
    probabilities = {name: opset.softmax(raw[name], -1).output(0) for name in raw if name.endswith("conf")}
    corners = to_corners(job.anchors)
    found = detection_output({**raw, **probabilities}, corners, job.description.config.preset, opset)
    return openvino.Model([*model.get_results(), opset.result(found, DETECTIONS)], model.get_parameters(), "refinedet")


def detection_output(outputs: dict[str, Any], priors: Tensor, preset: Preset, opset: Any) -> Any:
    """DetectionOutput of a network's outputs [B,N,*] by name, of which the confidences are probabilities, and of
    anchors as corners [N,4]."""
    variances = priors.new_tensor(preset.variances).expand(len(priors), 4)
    inputs = [
        _by_image(outputs["odm_loc"], opset),
        _by_image(outputs["odm_conf"], opset),
        opset.constant(torch.stack([priors, variances]).reshape(1, 2, -1).cpu().numpy()),
    ]
    if "arm_conf" in outputs:
        arm_loc = outputs["arm_loc"]
        if not preset.cascade:  # boxes start from the anchors; the confidence of the first stage filters all the same
            arm_loc = opset.multiply(arm_loc, np.float32(0))
        inputs += [_by_image(outputs["arm_conf"], opset), _by_image(arm_loc, opset)]
    found = opset.detection_output(*inputs[:3], _attributes(preset), *inputs[3:])
    found.output(0).get_tensor().set_names({DETECTIONS})
    return found


def _by_image(output: Any, opset: Any) -> Any:
    """[B,N,*] as [B,N * *]."""
    return opset.reshape(output, np.array([0, -1], np.int64), special_zero=True)


def _attributes(preset: Preset) -> dict[str, Any]:
    return {
        "background_label_id": 0,
        "top_k": preset.top_k,
        "keep_top_k": [preset.keep_top_k],
        "nms_threshold": float(NOTHING_GOES if preset.nms_iou is None else preset.nms_iou),
        "confidence_threshold": float(preset.score_threshold),
        "objectness_score": float(preset.objectness_threshold),
        "code_type": "caffe.PriorBoxParameter.CENTER_SIZE",
        "share_location": True,  # one box for all classes
        "normalized": True,  # priors in units of the image side, four numbers each
        "variance_encoded_in_target": False,  # the second row of the priors has the variances
    }
