"""What may be given as an image, refused or made a BGR array."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from refinedet.data.images import decode_image, read_image
from refinedet.errors import DataError, InputError

Image: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | Tensor
"""A path, the bytes of a file, a numpy array or a torch tensor; `refinedet.inference.detector.Detector.detect` says
which."""
T = TypeVar("T")
_CONTENT = (bytes, bytearray, memoryview)


def list_pictures(images: Image | Iterable[Image]) -> list[Image]:
    """The images as a list, one alone as a list of one; InputError or DataError for one that cannot be an image."""
    single = isinstance(images, (str, os.PathLike, *_CONTENT, np.ndarray, Tensor)) or not isinstance(images, Iterable)
    single = single or hasattr(images, "read")  # an open file, which gives its lines
    items = [cast(Image, images)] if single else list(cast(Iterable[Image], images))
    for index, item in enumerate(items):
        check_picture(item, index)
    return items


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def path_of(image: Image) -> str | None:
    """The path, where the image is one."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def check_picture(image: Image, index: int) -> None:
    """Refuse what cannot be an image, without reading files."""
    if isinstance(image, (str, os.PathLike)):
        if not Path(image).is_file():
            raise DataError(f"image {index}, {os.fspath(image)}: no such file; check the path")
    elif isinstance(image, _CONTENT):
        return  # decoding tells
    elif isinstance(image, np.ndarray):
        _check_array(image, index)
    elif isinstance(image, Tensor):
        _check_tensor(image, index)
    else:
        raise InputError(
            f"image {index} is a {type(image).__name__}; give a path, the bytes of an image file, a uint8 BGR numpy "
            "array or a torch tensor (an open file: file.read(); a PIL image: "
            "numpy.asarray(image.convert('RGB'))[..., ::-1])"
        )


def _check_array(array: np.ndarray, index: int) -> None:
    if array.dtype != np.uint8:
        raise InputError(f"image {index} is an array of {array.dtype}; convert it to uint8 with values 0..255")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise InputError(
            f"image {index} is an array of shape {list(array.shape)}; give [H,W,3] BGR or [H,W] grey "
            "(drop an alpha channel: image[..., :3]; several images: a list of arrays)"
        )
    if array.size == 0:
        raise InputError(f"image {index} is an array of shape {list(array.shape)}, without pixels; leave it out")


def _check_tensor(tensor: Tensor, index: int) -> None:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise InputError(
            f"image {index} is a tensor of shape {list(tensor.shape)}; give [3,H,W] RGB or [1,H,W] grey; "
            "several images: a list of tensors (list(batch))"
        )
    if tensor.numel() == 0:
        raise InputError(f"image {index} is a tensor of shape {list(tensor.shape)}, without pixels; leave it out")
    if tensor.dtype == torch.uint8:
        return
    if not tensor.is_floating_point():
        raise InputError(f"image {index} is a tensor of {tensor.dtype}; give uint8 0..255 or floating values 0..1")
    low, high = (value.item() for value in tensor.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # also true for NaN
        found = "contains NaN" if np.isnan(low) or np.isnan(high) else f"has values from {low:g} to {high:g}"
        raise InputError(f"image {index} is a floating tensor that {found}; scale or clamp it to 0..1")


def as_bgr(image: Image, index: int) -> np.ndarray:
    """The image as uint8 [H,W,3] BGR."""
    check_picture(image, index)
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, apply_exif=True)
    if isinstance(image, _CONTENT):
        return decode_image(bytes(image), f"image {index}", apply_exif=True)
    if isinstance(image, Tensor):
        levels = image if image.dtype == torch.uint8 else (image.float() * 255).round().to(torch.uint8)
        image = levels.permute(1, 2, 0).flip(2).cpu().numpy()
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
    return image
