"""ONNX files, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refinedet.errors import CheckpointError, InputError
from refinedet.exporting.description import KEY, Description
from refinedet.ops import Detected
from refinedet.runtimes import require
from refinedet.runtimes.base import RuntimeNetwork

INPUT = "images"


def open_network(path: Path) -> OnnxNetwork:
    """The network of an ONNX file that `refinedet export` wrote. Errors: `refinedet.runtimes.open_network`."""
    onnx = require("onnx", "onnx", path)
    require("onnxruntime", "onnx", path)
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError: two implementations have one each
        raise CheckpointError(f"{path} is damaged, or no ONNX file ({error}); export it again") from error
    texts = {prop.key: prop.value for prop in model.metadata_props}
    description = Description.from_json(texts.get(KEY), path)
    return OnnxNetwork(description, model, content, path)


class OnnxNetwork(RuntimeNetwork):
    """The outputs of the network, computed by a session that ends there; the whole file runs for `detections` alone:
    ONNX Runtime 1.32.0 computes every node of a session, whatever outputs are asked for."""

    def __init__(self, description: Description, model: Any, content: bytes, path: Path) -> None:
        super().__init__(description)
        self._path, self._content = path, content
        self._session = _open(_cut(model, description.outputs).SerializeToString(), path)
        self.runtime = f"ONNX Runtime {_runtime().__version__}"

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self._session.run(self.description.outputs, {INPUT: pixels.numpy()})
        return tuple(map(torch.from_numpy, outputs))

    def detections(self, pixels: Tensor) -> Detected | None:
        if self.description.choices.raw:
            return None
        found = self._whole.run(Detected._fields, {INPUT: pixels.contiguous().numpy()})
        return Detected._make(map(torch.from_numpy, found))

    @cached_property
    def _whole(self) -> Any:
        return _open(self._content, self._path)


def _runtime() -> Any:
    return require("onnxruntime", "onnx", "format onnx")


def _cut(model: Any, outputs: tuple[str, ...]) -> Any:
    """``model`` up to the nodes that ``outputs`` come from; nodes are in the order they can be computed in."""
    graph = model.graph
    last = max(i for i, node in enumerate(graph.node) if not set(outputs).isdisjoint(node.output))
    del graph.node[last + 1 :]
    kept = [output for output in graph.output if output.name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    return model


def _open(content: bytes, path: Path) -> Any:
    """A session of as many threads as torch has."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{path} does not run in ONNX Runtime {runtime.__version__} ({error})") from error
