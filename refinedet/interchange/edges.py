"""Boxes as the edges of rectangles, which most formats have."""

from __future__ import annotations

import numpy as np

from refinedet.records import Detections


def to_edges(detections: Detections) -> np.ndarray:
    """The boxes [n,4] as x1,y1,x2,y2 of their edges, float64: 0 is the left edge of the first pixel, and a side of the
    image the right one of its last."""
    edges = detections.boxes.detach().cpu().numpy().astype(np.float64)
    edges[:, 2:] += 1.0
    return edges
