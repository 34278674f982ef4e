"""Roboflow's supervision (0.31.2): tracking, counting, drawing.

Its boxes are edges, in pixels: so it reads COCO's x, y, x + w, y + h and VOC's xmin - 1, ymin - 1, xmax, ymax. Its
class ids count from 0, and the names are in ``data["class_name"]``, where its annotators and its own converters look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refinedet.errors import InputError
from refinedet.interchange.edges import Found, to_edges

if TYPE_CHECKING:
    import supervision


def to_supervision(detections: Found) -> supervision.Detections:
    """The objects as ``supervision.Detections``; InputError where that package is not installed."""
    try:
        import supervision
    except ImportError as error:
        raise InputError(f"supervision cannot be imported ({error}); pip install supervision") from error
    return supervision.Detections(
        xyxy=to_edges(detections).astype(np.float32),
        confidence=detections.scores.detach().cpu().numpy().astype(np.float32),
        class_id=detections.labels.cpu().numpy() - 1,
        data={"class_name": np.array(detections.names, dtype=str)},
    )
