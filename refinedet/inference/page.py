"""One page of sample images with the boxes of their annotations: whether classes and coordinates are right is seen at a
glance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch

from refinedet.data.dataset import Record
from refinedet.data.images import read_image
from refinedet.errors import printable
from refinedet.inference.draw import DARK, FONT, LIGHT, draw
from refinedet.records import Detections

TILE = (300, 400)  # height, width in pixels of the room for an image
CAPTION = 20  # pixels below it
COLUMNS = 4


def draw_page(records: Sequence[Record], classes: Sequence[str]) -> np.ndarray:
    """A uint8 BGR page of the images of ``records``, each with its boxes and, below, its id.

    Raises DataError for an image that cannot be read.
    """
    tiles = [_draw_tile(record, classes) for record in records]
    blank = np.full_like(tiles[0], 255)
    columns = min(COLUMNS, len(tiles))
    tiles += [blank] * (math.ceil(len(tiles) / columns) * columns - len(tiles))
    rows = [np.concatenate(tiles[first : first + columns], axis=1) for first in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def _draw_tile(record: Record, classes: Sequence[str]) -> np.ndarray:
    image = read_image(record.path)
    scale = min(TILE[0] / image.shape[0], TILE[1] / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    drawn = draw(small, _as_detections(record, classes, (height, width)), scores=False)
    tile = np.full((TILE[0] + CAPTION, TILE[1], 3), LIGHT, np.uint8)
    tile[:height, :width] = drawn
    caption = printable(record.image_id)
    cv2.putText(tile, caption, (4, TILE[0] + CAPTION - 6), FONT, 0.4, DARK, 1, cv2.LINE_AA)
    return tile


def _as_detections(record: Record, classes: Sequence[str], size: tuple[int, int]) -> Detections:
    labels: Iterable[int] = record.labels.tolist()
    return Detections(
        boxes=torch.from_numpy(record.boxes) * torch.tensor([size[1], size[0]] * 2),
        scores=torch.ones(len(record.labels)),
        labels=torch.from_numpy(record.labels),
        names=[classes[label - 1] for label in labels],
        path=str(record.path),
        size=size,
    )
