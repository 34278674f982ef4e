"""How long each stage of inference takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def timed(seconds: dict[str, float], stage: str, device: torch.device | None = None) -> Iterator[None]:
    """Add the time of the block to ``seconds[stage]``, the work it queued on a GPU included."""
    start = time.perf_counter()
    yield
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
