"""What a format's writer is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from refinedet.exporting.network import PixelNetwork
from refinedet.protocols import Thresholds
from refinedet.runtimes.description import Description


@dataclass(frozen=True)
class Job:
    """One model and how it is to be written.

    ``network``: in eval mode, on ``description.device``, in the dtype that it is to compute in; of int8 and of weights
    that are stored shorter in float32. ``anchors``: [N,4] cx, cy, w, h in units of the image side, on the same device.
    ``calibration``: photographs, for int8.
    """

    network: PixelNetwork
    anchors: Tensor
    description: Description
    calibration: Sequence[Path] = ()

    @property
    def thresholds(self) -> Thresholds:
        """Of the detections in the file."""
        return Thresholds.of(self.description.config.preset)
