"""The parts of a testing protocol: inputs at one scale, their boxes back in the image, and the boxes of all scales as
one list (spec section 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refinedet import ops
from refinedet.boxes import to_pixels
from refinedet.ops import Detected
from refinedet.ops.ranked import ranked
from refinedet.preprocessing import Preprocessing, to_order, warp
from refinedet.protocols import Protocol, Scale

Size = tuple[int, int]  # height, width in pixels


class Rows(NamedTuple):
    """Boxes of an image, or of several with as many each. Those of label 0 are none."""

    boxes: Tensor  # [...,N,4] x1,y1,x2,y2 in pixels of the image
    scores: Tensor  # [...,N]
    labels: Tensor  # [...,N]


def group_by_input(scale: Scale, sizes: Sequence[Size], own: Size, room: int) -> list[tuple[Size, list[int]]]:
    """The images, by number, in groups of one input size, each small enough for a batch: of ``room`` inputs of the
    model's ``own`` size, or as many pixels. An image and its mirror image stay together."""
    members: dict[Size, list[int]] = {}
    for number, size in enumerate(sizes):
        members.setdefault(scale.input_size(size, own), []).append(number)
    groups = []
    for (height, width), numbers in members.items():
        pixels = height * width * len(scale.flips)
        step = max(1, room * own[0] * own[1] // pixels)
        groups += [((height, width), numbers[i : i + step]) for i in range(0, len(numbers), step)]
    return groups


def make_inputs(
    images: Sequence[np.ndarray], size: Size, flips: Sequence[bool], preprocessing: Preprocessing
) -> Tensor:
    """The network's input [flips * images,3,h,w], channels-last, of normalised images: all as they are, and all
    mirrored."""
    inputs = [
        to_order(warp(cv2.flip(image, 1) if flipped else image, size), preprocessing)
        for flipped in flips
        for image in images
    ]
    batch = inputs[0][None] if len(inputs) == 1 else np.stack(inputs)
    return torch.from_numpy(batch).permute(0, 3, 1, 2)  # channels-last, as convolutions take it


def to_images(found: Detected, scale: Scale, sizes: Sequence[Size]) -> Rows:
    """What was found in the inputs of `make_inputs`, as rows [images,flips * K] in pixels of the images of ``sizes``.

    A box of the mirror image goes to x' = W - x, after it was clipped (spec section 10.3): it may end at W. What the
    scale does not keep gets label 0.
    """
    shape = len(scale.flips), len(sizes), -1
    boxes = to_pixels(found.boxes, [*sizes] * len(scale.flips)).unflatten(0, shape[:2])
    scores, labels = found.scores.unflatten(0, shape[:2]), found.labels.unflatten(0, shape[:2])
    if scale.flipped:
        width = boxes.new_tensor([width for _, width in sizes])[:, None]
        x1, y1, x2, y2 = boxes[-1].unbind(dim=-1)
        boxes = torch.cat([boxes[:-1], torch.stack([width - x2, y1, width - x1, y2], dim=-1)[None]])
    if scale.min_side_below is not None or scale.max_side_above is not None:
        short, long = (boxes[..., 2:] - boxes[..., :2] + 1).aminmax(dim=-1)
        if scale.min_side_below is not None:
            labels = labels * (short < scale.min_side_below)
        if scale.max_side_above is not None:
            labels = labels * (long > scale.max_side_above)
    return Rows(*(rows.transpose(0, 1).flatten(1, 2) for rows in (boxes, scores, labels)))


def merge(
    looks: Sequence[Sequence[Rows]], sizes: Sequence[Size], protocol: Protocol, score_threshold: float | None
) -> Detected:
    """The rows of every look at each image, merged and by score; equal scores by look.

    ``score_threshold``, where given, stands for the protocol's floor of soft-NMS, and is passed by all that is left.
    """
    columns = zip(*(map(_join, zip(*image, strict=True)) for image in looks), strict=True)
    rows = Rows(*(pad_sequence(list(column), batch_first=True) for column in columns))
    found = _merge(rows, protocol, score_threshold)
    ends = found.boxes.new_tensor(sizes)[:, None, [1, 0, 1, 0]] - 1
    found = found._replace(boxes=torch.minimum(found.boxes, ends))
    if score_threshold is None:
        return found
    return found._replace(counts=torch.minimum(found.counts, (found.scores > score_threshold).sum(dim=1)))


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _merge(rows: Rows, protocol: Protocol, score_threshold: float | None) -> Detected:
    """Class by class, on boxes in pixels, whose last pixel counts (spec sections 10.2 and 10.4)."""
    if protocol.merge == "none":
        return ranked(rows.boxes, rows.scores.masked_fill(rows.labels <= 0, torch.nan), rows.labels)
    if protocol.merge != "soft_nms":
        soft = protocol.merge == "soft_vote"
        return ops.vote(*rows, iou_threshold=protocol.overlap, soft=soft, score_threshold=protocol.floor, official=True)
    floor = protocol.floor
    if score_threshold is not None and protocol.merge_score_threshold is None:
        floor = score_threshold
    sigma = protocol.merge_sigma
    return ops.soft_nms(
        *rows,
        method="linear" if sigma is None else "gaussian",
        iou_threshold=protocol.overlap,
        sigma=1.0 if sigma is None else sigma,
        score_threshold=floor,
        official=True,
    )
