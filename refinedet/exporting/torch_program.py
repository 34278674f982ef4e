"""Format ``torch``: a program of torch.export, the network and the operator `refinedet::detect` in one graph."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from refinedet import ops
from refinedet.exporting.job import Job
from refinedet.inference.selection import NOTHING_GOES
from refinedet.runtimes.description import KEY


class Program(nn.Module):
    """``forward``: pixels, as `PixelNetwork` takes them, to what `refinedet.ops.Detected` has, in its order, and then
    the outputs of the network; to these alone where the file is ``raw``.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.network, self.anchors = job.network, nn.Buffer(job.anchors)
        self.description, self.thresholds = job.description, job.thresholds

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(pixels)
        return outputs if self.description.choices.raw else (*self._detect(*outputs), *outputs)

    def _detect(self, *outputs: Tensor) -> ops.Detected:
        preset, thresholds = self.description.config.preset, self.thresholds
        named = dict(zip(self.description.outputs, outputs, strict=True))
        top_k, keep_top_k = thresholds.top_k, thresholds.keep_top_k
        assert top_k is not None  # `refinedet.export` has refused other thresholds
        assert keep_top_k is not None
        return ops.detect(
            named.get("arm_loc") if preset.cascade else None,
            named.get("arm_conf"),
            named["odm_loc"],
            named["odm_conf"],
            self.anchors,
            objectness_threshold=preset.objectness_threshold,
            score_threshold=thresholds.score_threshold,
            iou_threshold=NOTHING_GOES if thresholds.nms_iou is None else thresholds.nms_iou,
            top_k=top_k,
            keep_top_k=keep_top_k,
            variances=preset.variances,
        )


def trace(job: Job) -> ExportedProgram:
    """The program of a job, for any number of images from 1 on where the batch is dynamic."""
    batch = job.description.choices.batch
    # Of a dynamic batch an example of 0 or 1 would be taken for a constant.
    pixels = torch.zeros(batch or 2, 3, *job.description.config.size, device=job.anchors.device)
    shapes = None if batch else {"pixels": {0: Dim("batch", min=1)}}
    with torch.no_grad():
        return torch.export.export(Program(job).eval(), (pixels,), dynamic_shapes=shapes)


def write(job: Job, path: Path) -> None:
    """Write the program with its description as an extra file, `KEY`."""
    program = trace(job)
    program.example_inputs = None  # megabytes of zeros
    with warnings.catch_warnings():
        # Of weights with their channels last, which are no contiguous tensors; they are saved whole.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, path, extra_files={KEY: job.description.to_json()})
