"""The official Caffe models and ours: names, and blobs for tensors and back (spec section 11.2)."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

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
_TYPES = {nn.Conv2d: "Convolution", nn.ConvTranspose2d: "Deconvolution", L2Norm: "Normalize"}
_LARGEST = np.finfo(np.float32).max


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


def layer_types(model: RefineDet) -> dict[str, str]:
    """Caffe's type of every layer that `caffe_names` names."""
    types: dict[str, str] = {}
    for name, (layer, _) in caffe_names(model).items():
        path, _, kind = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, CaffeBatchNorm2d):
            types[layer] = "Scale" if kind in ("weight", "bias") else "BatchNorm"
        else:
            types[layer] = next(caffe for ours, caffe in _TYPES.items() if isinstance(module, ours))
    return types


def load_caffe_arrays(model: RefineDet, arrays: Mapping[BlobName, np.ndarray]) -> None:
    """Assign the blobs of a Caffe model, {(layer, blob index): array}, to ``model``; layers it lacks are ignored.

    Raises CheckpointError as `from_caffe`, before anything is assigned.
    """
    model.load_state_dict(from_caffe(model, arrays))


def from_caffe(
    model: RefineDet,
    arrays: Mapping[BlobName, np.ndarray],
    source: str = "the Caffe model",
    names: Mapping[str, BlobName] | None = None,
) -> dict[str, Tensor]:
    """The state dict of ``model``, whose values do not matter, with a Caffe model's blobs, {(layer, index): array}.

    Tensors share the memory of their arrays. Batch statistics are quotients in float64, out of which `to_caffe` gets
    the sums back to the last bit; float32 would be off by one for some. ``names``: the part of `caffe_names` to take,
    all of them unless given.

    Raises CheckpointError, which calls the model ``source``, when a blob is missing, too many, of another shape (but
    for leading ones) or holds what no weight can be.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    backbone, classes = model.config.backbone, model.config.num_classes
    network = f"RefineDet with {backbone} and {classes} classes (background included)"
    if names is not None:
        network = f"RefineDet's {backbone}" + (", whose fc6 and fc7 are convolutions" if backbone == "vgg16" else "")
    names = caffe_names(model) if names is None else names
    _check_blobs(network, {blob: shapes[name] or (1,) for name, blob in names.items()}, arrays, source)
    tensors = {}
    for name, blob in names.items():
        values = arrays[blob]
        if name.endswith((".running_mean", ".running_var")):
            values = _divide(values, np.float64(arrays[blob[0], 2].item()))
        lowest = 0 if name.endswith(("running_var", "factor")) else -np.inf
        if not _all_between(values, lowest):
            needed = "finite" if lowest else "0 or more"
            raise CheckpointError(f"{source} is damaged: a value of {blob[0]}:{blob[1]} is not {needed}; copy it again")
        tensors[name] = torch.from_numpy(values.reshape(shapes[name]))
    return tensors


def to_caffe(model: RefineDet, tensors: Mapping[str, Tensor]) -> dict[BlobName, np.ndarray]:
    """The blobs, in float32, of a state dict of ``model`` (whose own values do not matter).

    Whoever reads them back gets the same weights and statistics, bit for bit.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    blobs: dict[BlobName, np.ndarray] = {}
    for name, blob in caffe_names(model).items():
        kind = name.rpartition(".")[2]
        if kind not in ("running_mean", "running_var", "factor"):
            blobs[blob] = tensors[name].detach().float().numpy().reshape(shapes[name])
        elif kind == "factor":
            path = name.removesuffix("factor")
            statistics = [tensors[path + part].double().numpy() for part in ("running_mean", "running_var")]
            layer = blob[0]
            blobs[layer, 0], blobs[layer, 1], blobs[blob] = _sums(statistics, tensors[name].item())
    return blobs


def _check_blobs(
    network: str,
    expected: Mapping[BlobName, tuple[int, ...]],
    arrays: Mapping[BlobName, np.ndarray],
    source: str,
) -> None:
    if missing := [f"{layer}:{blob}" for layer, blob in expected if (layer, blob) not in arrays]:
        raise CheckpointError(f"{source} lacks {shorten(missing)}; it is not {network}")
    layers = {layer for layer, _ in expected}
    misfits = [
        f"{layer}:{blob} too much" for layer, blob in arrays if layer in layers and (layer, blob) not in expected
    ]
    misfits += [
        f"{layer}:{blob} {list(arrays[layer, blob].shape)} instead of {list(shape)}"
        for (layer, blob), shape in expected.items()
        if without_leading_ones(arrays[layer, blob].shape, len(shape)) != shape
    ]
    if misfits:
        raise CheckpointError(f"{source} has {shorten(misfits)}; it is not {network}")


def without_leading_ones(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """``shape`` without leading ones while it has more than ``axes`` axes: older files have [1,1,1,64] for [64]."""
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return shape


def _all_between(values: np.ndarray, lowest: float) -> bool:
    """Whether all are finite in float32, and none is below ``lowest``; a look at the ends takes no memory."""
    return bool(lowest <= values.min() and abs(values.min()) <= _LARGEST and abs(values.max()) <= _LARGEST)


def _divide(sums: np.ndarray, factor: np.float64) -> np.ndarray:
    """Statistics of Caffe's sums, in float64; a factor of 0 means there are none yet, and counts as statistics of 0."""
    if factor == 0:
        return np.zeros(sums.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        return sums / factor


def _sums(statistics: list[np.ndarray], factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance as Caffe keeps them, and their factor.

    Where the statistics were rounded to float32, as those of a training here, some may have no sum in float32 that
    leads back to them. Then the factor is the nearest power of two, with which all have one. It says how long the
    history is; a training that goes on forgets it within some thousand steps.
    """
    for weight in map(np.float64, (factor, 2.0 ** round(math.log2(factor)) if factor > 0 else 1.0)):
        sums = [(values * weight).astype(np.float32) for values in statistics]
        returned = [_divide(values, weight) for values in sums]
        if all(np.array_equal(np.float32(a), np.float32(b)) for a, b in zip(returned, statistics, strict=True)):
            break
    return sums[0], sums[1], np.array([weight], np.float32)
