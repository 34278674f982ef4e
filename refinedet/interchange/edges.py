"""What is found in an image, for the formats, and its boxes as the edges of rectangles, which most formats have."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class Found(Protocol):
    """A `refinedet.Detections`, by what the formats read of it."""

    @property
    def boxes(self) -> Tensor: ...
    @property
    def scores(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def path(self) -> str | None: ...
    @property
    def size(self) -> tuple[int, int]: ...


def to_edges(detections: Found) -> np.ndarray:
    """The boxes [n,4] as x1,y1,x2,y2 of their edges, float64: 0 is the left edge of the first pixel, and a side of the
    image the right one of its last."""
    edges = detections.boxes.detach().cpu().numpy().astype(np.float64)
    edges[:, 2:] += 1.0
    return edges
