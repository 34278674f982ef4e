"""Files of OpenVINO, run on the CPU."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinedet import ops
from refinedet.boxes import to_corners
from refinedet.errors import CheckpointError, InputError, show
from refinedet.ops import Detected
from refinedet.runtimes import require
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.runtimes.description import KEY, Description

DETECTIONS = "detections"
"""The output of OpenVINO's DetectionOutput: [1,1,B*K,7] image, label, score, x1, y1, x2, y2 in units of the image side,
by image, then by label, then by descending score; image -1 ends them."""

PADDING = -1

WEIGHTS_KEY = f"{KEY}_weights"
"""Of the digest of the .bin among the metadata: OpenVINO computes with any that is long enough."""


def digest_of(weights: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with weights.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


LEAST = (2025, 0)
"""The oldest release that files were read and run with."""


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import OpenVINO and NNCF in this block as if the package openvino_telemetry, which they require, were absent.

    It reports every import and every conversion to an analytics service and keeps a number of the user in the home
    folder, unasked (2026.4.1). What the program imported before stays as it is.
    """
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def import_openvino(path: object) -> Any:
    """The module; ``path`` is what needs it. InputError where it is not installed, or too old."""
    with without_telemetry():
        openvino: Any = require("openvino", "openvino", path)
    if tuple(map(int, _version(openvino).split(".")[:2])) < LEAST:
        raise InputError(
            f"{path} needs openvino {LEAST[0]}.{LEAST[1]} or newer, and {_version(openvino)} is installed: "
            "pip install --upgrade 'refinedet[openvino]'"
        )
    return openvino


def open_network(path: Path) -> RuntimeNetwork:
    """The network of an .xml file and the .bin beside it; CheckpointError for damaged files and those of others."""
    openvino = import_openvino(path)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise CheckpointError(f"{path} has no weights beside it: {weights.name} is absent; copy both files")
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # what is written over the file must not reach the network
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} and {weights.name} are no network that OpenVINO {_version(openvino)} reads ({_reason(error)}); "
            "copy or export both again, or update openvino"
        ) from error
    text = model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None
    description = Description.from_json(text, path)
    digest = model.get_rt_info(WEIGHTS_KEY).value if model.has_rt_info(WEIGHTS_KEY) else None
    if digest != digest_of(weights):
        raise CheckpointError(
            f"{weights} is damaged or of another export than {path.name}: copy both files again, or export them"
        )
    return OpenVINONetwork(description, core, model, f"OpenVINO {_version(openvino)}", path)


class OpenVINONetwork(RuntimeNetwork):
    """A model of OpenVINO. Threads: as many as torch has when the file is opened."""

    def __init__(self, description: Description, core: Any, model: Any, runtime: str, path: Path) -> None:
        super().__init__(description)
        self.runtime = runtime
        self._lock = threading.Lock()  # a request computes one batch at a time
        self._core = core
        self._results = {name: result for result in model.get_results() for name in result.get_output_tensor(0).names}
        self._parameters = model.get_parameters()
        wanted = description.outputs if description.choices.raw else (*description.outputs, DETECTIONS)
        missing = [name for name in wanted if name not in self._results]
        if missing or len(self._parameters) != 1:
            raise CheckpointError(f"{path} has no output {', '.join(missing)}: it was changed; export it again")
        self._network = self._compile(description.outputs)
        self._whole: Any = None

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self._run(self._network, pixels)

    def detect(self, pixels: Tensor) -> Detected:
        if self._whole is None:
            self._whole = self._compile((*self.description.outputs, DETECTIONS))
        *raw, rows = self._run(self._whole, pixels)
        found = dict(zip(self.description.outputs, raw, strict=True))
        return _to_detected(rows.reshape(-1, 7), found, self.anchors, self.description)

    def _compile(self, names: tuple[str, ...]) -> Any:
        """The part of the model that these outputs need: DetectionOutput takes several times as long as ops.detect."""
        openvino = import_openvino(self)
        part = openvino.Model([self._results[name] for name in names], self._parameters)
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the threads of several processes would share the first cores
        }
        if self.description.choices.dtype != "float16":
            options["INFERENCE_PRECISION_HINT"] = "f32"  # some processors compute in bfloat16 otherwise
        return self._core.compile_model(part, "CPU", options).create_infer_request()

    def _run(self, request: Any, pixels: Tensor) -> tuple[Tensor, ...]:
        with self._lock:
            found = request.infer([pixels.numpy()], share_inputs=True, share_outputs=False)
            return tuple(torch.from_numpy(output) for output in found.values())


def _version(openvino: Any) -> str:
    """Without the number of the build."""
    return str(openvino.__version__).partition("-")[0]


def _reason(error: RuntimeError) -> str:
    """What OpenVINO says last, in front of which it names places in its source."""
    return show([line for line in str(error).splitlines() if line.strip()][-1].strip())


def _to_detected(rows: Tensor, raw: dict[str, Tensor], anchors: Tensor, description: Description) -> Detected:
    """Rows of DetectionOutput in the order of `ops.detect`. They do not say from which anchor they are: from the one
    whose box and score of the class, by the raw output, are the nearest."""
    preset = description.config.preset
    batch, room = len(raw["odm_loc"]), preset.keep_top_k or len(rows)
    detected = Detected(
        torch.zeros(batch, room, 4),
        torch.zeros(batch, room),
        torch.zeros(batch, room, dtype=torch.int64),
        torch.full((batch, room), -1),
        torch.zeros(batch, dtype=torch.int64),
    )
    end = int((rows[:, 0] == PADDING).int().argmax()) if (rows[:, 0] == PADDING).any() else len(rows)
    refined = ops.refine(anchors, raw["arm_loc"], preset.variances) if "arm_loc" in raw and preset.cascade else anchors
    decoded = to_corners(ops.refine(refined, raw["odm_loc"], preset.variances))
    probabilities = raw["odm_conf"].softmax(-1)
    for image in range(batch):
        own = rows[:end][rows[:end, 0] == image]
        labels = own[:, 1].long()
        index = _nearest(own, decoded[image], probabilities[image])
        order = np.lexsort((labels, index, -own[:, 2]))
        count = len(own)
        for column, values in zip(detected, (own[:, 3:], own[:, 2], labels, index), strict=False):
            column[image, :count] = values[order]
        detected.counts[image] = count
    return detected


def _nearest(rows: Tensor, boxes: Tensor, probabilities: Tensor) -> Tensor:
    """The anchor of each row."""
    distances = ((boxes - row[3:]).abs().amax(1) + (probabilities[:, int(row[1])] - row[2]).abs() for row in rows)
    nearest = [int(distance.nan_to_num(torch.inf).argmin()) for distance in distances]
    return torch.tensor(nearest, dtype=torch.int64)
