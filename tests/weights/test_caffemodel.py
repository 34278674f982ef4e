"""Caffe's model files: golden ones of Caffe itself, every form of the format, and damage."""

import numpy as np
import pytest
from support.caffe_files import (
    BYTES,
    FIXED32,
    VARINT,
    blob,
    caffemodel,
    data_layer,
    input_layer,
    layer,
    message,
    number,
    varint,
)
from support.paths import GOLDEN

from refinedet.errors import CheckpointError
from refinedet.weights.caffe_names import without_leading_ones
from refinedet.weights.caffemodel import CaffeLayer, read_caffemodel, write_caffemodel

MODEL = GOLDEN / "model"
WEIGHT = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) - 7.25
BIAS = np.array([1e-40, -3e38], np.float32)
BLOBS = {("conv", 0): WEIGHT, ("conv", 1): BIAS, ("P6-up", 0): WEIGHT[:1]}


@pytest.fixture
def read(tmp_path):
    def write_and_read(content: bytes):
        path = tmp_path / "net.caffemodel"
        path.write_bytes(content)
        return read_caffemodel(path)

    return write_and_read


def assert_same_blobs(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert without_leading_ones(found[name].shape, array.ndim) == array.shape
        assert found[name].tobytes() == array.tobytes(), name


# what Caffe wrote ----------------------------------------------------------------------------------------------------


def golden_blobs(name: str) -> dict[tuple[str, int], np.ndarray]:
    with np.load(MODEL / f"{name}.npz") as file:
        keys = [key.split("__") for key in file.files if key.startswith("param__")]
        return {(layer_name, int(index)): file[f"param__{layer_name}__{index}"] for _, layer_name, index in keys}


@pytest.mark.parametrize(("name", "count"), [("toy", 18), ("legacy_v1", 6)])
def test_golden_files(name, count):
    expected = golden_blobs(name)
    assert len(expected) == count
    found = read_caffemodel(MODEL / f"{name}.caffemodel")
    assert_same_blobs(found.blobs, expected)
    if name == "legacy_v1":
        assert found.blobs["c1", 1].shape == (1, 1, 1, 4)


@pytest.mark.parametrize("name", ["toy", "legacy_v1"])
def test_golden_files_written_again(name, tmp_path):
    expected = golden_blobs(name)
    layers = dict.fromkeys(layer_name for layer_name, _ in expected)
    written = [CaffeLayer(n, "Any", [a for (other, _), a in expected.items() if other == n]) for n in layers]
    write_caffemodel(tmp_path / "again.caffemodel", "net", written)
    found = read_caffemodel(tmp_path / "again.caffemodel")
    assert found.name == "net"
    assert_same_blobs(found.blobs, expected)
    assert all(found.blobs[key].shape == array.shape for key, array in expected.items())


def test_the_writer_writes_the_bytes_of_the_format(tmp_path):
    """Those of the protobuf library, byte for byte: numbers of fields ascend, and lists are packed."""
    write_caffemodel(tmp_path / "net.caffemodel", "n", [CaffeLayer("conv", "Convolution", [WEIGHT, BIAS])])
    expected = message(1, "n") + layer("conv", "Convolution", [blob(WEIGHT), blob(BIAS)])
    assert (tmp_path / "net.caffemodel").read_bytes() == expected


# every form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("form", [{}, {"packed": False}, {"legacy": True}, {"packed": False, "legacy": True}])
def test_forms_of_the_format(read, form, v1):
    assert_same_blobs(read(caffemodel(BLOBS, v1=v1, **form)).blobs, BLOBS)


@pytest.mark.parametrize("packed", [True, False])
def test_doubles_are_rounded_to_float32(read, packed):
    values = np.array([1 / 3, 1e-3, -2.0])
    found = read(message(100, message(1, "a") + message(7, blob(values, double=True, packed=packed)))).blobs
    assert found["a", 0].tobytes() == values.astype(np.float32).tobytes()


def test_a_list_in_several_parts(read):
    """As protobuf allows: packed parts and single values after each other."""
    parts = [
        message(5, WEIGHT.tobytes()[:40]),
        b"".join(varint(5 << 3 | FIXED32) + v.tobytes() for v in WEIGHT.flat[10:]),
    ]
    shape = message(7, message(1, varint(2) + varint(3)) + number(1, 2) + number(1, 2))
    assert_same_blobs(read(layer("a", "", [shape + b"".join(parts)])).blobs, {("a", 0): WEIGHT})


def test_long_runs_of_single_values(read):
    values = np.arange(100_000, dtype=np.float32)
    assert_same_blobs(read(layer("a", "", [blob(values, packed=False)])).blobs, {("a", 0): values})


def test_a_scalar_and_what_weights_do_not_need(read):
    """Layers without blobs, gradients, unknown fields of every type, and the same name where there are no blobs."""
    diff = message(6, b"\0" * 8) + message(9, b"\0" * 16)
    unknown = number(300, 7) + varint(301 << 3 | 1) + b"\0" * 8 + varint(302 << 3 | 5) + b"\0" * 4 + message(303, b"x")
    content = layer("split", "Split", []) * 2 + layer("a", "", [message(5, b"\0\0\x80\x3f") + diff], extra=unknown)
    found = read(unknown + content).blobs
    assert_same_blobs(found, {("a", 0): np.float32(1).reshape(())})


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (b"", None),
        (data_layer(320, 512), (320, 512)),
        (input_layer(1, 3, 512, 320), (512, 320)),
        (message(3, "data") + b"".join(number(4, dim) for dim in (1, 3, 64, 128)), (64, 128)),
        (message(3, "data") + message(8, message(1, varint(1) + varint(3) + varint(64) + varint(64))), (64, 64)),
        (data_layer(320, 320) + input_layer(1, 3, 512, 512), (320, 320)),
        (data_layer(0, 0) + input_layer(1, 3, -1, 512) + input_layer(1, 4, 512, 512) + input_layer(3), None),
    ],
)
def test_the_size_of_the_input(read, content, size):
    assert read(content + caffemodel(BLOBS)).size == size


