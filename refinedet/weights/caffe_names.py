"""Names of the official Caffe models and ours (spec section 11.2)."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from refinedet.errors import CheckpointError, InputError, shorten
from refinedet.models import RefineDet
from refinedet.models.layers import CaffeBatchNorm2d, ConvBlock, L2Norm

BlobName = tuple[str, int]
"""Layer name and index of one of its blobs."""

SOURCES = {  # layers the heads of strides 8 to 64 read
    "vgg16": ("conv4_3_norm", "conv5_3_norm", "fc7", "conv6_2"),
    "resnet101": ("res3b3_relu", "res4b22_relu", "res5c_relu", "res6_relu"),
}
OUTPUTS = ("P3", "P4", "P5", "P6")  # what the transfer connection blocks give


def caffe_names(model: RefineDet) -> dict[str, BlobName]:
    """The Caffe blob of every parameter and buffer in the state dict of a VGG-16 or ResNet-101 model.

    A batch normalisation is two layers: BatchNorm with blobs mean, variance (both times ``factor``) and factor, and
    Scale with weight and bias. Raises InputError for another backbone.
    """
    if model.config.backbone not in SOURCES:
        raise InputError(
            f"backbone {model.config.backbone!r} has no official Caffe model; use one of {', '.join(SOURCES)}"
        )
    names: dict[str, BlobName] = {}
    for path, layer in _layers(model):
        module = model.get_submodule(path)
        if isinstance(module, ConvBlock):
            names |= _parameters(f"{path}.conv", module.conv, layer)
            if module.norm is not None:
                names |= _batch_norm(f"{path}.norm", *_norm_layers(layer))
        else:
            names |= _parameters(path, module, layer)
    return names


def _layers(model: RefineDet) -> Iterator[tuple[str, str]]:
    """Our path and the Caffe layer of every convolution (with its normalisation) and L2Norm."""
    for path, module in model.backbone.named_modules():
        if isinstance(module, (ConvBlock, L2Norm)) or (isinstance(module, nn.Conv2d) and not path.endswith(".conv")):
            yield f"backbone.{path}", path.replace(".", "_")
    sources = SOURCES[model.config.backbone]
    if model.arm is not None and model.tcb is not None:
        for level in range(len(OUTPUTS)):
            yield f"tcb.lateral1.{level}", f"TL{level + 3}_1"
            yield f"tcb.lateral2.{level}", f"TL{level + 3}_2"
            yield f"tcb.output.{level}", OUTPUTS[level]
        for level in range(len(model.tcb.up)):
            yield f"tcb.up.{level}", f"{OUTPUTS[level + 1]}-up"
        yield from _heads("arm", sources, bool(model.arm.blocks))
    yield from _heads("odm", sources if model.tcb is None else OUTPUTS, bool(model.odm.blocks))


def _heads(path: str, sources: tuple[str, ...], bottleneck: bool) -> Iterator[tuple[str, str]]:
    for level, source in enumerate(sources):
        stem = source
        if bottleneck:
            stem = f"res{source}_inter"
            for branch in ("branch1", "branch2a", "branch2b", "branch2c"):
                yield f"{path}.blocks.{level}.{branch}", f"{stem}_{branch}"
        yield f"{path}.loc.{level}", f"{stem}_mbox_loc"
        yield f"{path}.conf.{level}", f"{stem}_mbox_conf"


def _parameters(path: str, module: nn.Module, layer: str) -> dict[str, BlobName]:
    return {f"{path}.{name}": (layer, blob) for blob, (name, _) in enumerate(module.named_parameters())}


def _batch_norm(path: str, norm: str, scale: str) -> dict[str, BlobName]:
    return {
        f"{path}.running_mean": (norm, 0),
        f"{path}.running_var": (norm, 1),
        f"{path}.factor": (norm, 2),
        f"{path}.weight": (scale, 0),
        f"{path}.bias": (scale, 1),
    }


def _norm_layers(layer: str) -> tuple[str, str]:
    """BatchNorm and Scale after a convolution: bn2a_branch1 after res2a_branch1, bn_conv1 after conv1, P3_bn for P3."""
    if layer.startswith("res"):
        return f"bn{layer[3:]}", f"scale{layer[3:]}"
    if layer == "conv1":
        return "bn_conv1", "scale_conv1"
    return f"{layer}_bn", f"{layer}_scale"


def load_caffe_arrays(model: RefineDet, arrays: Mapping[BlobName, np.ndarray]) -> None:
    """Assign the blobs of a Caffe model, {(layer, blob index): array}, to ``model``; layers it lacks are ignored.

    Raises CheckpointError, before anything is assigned, when a blob is missing or of another shape.
    """
    tensors = model.state_dict()
    names = caffe_names(model)
    if missing := [f"{layer}:{blob}" for layer, blob in names.values() if (layer, blob) not in arrays]:
        raise CheckpointError(
            f"the Caffe model lacks {shorten(missing)}; it is not RefineDet with {model.config.backbone}"
        )
    misfits = [
        f"{layer}:{blob} {list(arrays[layer, blob].shape)} instead of {list(tensors[name].shape)}"
        for name, (layer, blob) in names.items()
        if arrays[layer, blob].shape != (tensors[name].shape or (1,))
    ]
    if misfits:
        raise CheckpointError(
            f"the Caffe model has {shorten(misfits)}; it is not for {model.config.num_classes} classes "
            f"(background included) with {model.config.backbone}"
        )
    for name, blob in names.items():
        tensors[name].copy_(torch.from_numpy(arrays[blob]).view_as(tensors[name]))
    for module in model.modules():
        if isinstance(module, CaffeBatchNorm2d):
            _divide_by_factor(module)


def _divide_by_factor(norm: CaffeBatchNorm2d) -> None:
    """Turn Caffe's sums into statistics; a factor of 0 means there are none yet, and counts as statistics of 0."""
    inverse = torch.where(norm.factor == 0, 0.0, norm.factor.reciprocal())
    norm.running_mean.mul_(inverse)
    norm.running_var.mul_(inverse)
