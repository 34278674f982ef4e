"""ONNX files, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refinedet.errors import CheckpointError, InputError, printable
from refinedet.ops import Detected
from refinedet.runtimes import require
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.runtimes.description import KEY, Description

INPUT = "pixels"
"""What the file calls its input."""

OLDEST = "1.15"
"""ONNX Runtime that was seen to run what `refinedet export` writes today."""


def open_network(path: Path) -> OnnxNetwork:
    """The network of an ONNX file that `refinedet export` wrote. Errors: `refinedet.runtimes.open_network`."""
    onnx: Any = require("onnx", "onnx", path)
    require("onnxruntime", "onnx", path)
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # DecodeError of protobuf, of which there are several
        raise CheckpointError(f"{path} is damaged, or no ONNX file ({error}); export it again") from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxNetwork(Description.from_json(texts.get(KEY), path), model, content, path)


class OnnxNetwork(RuntimeNetwork):
    """Computed by a session that ends at the outputs of the network; another one of the whole file is made where
    `detections` are asked for. One would do if it left out what nobody asks for: ONNX Runtime 1.32.0 does not, with
    ``only_execute_path_to_fetches`` neither."""

    def __init__(self, description: Description, model: Any, content: bytes, path: Path) -> None:
        super().__init__(description)
        self._path, self._content = path, content
        self._session = _open_session(_cut(model, description.outputs).SerializeToString(), path)
        self.runtime = f"ONNX Runtime {_onnxruntime().__version__}"

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self._session.run(self.description.outputs, {INPUT: pixels.numpy()})
        return tuple(map(torch.from_numpy, outputs))

    def detect(self, pixels: Tensor) -> Detected:
        columns = [torch.from_numpy(column) for column in self._whole.run(Detected._fields, {INPUT: pixels.numpy()})]
        if self.description.choices.rows == "fixed":
            return Detected(*columns)
        counts = columns.pop()
        room = self.description.config.preset.keep_top_k or 0  # as many for every image, as fixed rows have
        found = Detected(
            torch.zeros(len(counts), room, 4),
            torch.zeros(len(counts), room),
            torch.zeros(len(counts), room, dtype=torch.int64),
            torch.full((len(counts), room), -1),
            counts,
        )
        there = torch.arange(room) < counts[:, None]
        for column, values in zip(found, columns, strict=False):
            column[there] = values
        return found

    @cached_property
    def _whole(self) -> Any:
        return _open_session(self._content, self._path)


def _cut(model: Any, outputs: tuple[str, ...]) -> Any:
    """``model`` with no node behind those that give ``outputs``: each node comes after those whose outputs it reads."""
    graph = model.graph
    last = max(i for i, node in enumerate(graph.node) if not set(outputs).isdisjoint(node.output))
    del graph.node[last + 1 :]
    kept = [output for output in graph.output if output.name in outputs]
    graph.ClearField("output")
    graph.output.extend(kept)
    return model


def _open_session(content: bytes, path: Path) -> Any:
    """Of as many threads as torch has. They sleep while they wait: by default they spin, also after the network, when
    the processors are wanted for what comes next. Measured, two threads on a busy machine: 0.8 of the processors' time
    and 0.8 to 0.9 of the time of an image."""
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # no warning of constants that only what was cut off read
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each of its errors is a class of its own
        raise InputError(
            f"{path} does not open in ONNX Runtime {runtime.__version__} ({printable(error)}); version {OLDEST} or "
            "newer opens what this refinedet exports: pip install --upgrade onnxruntime, or export it again"
        ) from error


def _onnxruntime() -> Any:
    return require("onnxruntime", "onnx", "format onnx")