# damage --------------------------------------------------------------------------------------------------------------

BIG = 1 << 62
DAMAGE = {
    "length of a layer": (varint(100 << 3 | BYTES) + varint(1 << 40) + b"x", "1099511627776 bytes are claimed"),
    "length of a blob": (message(100, message(1, "a") + varint(7 << 3 | BYTES) + varint(99)), "99 bytes are claimed"),
    "values end early": (layer("a", "", [varint(5 << 3 | BYTES) + varint(1 << 33)]), "8589934592 bytes are claimed"),
    "a single value ends early": (layer("a", "", [varint(5 << 3 | FIXED32) + b"\0\0"]), "4 bytes are claimed"),
    "no whole values": (layer("a", "", [message(5, b"\0" * 6)]), "4-byte values in 6 bytes"),
    "gigabytes by shape": (layer("a", "", [message(7, message(1, varint(1 << 31) * 2))]), "gives 0 values"),
    "overflowing shape": (
        layer("a", "", [message(5, b"\0" * 4) + message(7, message(1, varint(BIG) * 4))]),
        "1 values",
    ),
    "negative shape": (layer("a", "", [message(5, b"\0" * 4) + message(7, message(1, varint(-1)))]), r"shape \[-1\]"),
    "empty shape": (layer("a", "", [message(7, message(1, varint(0)))]), r"shape \[0\]"),
    "too many axes": (layer("a", "", [message(5, b"\0" * 4) + message(7, message(1, varint(1) * 33))]), "1 values"),
    "count": (layer("a", "", [blob(WEIGHT) + message(5, b"\0" * 4)]), r"'a:0' has shape \[2, 3, 2, 2\], and gives 25"),
    "legacy count": (layer("a", "", [number(1, 3) + message(5, b"\0" * 4)]), r"shape \[3, 0, 0, 0\], and gives 1"),
    "no values": (layer("a", "", [b""]), "gives 0 values"),
    "layer as a number": (number(100, 5), "'a layer' is stored as a number, not a message"),
    "blob as a number": (message(100, number(7, 5)), "'blob :0' is stored as a number"),
    "name as a number": (number(1, 5), "'a name' is stored as a number"),
    "values as numbers": (layer("a", "", [number(5, 1)]), "'blob a:0' is stored as a number"),
    "shape as a number": (layer("a", "", [number(7, 1)]), "'a shape' is stored as a number"),
    "dimension as four bytes": (
        layer("a", "", [message(7, varint(1 << 3 | FIXED32) + b"\0" * 4)]),
        "stored as 4 bytes",
    ),
    "a group": (varint(3 << 3 | 3) + varint(3 << 3 | 4), "no binary Caffe model"),
    "field 0": (varint(VARINT) + varint(1), "no binary Caffe model"),
    "wire type 7": (b"\x0f", "no binary Caffe model"),
    "an endless number": (b"\x08" + b"\x80" * 20, "too many bytes"),
    "the end in a number": (message(1, "a") + b"\x80", "ends in a number"),
    "a long name": (message(1, "a" * 2000), "a name of 2000 bytes"),
    "one name twice": (layer("a", "", [blob(BIAS)]) * 2, "two layers 'a' with blobs"),
    "V0 layers": (message(2, message(1, message(1, "a"))), "oldest format"),
    "empty": (b"", "is empty"),
    "a text": (b"name: 'VGG'\nlayer {\n}\n", r"is a text \(a .prototxt\?\)"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "is an HDF5 file"),
    "a picture": (b"\xff\xd8\xff\xe0" + b"\0" * 20, "net.caffemodel"),
    "many fields": (number(5, 0) * 150_000, "more than 100000 fields"),
    "many layers": (layer("a", "", []) * 75_000, "more than 100000 fields"),
    "many dimensions": (layer("a", "", [message(7, message(1, varint(1))) * 75_000]), "more than 100000 fields"),
    "many single values": (
        layer("a", "", [(varint(5 << 3 | FIXED32) + b"\0" * 4 + number(99, 0)) * 75_000]),
        "more than 100000 fields",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_sentence(read, damage):
    content, words = DAMAGE[damage]
    with pytest.raises(CheckpointError, match=words) as caught:
        read(content)
    assert "net.caffemodel" in str(caught.value)


def test_every_truncation_is_told_or_a_whole_file(read):
    content = caffemodel(BLOBS)
    whole, messages = [], {}
    for end in range(2, len(content)):
        try:
            whole.append(read(content[:end]).blobs.keys())
        except CheckpointError as error:
            messages[end] = str(error)
    assert len(whole) == 2  # behind the name of the network, which is empty, and behind the first layer
    assert all(blobs < BLOBS.keys() for blobs in whole)
    assert [end for end, message in messages.items() if f"of {end})" not in message] == []


def test_deep_nesting_is_not_followed(read):
    nested = b""
    for _ in range(3000):
        nested = message(100, nested)
    assert_same_blobs(read(nested + caffemodel(BLOBS)).blobs, BLOBS)


def test_an_absent_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*absent\.caffemodel: No such file"):
        read_caffemodel(tmp_path / "absent.caffemodel")


def test_reading_leaves_the_file_alone(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(BLOBS))
    before = path.read_bytes()
    read_caffemodel(path).blobs["conv", 0][:] = 0
    assert path.read_bytes() == before
