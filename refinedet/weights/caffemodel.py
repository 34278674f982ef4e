"""Caffe's model files: protobuf's wire format (spec section 11.3), read in place and written as a stream.

The protobuf library takes twice the size of a file (measured in docs/converting.md), so the few fields that weights
need are read here: from a memory map, whose pages are the only memory that values take. Everything else is skipped, and
nothing is nested deeper than those fields, whatever a file holds.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refinedet.errors import CheckpointError, show
from refinedet.files import atomic_write
from refinedet.weights.caffe_names import BlobName

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_WIRE_NAMES = {_VARINT: "a number", _FIXED64: "8 bytes", _BYTES: "a message", _FIXED32: "4 bytes"}
_MOST_FIELDS = 100_000  # that are looked at; a snapshot of ResNet-101 has some 20,000
_LONGEST_NAME = 1000  # bytes
_MOST_AXES = 32  # as Caffe has it
_MOST_SIDE = 1 << 20  # what is larger is no side of an image

# Numbers of fields in caffe.proto.
_NET_NAME, _NET_V1_LAYERS, _NET_INPUT_DIM, _NET_INPUT_SHAPE, _NET_LAYER = 1, 2, 4, 8, 100
_LAYER_NAME, _LAYER_TYPE, _LAYER_BLOBS, _LAYER_TRANSFORM, _LAYER_INPUT = 1, 2, 7, 100, 143
_V1_V0_LAYER, _V1_NAME, _V1_BLOBS = 1, 4, 6
_BLOB_LEGACY, _BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLES = (1, 2, 3, 4), 5, 7, 8
_TRANSFORM_RESIZE, _RESIZE_HEIGHT, _RESIZE_WIDTH = 8, 3, 4
_SHAPE_DIM = _INPUT_SHAPE = 1


class CaffeModel(NamedTuple):
    """What a model file holds."""

    name: str  # of the network
    blobs: dict[BlobName, np.ndarray]  # float32, by layer and index; most are views of the file
    size: tuple[int, int] | None  # height, width of the network's input, where the file tells


class CaffeLayer(NamedTuple):
    """A layer to be written."""

    name: str
    type: str
    blobs: Sequence[np.ndarray]  # float32


def read_caffemodel(path: str | os.PathLike[str]) -> CaffeModel:
    """Read the blobs of a binary ``.caffemodel``, current or with the older V1 layers, packed or not, float or double.

    Raises CheckpointError, naming the place, for a file that is absent, damaged or of another kind, for a blob whose
    values do not fill its shape, and for two layers of one name with blobs.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path} is empty; copy or download it again")
            # A private map: arrays on it can be written to, as torch wants them, and the file stays as it is.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    _refuse_other_formats(path, content[:4096])
    return _Reader(path, content).read()


