"""Peak memory of reading a Caffe model and of converting it, in sizes of the file: docs/converting.md has the numbers.

python tools/caffemodel_memory.py    # with `pip install protobuf`, that library's beside ours; Linux
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from refinedet.classes import VOC_CLASSES
from refinedet.models import ModelConfig, outline
from refinedet.weights.caffe_names import caffe_names, layer_types
from refinedet.weights.caffemodel import CaffeLayer, read_caffemodel, write_caffemodel
from refinedet.weights.convert import convert

NETWORK = ModelConfig("vgg16", (320, 320), VOC_CLASSES)


def main() -> None:
    """Write a model of VGG-16 with random weights, and read it in one process after the other."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "refinedet_vgg16_320x320.caffemodel"
        write_random(model)
        print(f"{model.stat().st_size / 1e6:.0f} MB")
        for way in ("protobuf", "read", "convert", "back"):
            if way != "protobuf" or find_spec("google.protobuf"):
                subprocess.run([sys.executable, __file__, way, model], check=True)


def write_random(path: Path) -> None:
    """The file of a RefineDet with VGG-16."""
    network = outline(NETWORK)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    generator = np.random.default_rng(0)
    blobs: dict[str, list[np.ndarray]] = {}
    for name, (layer, _) in caffe_names(network).items():
        blobs.setdefault(layer, []).append(generator.random(tuple(shapes[name]), np.float32))
    types = layer_types(network)
    write_caffemodel(path, "random", [CaffeLayer(layer, types[layer], blobs[layer]) for layer in types])


def measure(way: str, model: Path) -> None:
    """Print by how much the peak of this process's memory grows, in sizes of the file."""
    converted = model.with_suffix(".safetensors")
    outline(NETWORK)  # what is made once, whatever the file
    source = converted if way == "back" else model
    parser = make_parser() if way == "protobuf" else None
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    if parser is not None:
        parser.ParseFromString(model.read_bytes())
        kept: Any = [np.array(blob.data, np.float32) for layer in parser.layer for blob in layer.blobs]
    elif way == "read":
        kept = [float(blob.sum()) for blob in read_caffemodel(model).blobs.values()]
    else:
        kept = convert(source, model.with_name("back.caffemodel") if way == "back" else converted)
    print(f"{way:9} {(resident('VmHWM') - before) / source.stat().st_size:.2f} times the file")
    del kept


def make_parser() -> Any:
    """An empty message of protobuf's, of a schema with the fields that weights need."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, name, number, kind in (
        ("BlobShape", "dim", 1, field.TYPE_INT64),
        ("BlobProto", "data", 5, field.TYPE_FLOAT),
        ("BlobProto", "shape", 7, ".caffe.BlobShape"),
        ("LayerParameter", "name", 1, field.TYPE_STRING),
        ("LayerParameter", "blobs", 7, ".caffe.BlobProto"),
        ("NetParameter", "layer", 100, ".caffe.LayerParameter"),
    ):
        if message not in [other.name for other in file.message_type]:
            file.message_type.add(name=message)
        added = file.message_type[-1].field.add(name=name, number=number)
        added.label = field.LABEL_OPTIONAL if name in ("shape", "name") else field.LABEL_REPEATED
        if isinstance(kind, str):
            added.type, added.type_name = field.TYPE_MESSAGE, kind
        else:
            added.type = kind
            added.options.packed = name in ("dim", "data")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))()


def resident(key: str) -> int:
    """Bytes of this process's memory, now (VmRSS) or at the most (VmHWM)."""
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
