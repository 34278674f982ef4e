"""Post-training quantisation to int8 with NNCF."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refinedet.data.images import read_image
from refinedet.exporting.job import Job
from refinedet.preprocessing import PIXELS, prepare
from refinedet.progress import show_progress
from refinedet.runtimes import require
from refinedet.runtimes.openvino import without_telemetry

MOST_IMAGES = 300
"""Of the calibration images as many are looked at, evenly spread."""


def import_nncf(path: object) -> Any:
    """The module; ``path`` is what needs it. InputError where it is not installed."""
    with without_telemetry(), contextlib.redirect_stdout(sys.stderr):  # it logs to the stdout that it finds
        nncf: Any = require("nncf", "int8", path)
    nncf.set_log_level(logging.ERROR)
    return nncf


def quantize(model: Any, job: Job, nncf: Any) -> Any:
    """The network with weights and activations of 8 bits, by the ranges that the calibration images give; the same for
    the same images. L2Norm stays in float32: squares in 8 bits lose what is small."""
    images = _choose(job.calibration)
    batch = job.description.choices.batch or 1
    with contextlib.redirect_stdout(io.StringIO()):  # bars of its own
        return nncf.quantize(
            model,
            nncf.Dataset(_Batches(images, batch, job.description.config.size)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=-(-len(images) // batch),
            ignored_scope=nncf.IgnoredScope(types=["Power", "ReduceSum", "Divide"], validate=False),
        )


def _choose(paths: Sequence[Path]) -> list[Path]:
    count = min(MOST_IMAGES, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


class _Batches:
    """Pixels [B,3,H,W] of the images, B at a time; the last batch is filled up with the first ones."""

    def __init__(self, paths: Sequence[Path], batch: int, size: tuple[int, int]) -> None:
        self.paths, self.batch, self.size = paths, batch, size

    def __iter__(self) -> Iterator[np.ndarray]:
        endless = itertools.cycle(self.paths)
        with show_progress("calibrating", "image", len(self.paths)) as bar:
            for start in range(0, len(self.paths), self.batch):
                images = [read_image(path, apply_exif=True) for path in itertools.islice(endless, self.batch)]
                bar.update(min(self.batch, len(self.paths) - start))  # before it: nothing comes after the last one
                yield np.stack([prepare(image, self.size, PIXELS).numpy() for image in images])
