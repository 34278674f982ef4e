"""MNN: the network alone, as MNN's converter makes it of ONNX. `ops.detect` runs behind it.

MNN has a DetectionOutput of RefineDet's five inputs, but (3.6.1) it has no limit ``top_k``, and of two images it gives
the objects of both to each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from refinedet.errors import ExportError, printable
from refinedet.exporting.job import Job
from refinedet.exporting.onnx_graph import network_graph
from refinedet.runtimes.mnn import converter, heading, seal
from refinedet.silence import capture_output

_DONE = "Converted Success"
_FAILED = ("error", "check failed", "not support")


def write(job: Job, path: Path) -> None:
    """The network with its description; float16: weights are stored in half precision, and computed with in float32."""
    convert = converter("format mnn")
    model = network_graph(job)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "network.onnx", Path(folder) / "network.mnn"
        source.write_bytes(model.SerializeToString())
        arguments = ["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(made)]
        arguments += ["--bizCode", heading(job.description)]
        if job.description.choices.dtype == "float16":
            arguments.append("--fp16")
        with capture_output() as lines:
            convert(arguments)  # returns True whatever comes of it
        if not made.is_file() or not any(line.startswith(_DONE) for line in lines):
            raise ExportError(f"{path.name} not written: MNN's converter says: {_reason(lines)}")
        path.write_bytes(seal(made.read_bytes()))


def _reason(lines: list[str]) -> str:
    """Of what the converter prints the lines that tell of an error."""
    telling = [line for line in lines if any(word in line.lower() for word in _FAILED)]
    return printable("; ".join(telling or lines[-1:]) or "nothing")
