"""From images to objects: read, prepare, run the network, decode, scale the boxes back (spec sections 1.2, 1.3, 8)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refinedet import ops
from refinedet.data import read_image
from refinedet.errors import DataError, InputError
from refinedet.preprocessing import prepare
from refinedet.records import Detections, LevelOutput, RawOutput

if TYPE_CHECKING:
    from refinedet.models import RefineDet

Image: TypeAlias = str | os.PathLike[str] | np.ndarray | Tensor
T = TypeVar("T")


def detect(
    model: RefineDet,
    images: Image | Iterable[Image],
    *,
    score_threshold: float | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> list[Detections]:
    """Find the objects of one image or of several; returns one `Detections` per image, in order.

    An image is a path, a numpy array or a torch tensor:

    * path: a file that OpenCV decodes, turned upright by its EXIF orientation, as cv2.imread does;
    * array: uint8 [H,W,3] in **BGR** order, as OpenCV reads it, or [H,W] / [H,W,1] grey;
    * tensor: [3,H,W] in **RGB** order (or [1,H,W] grey), uint8 0..255 or floating 0..1, as torchvision reads it.
      Floating values are rounded to 8 bits.

    Images of any size go together: each is warped to the model's input size. Boxes are x1,y1,x2,y2 in pixels of the
    image as given, clipped to [0, W-1] x [0, H-1]; rows are sorted by descending score, above ``score_threshold``
    (default: the model's preset). Works on the model's device, in eval mode, without gradients.

    Raises InputError for an argument of the wrong kind and DataError for a file that is absent or no image; both name
    the image, and (but for a damaged file) come before any image is processed.
    """
    single = isinstance(images, (str, os.PathLike, np.ndarray, Tensor)) or not isinstance(images, Iterable)
    items = [images] if single else list(images)
    for index, item in enumerate(items):
        _check(item, index)
    found = detect_stream(model, items, score_threshold=score_threshold, batch_size=batch_size)
    return list(tqdm(found, total=len(items), unit="image", disable=not progress))


def detect_stream(
    model: RefineDet, images: Iterable[Image], *, score_threshold: float | None = None, batch_size: int = 8
) -> Iterator[Detections]:
    """As `detect`, lazily: at most ``batch_size`` images are in memory, so a folder or a video may be any length."""
    threshold = model.config.preset.score_threshold if score_threshold is None else score_threshold
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"score_threshold is {score_threshold}; give a value from 0 to 1")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    return _stream(model, images, threshold, batch_size)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _stream(model: RefineDet, images: Iterable[Image], threshold: float, batch_size: int) -> Iterator[Detections]:
    for batch in batches(enumerate(images), batch_size):
        arrays = [_as_bgr(image, index) for index, image in batch]
        paths = [os.fspath(image) if isinstance(image, (str, os.PathLike)) else None for _, image in batch]
        yield from _detect_batch(model, arrays, paths, threshold)


@torch.inference_mode()
def _detect_batch(
    model: RefineDet, arrays: list[np.ndarray], paths: list[str | None], threshold: float
) -> list[Detections]:
    config = model.config
    blobs = torch.stack([prepare(array, config.size, config.preprocessing) for array in arrays])
    training = model.training
    model.eval()
    try:
        raw = model(blobs.to(model.anchors.device), by_level=True)
    finally:
        model.train(training)
    found = select_detections(model, raw, threshold)
    boxes, scores, labels = found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()
    detections = []
    for i, (count, array, path) in enumerate(zip(found.counts.tolist(), arrays, paths, strict=True)):
        height, width = array.shape[:2]
        names = [config.classes[label - 1] for label in labels[i, :count].tolist()]
        pixels = to_pixels(boxes[i, :count], (height, width))
        detections.append(
            Detections(pixels, scores[i, :count].clone(), labels[i, :count].clone(), names, path, (height, width))
        )
    return detections


def select_detections(model: RefineDet, raw: RawOutput | LevelOutput, score_threshold: float) -> ops.Detected:
    """Decode and suppress the model's raw output with the thresholds of its preset, but for ``score_threshold``; boxes
    [B,K,4] are corners in units of the image side."""
    preset = model.config.preset
    return ops.detect(
        raw.arm_loc if preset.cascade else None,
        raw.arm_conf,
        raw.odm_loc,
        raw.odm_conf,
        model.anchors,
        objectness_threshold=preset.objectness_threshold,
        score_threshold=score_threshold,
        iou_threshold=preset.nms_iou,
        top_k=preset.top_k,
        keep_top_k=preset.keep_top_k,
        variances=preset.variances,
    )


def to_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corner boxes [n,4] in units of the image side to pixels of an image of ``size`` = (height, width), clipped to
    [0, width-1] x [0, height-1] (spec section 1.3)."""
    height, width = size
    scaled = boxes * boxes.new_tensor([width, height, width, height])
    return torch.minimum(scaled.clamp(min=0), boxes.new_tensor([width - 1, height - 1, width - 1, height - 1]))


def _check(image: Image, index: int) -> None:
    """Refuse what cannot be an image, without reading files."""
    if isinstance(image, (str, os.PathLike)):
        if not Path(image).is_file():
            raise DataError(f"image {index}, {os.fspath(image)}: no such file; check the path")
    elif isinstance(image, np.ndarray):
        _check_array(image, index)
    elif isinstance(image, Tensor):
        _check_tensor(image, index)
    else:
        raise InputError(
            f"image {index} is a {type(image).__name__}; give a path, a uint8 BGR numpy array or a torch tensor "
            "(a PIL image: numpy.asarray(image.convert('RGB'))[..., ::-1])"
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


def _as_bgr(image: Image, index: int) -> np.ndarray:
    """The image as uint8 [H,W,3] BGR."""
    _check(image, index)
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, apply_exif=True)
    if isinstance(image, Tensor):
        levels = image if image.dtype == torch.uint8 else (image.float() * 255).round().to(torch.uint8)
        image = levels.permute(1, 2, 0).flip(2).cpu().numpy()
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
    return image
