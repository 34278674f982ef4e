"""Models of other programs: Caffe's, of every form, and state dicts of the luuuyi port, up to a checkpoint that loads.

The networks have two channels, so that many files are converted in a minute; layers and their names are the real ones.
"""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.caffe_files import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    caffemodel,
    data_layer,
    input_layer,
    narrow_blobs,
    narrow_outline,
    number,
    use_narrow_networks,
    varint,
)
from support.synthetic import CLASSES

from fuzz.engine import MEBIBYTE, Target
from fuzz.mutations import damage_bytes
from refinedet.models import ModelConfig
from refinedet.weights.checkpoint import read_model
from refinedet.weights.convert import convert
from refinedet.weights.luuuyi import luuuyi_names

# Where messages lie in messages, by the numbers of their fields from the network on.
_NESTED = {(100,), (2,), (100, 7), (2, 6), (100, 7, 7), (2, 6, 7), (100, 100), (100, 100, 8), (100, 143), (100, 143, 1)}
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    63,
    64,
    127,
    128,
    320,
    1 << 16,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    1 << 40,
    1 << 62,
    (1 << 64) - 1,
)
_VALUES = (np.nan, np.inf, -np.inf, -1.0, 0.0, 1e-45, 3e38)
_FIELDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 143, 1000)

_RAW = -1  # as wire type: bytes that stand for themselves

Node = list[Any]  # number, wire type, payload: a whole number, bytes, or a list of nodes; the length to claim, or None


def make_seeds(folder: Path) -> list[Path]:
    """A model of each backbone, old and new forms, and one of the port."""
    use_narrow_networks(setattr)
    vgg, resnet = narrow_blobs("vgg16", CLASSES), narrow_blobs("resnet101", CLASSES, tcb=False)
    contents = {
        "vgg_320x320": caffemodel(vgg, name="VOC0712_refinedet_vgg16_320x320_train"),
        "v1_320x320": caffemodel(vgg, v1=True, legacy=True),
        "layers": caffemodel(vgg, packed=False, extra=data_layer(320, 320) + input_layer(1, 3, 512, 512)),
        "doubles_512": caffemodel(vgg, double=True, packed=False, legacy=True),
        "resnet_512x512": caffemodel(resnet),
    }
    seeds = [folder / f"{name}.caffemodel" for name in contents]
    for file, content in zip(seeds, contents.values(), strict=True):
        file.write_bytes(content)
    network = narrow_outline(ModelConfig("vgg16", (64, 64), CLASSES))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    seeds.append(folder / "RefineDet320_VOC_final.pth")
    torch.save({theirs: torch.zeros(shapes[ours]) for ours, theirs in luuuyi_names(network).items()}, seeds[-1])
    return seeds


def mutate(chance: random.Random, data: bytes) -> bytes:
    """One to four damages of the structure; now and then of bytes, or a cut."""
    if chance.random() < 0.1:
        return damage_bytes(chance, data)
    if data.startswith(b"PK"):
        return _damage_state(chance, data)
    nodes = _parse(data, ())
    for _ in range(chance.choice((1, 1, 2, 4))):
        if nodes:
            chance.choice(_DAMAGES)(chance, nodes)
    content = _encode(nodes)
    return content[: chance.randrange(len(content) + 1)] if chance.random() < 0.05 else content


def read(file: Path) -> None:
    """Convert it, and read what came of it."""
    out = file.with_name("out.safetensors")
    found = convert(file, out, classes=CLASSES)
    config, _ = read_model(out)
    assert config == found.config


def _parse(data: bytes, path: tuple[int, ...]) -> list[Node]:
    nodes: list[Node] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            nodes.append([field, wire, value, None])
            continue
        length = {FIXED32: 4, FIXED64: 8}.get(wire, 0)
        if wire == BYTES:
            length, at = _varint(data, at)
        content = data[at : at + length]
        at += length
        inner = (*path, field)
        nodes.append([field, wire, _parse(content, inner) if inner in _NESTED else content, None])
    return nodes


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _encode(nodes: Sequence[Node]) -> bytes:
    parts = []
    for field, wire, payload, claimed in nodes:
        content = _encode(payload) if isinstance(payload, list) else payload
        if wire == _RAW:
            parts.append(content)
            continue
        parts.append(varint(field << 3 | wire))
        if isinstance(content, int):
            parts.append(varint(content))
            continue
        if wire == BYTES:
            parts.append(varint(len(content) if claimed is None else claimed))
        parts.append(content)
    return b"".join(parts)


def _holder(chance: random.Random, nodes: list[Node]) -> list[Node]:
    """Any message: the network, or one inside it, deeper ones more often."""
    while chance.random() < 0.8:
        inside = [node[2] for node in nodes if isinstance(node[2], list) and node[2]]
        if not inside:
            break
        nodes = chance.choice(inside)
    return nodes


