"""An exported network that a runtime computes, as a `refinedet.Detector` takes it in place of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refinedet.anchors import generate_anchors
from refinedet.errors import InputError
from refinedet.ops import Detected
from refinedet.records import RawOutput
from refinedet.runtimes.description import Description


class RuntimeNetwork(nn.Module):
    """``forward`` has the contract of `refinedet.RefineDet`'s, for pixels [B,3,H,W] of the file's own size.

    Subclasses implement `compute` and, where the format has it, `detect`. ``runtime``: its name and version, for
    reports.
    """

    runtime: str

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self.config = description.config
        self.device = torch.device(description.device)
        self.dtype = torch.float32
        config = self.config
        anchors = generate_anchors(config.size, ratio=config.anchor_ratio, clip=config.clip_anchors)
        self.anchors = anchors.to(self.device)

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The outputs [B,N,*], by ``description.outputs``, of float32 pixels [B,3,H,W], contiguous, on ``device``, in a
        batch that the file holds. They are the caller's own: another call does not change them."""
        raise NotImplementedError

    def detect(self, pixels: Tensor) -> Detected:
        """What the file itself makes of such pixels, by its own thresholds: boxes in units of the image side. Only
        called where the file is not ``raw``."""
        raise NotImplementedError

    def detections(self, pixels: Tensor) -> Detected | None:
        """`detect` of any number of images [B,3,H,W]; None where the file holds the network alone."""
        return None if self.description.choices.raw else Detected._make(self._in_batches(self.detect, pixels))

    def forward(self, images: Tensor, by_level: bool = False) -> RawOutput:
        """Raw output of pixels, float32 [B,3,H,W] in BGR order, 0..255. ``by_level`` is of no matter: ops take both."""
        if images.ndim != 4 or images.shape[1:] != (3, *self.config.size):
            height, width = self.config.size
            raise InputError(f"images have shape {list(images.shape)}; this file takes [B,3,{height},{width}]")
        found = dict(zip(self.description.outputs, self._in_batches(self.compute, images), strict=True))
        return RawOutput(found.get("arm_loc"), found.get("arm_conf"), found["odm_loc"], found["odm_conf"])

    def _in_batches(self, run: Callable[[Tensor], Sequence[Tensor]], pixels: Tensor) -> Iterable[Tensor]:
        """Of as many images at a time as the file takes; the last ones are filled up with black ones."""
        batch = self.description.choices.batch or max(1, len(pixels))
        filled = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, -len(pixels) % batch)).contiguous()
        parts = [run(part) for part in filled.split(batch)]
        return (torch.cat(outputs)[: len(pixels)] for outputs in zip(*parts, strict=True))

    def anchors_for(self, size: tuple[int, int]) -> Tensor:
        """Anchors [N,4] of the file's own size; InputError for another one."""
        if tuple(size) != self.config.size:
            height, width = self.config.size
            raise InputError(
                f"size is {size[0]}x{size[1]}, and this file was exported for {height}x{width}; export it with --size "
                f"{size[0]}x{size[1]}"
            )
        return self.anchors

    def to(self, *arguments: Any, **options: Any) -> RuntimeNetwork:
        """Nothing but what it is: InputError for another device or dtype."""
        device, dtype, *_ = torch._C._nn._parse_to(*arguments, **options)
        if device is not None and device.type != self.device.type:
            raise InputError(
                f"device is {device}, and this file runs on {self.device.type}; give --device {self.device.type}, or "
                "the checkpoint it was made of"
            )
        if dtype not in (None, self.dtype):
            raise InputError(f"dtype is {dtype}, and this file was exported in its own; export it with --dtype")
        return self
