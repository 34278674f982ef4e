"""Caffe's model files for the tests: any form of the format, and networks with few channels for small ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from refinedet.models import ModelConfig, RefineDet, outline
from refinedet.models.layers import CaffeBatchNorm2d, L2Norm
from refinedet.presets import OFFICIAL
from refinedet.weights import checkpoint, convert
from refinedet.weights.caffe_names import BlobName, caffe_names

CHANNELS = 2
NET_NAME, NET_V1, NET_LAYER = 1, 2, 100
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Blobs = Mapping[BlobName, np.ndarray]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(value)


def message(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | BYTES) + varint(len(content)) + content


def blob(array: np.ndarray, *, packed: bool = True, double: bool = False, legacy: bool = False) -> bytes:
    """A BlobProto; ``legacy``: four old numbers instead of a shape."""
    field, wire, kind = (8, FIXED64, "<f8") if double else (5, FIXED32, "<f4")
    items = array.astype(kind)
    if packed:
        values = message(field, items.tobytes())
    else:
        values = b"".join(varint(field << 3 | wire) + item.tobytes() for item in items.reshape(-1))
    if legacy:
        dims = (1,) * (4 - array.ndim) + array.shape
        return b"".join(number(i, dim) for i, dim in enumerate(dims, 1)) + values
    return values + message(7, message(1, b"".join(map(varint, array.shape))))


def layer(name: str, kind: str, blobs: Sequence[bytes], *, v1: bool = False, extra: bytes = b"") -> bytes:
    """A field of the network: a LayerParameter, or a V1LayerParameter."""
    if v1:
        return message(NET_V1, message(4, name) + number(5, 4) + b"".join(message(6, b) for b in blobs) + extra)
    return message(NET_LAYER, message(1, name) + message(2, kind) + b"".join(message(7, b) for b in blobs) + extra)


def caffemodel(blobs: Blobs, *, name: str = "", v1: bool = False, extra: bytes = b"", **form: bool) -> bytes:
    """The file of a network with these blobs; ``extra`` stands before its layers."""
    layers: dict[str, list[bytes]] = {}
    for (layer_name, _), array in blobs.items():
        layers.setdefault(layer_name, []).append(blob(array, **form))
    return message(NET_NAME, name) + extra + b"".join(layer(n, "", b, v1=v1) for n, b in layers.items())


def data_layer(height: int, width: int) -> bytes:
    """The data layer of a training network, which resizes to that size."""
    resize = number(3, height) + number(4, width)
    return layer("data", "AnnotatedData", [], extra=message(100, message(8, resize)))


def input_layer(*dims: int) -> bytes:
    shape = message(1, b"".join(map(varint, dims)))
    return layer("data", "Input", [], extra=message(143, message(1, shape)))


def narrow_outline(config: ModelConfig) -> RefineDet:
    """As `refinedet.models.outline`, of a network with all layers and two channels. It computes nothing."""
    narrow = _narrow(config.backbone, config.num_classes, config.preset.tcb, config.preset.head_bottleneck)
    narrow.config = config
    return narrow


@lru_cache(maxsize=8)
def _narrow(backbone: str, num_classes: int, tcb: bool, bottleneck: bool) -> RefineDet:
    preset = replace(OFFICIAL, tcb=tcb, head_bottleneck=bottleneck)
    names = tuple(f"class{label}" for label in range(1, num_classes))
    network = deepcopy(outline(ModelConfig(backbone, (64, 64), names, preset)))
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            first = module.weight.shape[0] if ".conf." in name or ".loc." in name else CHANNELS
            _shrink(module, "weight", (first, CHANNELS, *module.weight.shape[2:]))
            if module.bias is not None:
                _shrink(module, "bias", (first,))
        elif isinstance(module, (CaffeBatchNorm2d, L2Norm)):
            for parameter, _ in list(module.named_parameters()):
                _shrink(module, parameter, (CHANNELS,))
            for buffer, value in list(module.named_buffers()):
                if value.ndim:
                    module.register_buffer(buffer, torch.empty(CHANNELS, device="meta"))
    return network


def _shrink(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    setattr(module, name, nn.Parameter(torch.empty(shape, device="meta")))


def narrow_blobs(backbone: str, classes: Sequence[str], **parts: bool) -> dict[BlobName, np.ndarray]:
    """Random blobs of a narrow network; ``parts``: those of the preset it is without."""
    config = ModelConfig(backbone, (64, 64), tuple(classes), replace(OFFICIAL, **parts))
    network = narrow_outline(config)
    state, generator = network.state_dict(), np.random.default_rng(0)
    blobs = {}
    for name, blob_name in caffe_names(network).items():
        values = generator.standard_normal(state[name].shape or (1,)).astype(np.float32)
        if name.endswith((".running_var", ".factor")):
            values = np.abs(values) * np.float32(900) + 1
        blobs[blob_name] = values
    return blobs


def use_narrow_networks(patch) -> None:
    """Let conversion and checkpoints know narrow networks in place of the real ones; ``patch(module, name, value)``."""
    patch(convert, "outline", narrow_outline)
    patch(checkpoint, "outline", narrow_outline)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