def write_caffemodel(path: str | os.PathLike[str], name: str, layers: Iterable[CaffeLayer]) -> None:
    """Write a binary ``.caffemodel`` (layers as Caffe itself writes them today) atomically, a blob at a time.

    Raises OSError, naming the file, when it cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(_message(_NET_NAME, name.encode()))
        for layer in layers:
            blobs = [(_blob_header(blob), blob, _message(_BLOB_SHAPE, _shape_message(blob))) for blob in layer.blobs]
            sizes = [len(header) + blob.nbytes + len(shape) for header, blob, shape in blobs]
            start = _message(_LAYER_NAME, layer.name.encode()) + _message(_LAYER_TYPE, layer.type.encode())
            tags = [_tag(_LAYER_BLOBS) + _varint(size) for size in sizes]
            file.write(_tag(_NET_LAYER) + _varint(len(start) + sum(map(len, tags)) + sum(sizes)) + start)
            for tag, (header, blob, shape) in zip(tags, blobs, strict=True):
                file.write(tag + header)
                file.write(np.ascontiguousarray(blob, "<f4").data)
                file.write(shape)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if start.startswith(b"\x89HDF"):
        raise CheckpointError(f"{path} is an HDF5 file; let Caffe write it as BINARYPROTO (snapshot_format)")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        raise CheckpointError(f"{path} is a text (a .prototxt?); give the .caffemodel, which holds the weights")


class _Field(NamedTuple):
    number: int
    wire: int
    value: int  # of a number
    start: int  # of the bytes of all else
    end: int


class _Reader:
    """Goes through one file; all places are offsets into it."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._fields = 0
        self._blobs: dict[BlobName, np.ndarray] = {}
        self._size: tuple[int, int] | None = None

    def read(self) -> CaffeModel:
        name = ""
        dims: list[int] = []  # of the input, in files that name it outside the layers
        for field in self._fields_of(0, len(self._content), "the network"):
            if field.number == _NET_NAME:
                name = self._text(field)
            elif field.number in (_NET_LAYER, _NET_V1_LAYERS):
                self._read_layer(field)
            elif field.number == _NET_INPUT_DIM:
                dims += self._numbers(field)
            elif field.number == _NET_INPUT_SHAPE:
                dims = dims or self._read_shape(field)
        self._find_size(dims)
        return CaffeModel(name, self._blobs, self._size)

    def _read_layer(self, layer: _Field) -> None:
        v1 = layer.number == _NET_V1_LAYERS
        name_number, blobs_number = (_V1_NAME, _V1_BLOBS) if v1 else (_LAYER_NAME, _LAYER_BLOBS)
        name, blobs = "", []
        self._require(layer, _BYTES, "a layer")
        for field in self._fields_of(layer.start, layer.end, "a layer"):
            if field.number == name_number:
                name = self._text(field)
            elif field.number == blobs_number:
                blobs.append(field)
            elif v1 and field.number == _V1_V0_LAYER:
                raise self._error("has layers of Caffe's oldest format (V0)", field.start, "upgrade it with Caffe")
            elif not v1 and field.number == _LAYER_TRANSFORM:
                self._read_transform(field)
            elif not v1 and field.number == _LAYER_INPUT:
                self._read_input(field)
        if blobs and (name, 0) in self._blobs:
            raise self._error(f"has two layers {show(name)} with blobs", layer.start, "give a file with one of each")
        for index, blob in enumerate(blobs):
            self._blobs[name, index] = self._read_blob(blob, f"{name}:{index}")

    def _read_blob(self, blob: _Field, name: str) -> np.ndarray:
        shape: list[int] = []
        legacy: dict[int, int] = {}
        parts: list[np.ndarray] = []
        self._require(blob, _BYTES, f"blob {name}")
        at = blob.start
        while at < blob.end:
            begin, field = at, self._field(at, blob.end, f"blob {name}")
            at = field.end
            if field.number == _BLOB_DATA:
                values, at = self._values(field, begin, blob.end, "<f4", name)
                parts.append(values)
            elif field.number == _BLOB_DOUBLES:
                values, at = self._values(field, begin, blob.end, "<f8", name)
                parts.append(values)
            elif field.number == _BLOB_SHAPE:
                shape += self._read_shape(field)
            elif field.number in _BLOB_LEGACY:
                legacy[field.number] = self._numbers(field)[0]
        # As in Caffe: any of the four old numbers makes the shape the old one.
        dims = [legacy.get(number, 0) for number in _BLOB_LEGACY] if legacy else shape
        return self._reshape(parts, dims, blob, name)

    def _reshape(self, parts: list[np.ndarray], dims: list[int], blob: _Field, name: str) -> np.ndarray:
        """The values of a blob in its shape, in float32."""
        count = sum(len(part) for part in parts)
        if len(dims) > _MOST_AXES or any(dim < 1 for dim in dims) or math.prod(dims) != count:
            where = f"says that blob {show(name)} has shape {show(dims)}, and gives {count} values"
            raise self._error(where, blob.start, "copy or download it again")
        with np.errstate(over="ignore"):  # whoever uses the blob refuses what is not finite
            values = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return np.ascontiguousarray(values, np.float32).reshape(dims)

    def _values(self, field: _Field, begin: int, end: int, dtype: str, name: str) -> tuple[np.ndarray, int]:
        """Values from a field that begins at ``begin``, and where they end: a packed list, or a run of single ones."""
        item = np.dtype(dtype)
        single = _FIXED32 if item.itemsize == 4 else _FIXED64
        if field.wire == single:
            return self._run(begin, end, field.start - begin, item)
        self._require(field, _BYTES, f"blob {name}")
        length = field.end - field.start
        if length % item.itemsize:
            where = f"has a list of {item.itemsize}-byte values in {length} bytes"
            raise self._error(where, field.start, "copy or download it again")
        return np.frombuffer(self._content, item, length // item.itemsize, field.start), field.end

    def _run(self, begin: int, end: int, key: int, item: np.dtype) -> tuple[np.ndarray, int]:
        """The values of fields that follow each other from ``begin``, each behind the same ``key`` bytes."""
        first, width = self._content[begin : begin + key], key + item.itemsize
        if self._content[begin + width : min(begin + width + key, end)] != first:
            return np.frombuffer(self._content, item, 1, begin + key), begin + width
        step = np.dtype([("key", f"V{key}"), ("value", item)])
        count, most, block = 1, (end - begin) // width, 64
        while count < most:  # in growing blocks, so that what is looked at is what is used
            keys = np.frombuffer(self._content, step, min(block, most - count), begin + count * width)["key"]
            other = np.flatnonzero(keys != np.void(first))
            if len(other):
                count += int(other[0])
                break
            count += len(keys)
            block *= 2
        return np.frombuffer(self._content, step, count, begin)["value"], begin + count * width

    def _read_shape(self, shape: _Field) -> list[int]:
        self._require(shape, _BYTES, "a shape")
        dims: list[int] = []
        for field in self._fields_of(shape.start, shape.end, "a shape"):
            if field.number == _SHAPE_DIM:
                dims += self._numbers(field)
        return dims

    def _read_transform(self, transform: _Field) -> None:
        """The size to which a data layer of a training network resizes."""
        for resize in self._messages(transform, _TRANSFORM_RESIZE):
            sides = {f.number: f.value for f in self._fields_of(resize.start, resize.end, "resize_param")}
            self._find_size([1, 3, sides.get(_RESIZE_HEIGHT, 0), sides.get(_RESIZE_WIDTH, 0)])

    def _read_input(self, parameter: _Field) -> None:
        for shape in self._messages(parameter, _INPUT_SHAPE):
            self._find_size(self._read_shape(shape))

    def _find_size(self, dims: list[int]) -> None:
        """Take the input's height and width from its shape, unless another place told them."""
        if self._size is None and len(dims) == 4 and dims[1] == 3 and all(0 < side < _MOST_SIDE for side in dims[2:]):
            self._size = dims[2], dims[3]

    def _messages(self, holder: _Field, number: int) -> Iterator[_Field]:
        """The fields ``number`` in the message ``holder``."""
        self._require(holder, _BYTES, "a parameter of a layer")
        for field in self._fields_of(holder.start, holder.end, "a parameter of a layer"):
            if field.number == number:
                self._require(field, _BYTES, "a parameter of a layer")
                yield field

    def _numbers(self, field: _Field) -> list[int]:
        """The whole numbers of a field, one or a packed list, as int64."""
        if field.wire == _VARINT:
            return [_signed(field.value)]
        self._require(field, _BYTES, "a list of numbers")
        values, at = [], field.start
        while at < field.end:
            self._count(at)
            value, at = self._number(at, field.end, "a list of numbers")
            values.append(_signed(value))
        return values or [0]

    def _text(self, field: _Field) -> str:
        self._require(field, _BYTES, "a name")
        if field.end - field.start > _LONGEST_NAME:
            where = f"has a name of {field.end - field.start} bytes"
            raise self._error(where, field.start, "copy or download it again")
        return self._content[field.start : field.end].decode(errors="backslashreplace")

    def _fields_of(self, start: int, end: int, what: str) -> Iterator[_Field]:
        while start < end:
            field = self._field(start, end, what)
            start = field.end
            yield field

    def _field(self, at: int, end: int, what: str) -> _Field:
        """The field that begins at ``at``, inside a message that ends at ``end``."""
        self._count(at)
        key, start = self._number(at, end, what)
        number, wire = key >> 3, key & 7
        value, length = 0, 0
        if wire == _VARINT:
            value, start = self._number(start, end, what)
        elif wire == _BYTES:
            length, start = self._number(start, end, what)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        if number == 0 or wire not in _WIRE_NAMES:
            raise self._error("is no binary Caffe model, or damaged", at, "give a .caffemodel, or copy it again")
        if length > end - start:
            where = f"is truncated or damaged: {length} bytes are claimed where {what} has {end - start} left,"
            raise self._error(where, at, "copy or download it again")
        return _Field(number, wire, value, start, start + length)

    def _number(self, at: int, end: int, what: str) -> tuple[int, int]:
        """The variable-length number at ``at``, unsigned in 64 bits, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise self._error(f"is truncated or damaged: {what} ends in a number", at, "copy or download it again")
            byte = self._content[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1, at
        raise self._error("is no binary Caffe model, or damaged: a number has too many bytes", at, "copy it again")

    def _count(self, at: int) -> None:
        self._fields += 1
        if self._fields > _MOST_FIELDS:
            raise self._error(f"has more than {_MOST_FIELDS} fields", at, "give a model of Caffe")

    def _require(self, field: _Field, wire: int, what: str) -> None:
        if field.wire != wire:
            where = f"is damaged: {show(what)} is stored as {_WIRE_NAMES[field.wire]}, not {_WIRE_NAMES[wire]},"
            raise self._error(where, field.start, "copy or download it again")

    def _error(self, what: str, at: int, fix: str) -> CheckpointError:
        return CheckpointError(f"{self._path} {what} (byte {at} of {len(self._content)}); {fix}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _tag(number: int, wire: int = _BYTES) -> bytes:
    return _varint(number << 3 | wire)


def _message(number: int, content: bytes) -> bytes:
    return _tag(number) + _varint(len(content)) + content


def _shape_message(blob: np.ndarray) -> bytes:
    return _message(_SHAPE_DIM, b"".join(map(_varint, blob.shape)))


def _blob_header(blob: np.ndarray) -> bytes:
    """What stands before the values of a blob."""
    return _tag(_BLOB_DATA) + _varint(blob.size * 4)