def _damage_length(chance: random.Random, nodes: list[Node]) -> None:
    node = chance.choice(_holder(chance, nodes))
    size = len(_encode(node[2]) if isinstance(node[2], list) else b"" if isinstance(node[2], int) else node[2])
    node[3] = chance.choice(
        (0, 1, max(0, size - 1), size + 1, size * 2, 1 << 20, 1 << 31, 1 << 33, 1 << 62, (1 << 64) - 1)
    )


def _damage_wire(chance: random.Random, nodes: list[Node]) -> None:
    chance.choice(_holder(chance, nodes))[1] = chance.randrange(8)


def _damage_field(chance: random.Random, nodes: list[Node]) -> None:
    chance.choice(_holder(chance, nodes))[0] = chance.choice((*_FIELDS, 0, 1 << 28))


def _damage_value(chance: random.Random, nodes: list[Node]) -> None:
    """A number, some values, or a name."""
    node = chance.choice(_holder(chance, nodes))
    if isinstance(node[2], int):
        node[2] = chance.choice(_NUMBERS)
    elif isinstance(node[2], bytes):
        content = bytearray(node[2])
        action = chance.randrange(4)
        if action == 0 and len(content) >= 4:
            place = chance.randrange(len(content) // 4) * 4
            content[place : place + 4] = np.float32(chance.choice(_VALUES)).tobytes()
        elif action == 1:
            del content[chance.randrange(len(content) + 1) :]
        elif action == 2:
            content += content * chance.choice((1, 3)) or b"x"
        else:
            content = bytearray(damage_bytes(chance, bytes(content)))
        node[2] = bytes(content)


def _damage_shape(chance: random.Random, nodes: list[Node]) -> None:
    """Other dimensions of a blob, in either form."""
    layers = [node for node in nodes if node[0] in (2, 100) and isinstance(node[2], list)]
    blobs = [b for node in layers for b in node[2] if b[0] in (6, 7) and isinstance(b[2], list)]
    if not blobs:
        return
    blob = chance.choice(blobs)[2]
    if chance.random() < 0.3:
        blob[:] = [node for node in blob if node[0] not in (1, 2, 3, 4, 7)]
    if chance.random() < 0.7:
        dims = [chance.choice(_NUMBERS) for _ in range(chance.choice((0, 1, 2, 4, 5, 33, 1000)))]
        blob.append([7, BYTES, b"".join(number(1, dim) for dim in dims), None])
    else:
        blob.append([chance.choice((1, 2, 3, 4)), VARINT, chance.choice(_NUMBERS), None])


def _move(chance: random.Random, nodes: list[Node]) -> None:
    """A part taken out, doubled, or put into another message."""
    holder = _holder(chance, nodes)
    node = holder.pop(chance.randrange(len(holder)))
    for _ in range(chance.randrange(3)):
        target = _holder(chance, nodes)
        target.insert(chance.randrange(len(target) + 1), copy.deepcopy(node))


def _flood(chance: random.Random, nodes: list[Node]) -> None:
    """Very many small fields, or very deep ones."""
    holder = _holder(chance, nodes)
    if chance.random() < 0.5:
        count = chance.choice((100, 10_000, 200_000))
        small = chance.choice(
            (varint(5 << 3 | FIXED32) + b"\0" * 4, number(1, 1), number(1, 0), varint(9 << 3 | BYTES) + b"\0")
        )
        holder.append([0, _RAW, small * count, None])
        return
    nested = b""
    field = chance.choice(_FIELDS)
    for _ in range(chance.choice((10, 1000))):
        nested = varint(field << 3 | BYTES) + varint(len(nested)) + nested
    holder.append([field, BYTES, nested, None])


def _damage_state(chance: random.Random, data: bytes) -> bytes:
    """Tensors of the port's state dict gone, renamed, of another shape or type, or with another value."""
    state = torch.load(io.BytesIO(data), weights_only=True)
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(list(state))
        tensor = state.pop(name)
        action = chance.randrange(6)
        if action == 0:
            continue
        if action == 1:
            name = chance.choice((f"{name}x", f"module.{name}", "vgg.0.weight", ""))
        elif action == 2:
            tensor = tensor.flatten()[: chance.choice((0, 1, tensor.numel()))]
        elif action == 3:
            tensor = tensor.to(chance.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)))
        elif action == 4:
            tensor = tensor[..., None].expand(*tensor.shape, chance.choice((1, 1000, 1 << 40)))
        else:
            tensor.view(-1)[chance.randrange(tensor.numel())] = chance.choice(_VALUES)
        state[name] = tensor
    file = io.BytesIO()
    torch.save(state if chance.random() < 0.9 else {"state_dict": state, "epoch": 3}, file)
    return file.getvalue()


_DAMAGES: Sequence[Callable[[random.Random, list[Node]], None]] = (
    _damage_length, _damage_wire, _damage_field, _damage_value, _damage_value, _damage_shape, _move, _move, _flood,
)  # fmt: skip

TARGET = Target(
    "caffemodels", make_seeds, mutate, read, count=20_000, seconds=2.0, memory=lambda size: 2 * size + 200 * MEBIBYTE
)
