"""Anchors of RefineDet (spec section 6, paper section 3.1): one scale a level, three shapes a cell."""

from collections.abc import Iterable
from operator import index

import torch
from torch import Tensor

from refinedet.choices import SIZE_STEP
from refinedet.errors import InputError, show

STRIDES = (8, 16, 32, 64)  # pixels between the cells of each level
SCALE = 4  # side of the square anchor, in strides
RATIO = 2.0  # width / height of the wide anchors; the tall ones have its inverse
ANCHORS_PER_CELL = 3  # square, wide, tall, in channel order
MOST_RATIO = 16.0
MOST_PIXELS = 4096 * 4096  # of an input: a million anchors


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError unless both sides of ``size`` (height, width) are positive multiples of `SIZE_STEP`.

    The transfer connection blocks add a level to the next one upsampled exactly twofold (spec section 2).
    """
    if any(side < SIZE_STEP or side % SIZE_STEP for side in size):
        nearest = tuple(max(SIZE_STEP, (side + SIZE_STEP // 2) // SIZE_STEP * SIZE_STEP) for side in size)
        raise InputError(
            f"input size (height, width) is {show(tuple(size))}; both must be multiples of {SIZE_STEP}, "
            f"nearest {show(nearest)}"
        )


def parse_size(size: Iterable[int]) -> tuple[int, int]:
    """``size`` as (height, width); InputError unless it is two whole numbers that `check_size` accepts, of at most
    `MOST_PIXELS`."""
    try:
        height, width = map(index, size)
    except (TypeError, ValueError):
        raise InputError(f"input size is {show(size)}; give (height, width) in whole pixels") from None
    check_size((height, width))
    if height * width > MOST_PIXELS:
        raise InputError(
            f"input size (height, width) is {show((height, width))}; give at most {MOST_PIXELS} pixels (4096 x 4096)"
        )
    return height, width


def check_ratio(ratio: float) -> None:
    """Raise InputError unless ``ratio`` is a number from 1 to `MOST_RATIO`."""
    if type(ratio) not in (int, float) or not 1 <= ratio <= MOST_RATIO:
        raise InputError(f"anchor_ratio is {show(ratio)}; give a number from 1 to {MOST_RATIO:g} (2 in the paper)")


def generate_anchors(size: tuple[int, int], *, ratio: float = RATIO, clip: bool = False) -> Tensor:
    """Return the anchors of an input of ``size`` = (height, width) pixels, multiples of 64.

    ``ratio``: width / height of the wide anchors; 2 in the paper, more for data sets of thin objects. ``clip``: each of
    the four numbers to 0..1, as the luuuyi port does (spec section 12.1); the official ones are not.

    Returns float32 [N,4]: cx, cy, w, h in units of the image's width and height; level by level from stride 8 to
    64, rows top to bottom, cells left to right, ratios 1, ``ratio``, 1 / ``ratio``. N = 6375 at 320x320, 16320 at
    512x512. They are on the CPU, whatever torch's default device and dtype.
    """
    size = parse_size(size)
    check_ratio(ratio)
    anchors = torch.cat([_level_anchors(size, stride, ratio) for stride in STRIDES])
    return anchors.clamp_(0, 1) if clip else anchors


def _level_anchors(size: tuple[int, int], stride: int, ratio: float) -> Tensor:
    height, width = size
    rows, columns = height // stride, width // stride
    ratios = torch.tensor((1.0, ratio, 1 / ratio), dtype=torch.float64, device="cpu")
    center_y = (torch.arange(rows, dtype=torch.float64, device="cpu") + 0.5) * stride / height
    center_x = (torch.arange(columns, dtype=torch.float64, device="cpu") + 0.5) * stride / width
    anchor_w = SCALE * stride * ratios.sqrt() / width
    anchor_h = SCALE * stride / ratios.sqrt() / height
    grid = (rows, columns, ANCHORS_PER_CELL)
    anchors = torch.stack(
        [
            center_x.view(1, -1, 1).expand(grid),
            center_y.view(-1, 1, 1).expand(grid),
            anchor_w.expand(grid),
            anchor_h.expand(grid),
        ],
        dim=-1,
    )
    return anchors.reshape(-1, 4).float()
