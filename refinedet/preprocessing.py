"""From an image as OpenCV reads it to the network's input (spec section 1)."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from refinedet.errors import InputError, show
from refinedet.parsing import to_float

ORDERS = ("bgr", "rgb")
_LARGEST = 1e6  # of a mean or deviation; grey levels end at 255


@dataclass(frozen=True)
class Preprocessing:
    """Input convention of a backbone. ``mean`` and ``std`` are in BGR order and grey levels 0..255.

    ``order`` is the channel order the network reads: "bgr" (Caffe models) or "rgb" (timm models). Raises InputError for
    anything else.
    """

    mean: tuple[float, float, float] = (104.0, 117.0, 123.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "bgr"

    def __post_init__(self) -> None:
        self._require(self._holds("mean", -_LARGEST), "mean", "three numbers, at most a million")
        self._require(self._holds("std", 1 / _LARGEST), "std", "three numbers above 0, from a millionth to a million")
        self._require(isinstance(self.order, str) and self.order in ORDERS, "order", f"one of {', '.join(ORDERS)}")

    def _holds(self, name: str, least: float) -> bool:
        values: Any = getattr(self, name)
        return (
            isinstance(values, (tuple, list))
            and len(values) == 3
            and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            and all(least <= to_float(value) <= _LARGEST for value in values)
        )

    def _require(self, condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise InputError(f"preprocessing: {name} is {show(getattr(self, name))}; give {wanted}")


PIXELS = Preprocessing(mean=(0.0, 0.0, 0.0))
"""Of a network that reads an image as it is, BGR, 0..255, as all exported ones do."""


def normalize(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Subtract the mean from a BGR image uint8 [H,W,3] and divide by the deviation; float32, still BGR and HWC."""
    if preprocessing.std == (1.0, 1.0, 1.0):
        mean: Any = (*preprocessing.mean, 0.0)  # a number for each channel, of which OpenCV wants four
        difference: np.ndarray = cv2.subtract(np.ascontiguousarray(image), mean, dtype=cv2.CV_32F)
        return difference
    levels = np.arange(256, dtype=np.float32)[:, None]
    means, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)
    table: np.ndarray = (levels - means) / std
    # A look-up gives the same floats as the arithmetic on every pixel, ten times faster.
    return cv2.LUT(np.ascontiguousarray(image), table[None])


def to_order(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A normalised BGR image [H,W,3] in the network's channel order."""
    return image if preprocessing.order == "bgr" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def to_tensor(image: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Planar tensor [3,H,W] in the network's channel order, from a normalised BGR image [H,W,3]."""
    return torch.from_numpy(np.ascontiguousarray(to_order(image, preprocessing).transpose(2, 0, 1)))


def warp(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image [H,W,3] bilinearly resized to ``size`` = (h, w)."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def prepare(image: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """Input tensor float32 [3,h,w] of a BGR uint8 image [H,W,3], warped to ``size`` = (h, w).

    As the official evaluation does (spec section 1.2), the mean is subtracted before the bilinear resize.
    """
    return to_tensor(warp(normalize(image, preprocessing), size), preprocessing)
