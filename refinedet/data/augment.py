"""The training augmentation of SSD as RefineDet's released code has it (spec section 9.2).

An image goes through distortion, expansion, a crop, a resize, mirroring and transposition. All random decisions are
drawn first (``Plan``), then carried out on the pixels that survive: the crop is cut before the colours are changed, and
the expanded canvas is never made whole. The result is the one of the stages in their order, because distortion works on
single pixels (OpenCV's conversion to HSV and back may round differently at the end of a row, by one level). Images stay
uint8 until the mean is subtracted; the official code's intermediate JPEG encoding is left out. A crop is a rectangle of
whole pixels from the start, so that the IoU bound and the boxes refer to exactly what is cut. Vertical mirroring and
transposition are ours, and off unless asked for.

Order of the draws from the generator: distortion (order; then per step of that order, whether and how much),
expansion (whether; ratio, offset y, offset x), crop (one block of scale, aspect ratio, x, y for every trial of every
sampler; the choice among the samplers that found a crop), interpolation, horizontal mirror, vertical mirror,
transposition.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from refinedet.augmentation import AugmentConfig
from refinedet.preprocessing import Preprocessing
from refinedet.records import Sample

_INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_LEVELS = np.arange(256, dtype=np.float32)
# In crop sides: a box thinner than this may have no area left in float32, whose spacing below 1 is 6e-8.
_LEAST_SIDE = 1e-6


class Step(NamedTuple):
    """One step of the distortion: a kind and its shift (brightness, hue) or factor (contrast, saturation)."""

    kind: str
    amount: float


class Rect(NamedTuple):
    """A rectangle in pixels."""

    x: int
    y: int
    width: int
    height: int


class Plan(NamedTuple):
    """Every decision about one image."""

    distortion: tuple[Step, ...]
    placed: Rect  # where the image lies on the expanded canvas
    canvas: tuple[int, int]  # height, width
    crop: Rect  # on the canvas
    interpolation: int
    mirrored: bool
    vertically_mirrored: bool
    transposed: bool  # x and y change places: with the mirrors, a quarter turn


class TrainAugment:
    """Augments a Sample for training at ``size`` = (height, width) in pixels."""

    def __init__(
        self, size: tuple[int, int], preprocessing: Preprocessing, config: AugmentConfig | None = None
    ) -> None:
        self.size = size
        self.preprocessing = preprocessing
        self.config = AugmentConfig() if config is None else config

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
        """(image float32 [3,h,w] preprocessed, boxes float32 [m,4], labels int64 [m], difficult bool [m]).

        Boxes are corners in units of the new image's side, within 0..1 and of positive area; m may be 0.
        """
        plan = draw_plan(sample.image.shape[:2], sample.boxes, rng, self.config)
        image = render(sample.image, plan, self.size, self.preprocessing.mean)
        boxes, kept = transform_boxes(sample.boxes, plan)
        return to_input(image, self.preprocessing), boxes, sample.labels[kept], sample.difficult[kept]


def draw_plan(image_size: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> Plan:
    """Decide everything about an image of ``image_size`` = (height, width) with ``boxes`` [n,4] in unit corners."""
    distortion = draw_distortion(rng, config)
    placed, canvas = draw_expansion(image_size, rng, config)
    on_canvas = place_boxes(boxes, placed, canvas)
    crop = draw_crop(canvas, on_canvas, rng, config)
    interpolation = _INTERPOLATIONS[rng.integers(len(_INTERPOLATIONS))]
    mirrored = rng.random() < config.mirror_probability
    vertically = rng.random() < config.vertical_mirror_probability
    transposed = rng.random() < config.transpose_probability
    return Plan(distortion, placed, canvas, crop, interpolation, mirrored, vertically, transposed)


def render(image: np.ndarray, plan: Plan, size: tuple[int, int], fill: tuple[float, float, float]) -> np.ndarray:
    """Carry a plan out on a BGR image uint8 [H,W,3]; returns uint8 [h,w,3]. ``fill`` is the colour around it, BGR."""
    cut = cut_out(image, plan, fill)
    height, width = size[::-1] if plan.transposed else size
    resized = cv2.resize(cut, (width, height), interpolation=plan.interpolation)
    if plan.mirrored:
        resized = cv2.flip(resized, 1)
    if plan.vertically_mirrored:
        resized = cv2.flip(resized, 0)
    if plan.transposed:
        resized = cv2.transpose(resized)
    return resized


def to_input(image: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Input tensor float32 [3,h,w] of an image uint8 [h,w,3] in BGR order: `normalize` and `to_tensor` plane by plane,
    without the interleaved floats between them."""
    planes = np.empty((3, *image.shape[:2]), np.float32)
    in_order = planes if preprocessing.order == "bgr" else planes[::-1]
    parts = zip(in_order, cv2.split(image), preprocessing.mean, preprocessing.std, strict=True)
    for plane, levels, mean, std in parts:
        np.subtract(levels, np.float32(mean), out=plane, dtype=np.float32)
        if std != 1:
            plane /= np.float32(std)
    return torch.from_numpy(planes)


def transform_boxes(boxes: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The boxes left in the crop, float32 [m,4] in unit corners of the crop, and which of the n they are (bool [n])."""
    cropped, kept = crop_boxes(place_boxes(boxes, plan.placed, plan.canvas), plan.crop, plan.canvas)
    if plan.mirrored:
        cropped = mirror_boxes(cropped)
    if plan.vertically_mirrored:
        cropped = mirror_boxes(cropped, axis=1)
    if plan.transposed:
        cropped = cropped[:, [1, 0, 3, 2]]
    return cropped.astype(np.float32), kept


# --- Distortion -------------------------------------------------------------------------------------------------


def draw_distortion(rng: np.random.Generator, config: AugmentConfig) -> tuple[Step, ...]:
    """The steps to take, in one of two orders; each is taken with ``distort_probability``."""
    contrast_first = rng.random() > 0.5
    order = ("contrast", "saturation", "hue") if contrast_first else ("saturation", "hue", "contrast")
    ranges = {
        "brightness": (-config.brightness, config.brightness),
        "contrast": config.contrast,
        "saturation": config.saturation,
        "hue": (-config.hue, config.hue),
    }
    steps = []
    for kind in ("brightness", *order):
        if rng.random() < config.distort_probability:
            steps.append(Step(kind, rng.uniform(*ranges[kind])))
    return tuple(steps)


def distort(image: np.ndarray, steps: tuple[Step, ...]) -> np.ndarray:
    """Apply the steps one after another to a BGR image uint8 [H,W,3]; each rounds and saturates to 0..255."""
    for step in steps:
        image = _DISTORTIONS[step.kind](image, step.amount)
    return image


def adjust_brightness(image: np.ndarray, shift: float) -> np.ndarray:
    return cv2.LUT(image, _saturate(_LEVELS + shift))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(image, _saturate(_LEVELS * factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return _adjust_hsv(image, 1, _saturate(_LEVELS * factor))


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Shift the hue by half degrees. It saturates at 0 and, beyond 180, wraps in the conversion back."""
    return _adjust_hsv(image, 0, _saturate(_LEVELS + shift))


_DISTORTIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def _saturate(levels: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.clip(np.rint(levels), 0, 255)
    return rounded.astype(np.uint8)


def _adjust_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


# --- Expansion --------------------------------------------------------------------------------------------------


def draw_expansion(
    image_size: tuple[int, int], rng: np.random.Generator, config: AugmentConfig
) -> tuple[Rect, tuple[int, int]]:
    """Where the image lies on its canvas, and the canvas's (height, width); the image itself when not expanded."""
    height, width = image_size
    if rng.random() >= config.expand_probability:
        return Rect(0, 0, width, height), image_size
    ratio = rng.uniform(1.0, config.max_expand)
    canvas_height, canvas_width = int(height * ratio), int(width * ratio)
    y = int(rng.uniform(0, canvas_height - height))
    x = int(rng.uniform(0, canvas_width - width))
    return Rect(x, y, width, height), (canvas_height, canvas_width)


def place_boxes(boxes: np.ndarray, placed: Rect, canvas: tuple[int, int]) -> np.ndarray:
    """Boxes [n,4] of an image in unit corners of the canvas that the image is placed on; float64."""
    offset = np.array((placed.x, placed.y) * 2, np.float64)
    pixels = boxes.astype(np.float64) * (placed.width, placed.height, placed.width, placed.height) + offset
    return pixels / (canvas[1], canvas[0], canvas[1], canvas[0])


# --- Crop -------------------------------------------------------------------------------------------------------


def draw_crop(canvas: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> Rect:
    """Choose uniformly among the crops that the samplers find; the whole canvas is always one of them.

    Each sampler takes the first of its trials that has the sampler's least IoU with at least one of ``boxes``.
    """
    height, width = canvas
    whole = Rect(0, 0, width, height)
    if not config.crop:
        return whole
    least = np.array((*config.crop_min_ious, 0.0))
    trials = draw_trials(canvas, rng, len(least) * config.crop_trials, config).reshape(len(least), -1, 4)
    found = [whole]
    if len(boxes):
        best = _rect_ious(trials.reshape(-1, 4), boxes, canvas).max(1).reshape(len(least), -1)
        passes = best >= least[:, None]
        first = passes.argmax(1)
        found += [Rect(*trials[i, first[i]].tolist()) for i in np.flatnonzero(passes.any(1))]
    return found[rng.integers(len(found))]


def draw_trials(canvas: tuple[int, int], rng: np.random.Generator, count: int, config: AugmentConfig) -> np.ndarray:
    """Random rectangles int64 [count,4] (x, y, width, height) on whole pixels of the canvas."""
    height, width = canvas
    scale, aspect, x, y = rng.random((4, count))
    scale = config.crop_scale[0] + scale * (config.crop_scale[1] - config.crop_scale[0])
    aspect = config.crop_aspect[0] + aspect * (config.crop_aspect[1] - config.crop_aspect[0])
    # Neither side may exceed the canvas.
    aspect = np.clip(aspect, scale**2, 1 / scale**2)
    wide, high = scale * np.sqrt(aspect), scale / np.sqrt(aspect)
    pixels = np.stack((x * (1 - wide) * width, y * (1 - high) * height, wide * width, high * height), 1)
    rects = pixels.astype(np.int64)
    # A canvas of a few pixels could truncate to nothing; rounding in the square roots could reach beyond it.
    rects[:, 2:] = np.clip(rects[:, 2:], 1, (width, height))
    rects[:, :2] = np.clip(rects[:, :2], 0, (width, height) - rects[:, 2:])
    return rects


def _rect_ious(rects: np.ndarray, boxes: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """IoU [t,n] of pixel rectangles [t,4] with boxes [n,4] in unit corners of the canvas."""
    height, width = canvas
    pixels = boxes * (width, height, width, height)
    low, high = rects[:, None, :2], rects[:, None, :2] + rects[:, None, 2:]
    sides = np.minimum(high, pixels[:, 2:]) - np.maximum(low, pixels[:, :2])
    inter = np.clip(sides, 0, None).prod(2)
    areas = (pixels[:, 2:] - pixels[:, :2]).prod(1)
    ious: np.ndarray = inter / (rects[:, 2:].prod(1)[:, None] + areas - inter)
    return ious


def crop_boxes(boxes: np.ndarray, crop: Rect, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes whose centre lies in the crop (borders included), clipped to it, in its unit corners; and which they are.

    A box without area inside the crop is left out.
    """
    height, width = canvas
    pixels = boxes * (width, height, width, height)
    corner, sides = np.array(crop[:2], np.float64), np.array(crop[2:], np.float64)
    centers = (pixels[:, :2] + pixels[:, 2:]) / 2
    inside = np.all((centers >= corner) & (centers <= corner + sides), axis=1)
    clipped = np.clip((pixels - np.tile(corner, 2)) / np.tile(sides, 2), 0.0, 1.0)
    kept = inside & np.all(clipped[:, 2:] - clipped[:, :2] > _LEAST_SIDE, axis=1)
    return clipped[kept], kept


def cut_out(image: np.ndarray, plan: Plan, fill: tuple[float, float, float]) -> np.ndarray:
    """The crop of the distorted image on its canvas, uint8 [crop height, crop width, 3], without making the canvas."""
    crop, placed = plan.crop, plan.placed
    left, top = crop.x - placed.x, crop.y - placed.y
    right, bottom = left + crop.width, top + crop.height
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, placed.width), min(bottom, placed.height)
    if x1 >= x2 or y1 >= y2:  # an unbounded crop may lie beside the image
        return np.tile(_saturate(np.array(fill)), (crop.height, crop.width, 1))
    seen = distort(image[y1:y2, x1:x2], plan.distortion)
    borders = (y1 - top, bottom - y2, x1 - left, right - x2)
    return cv2.copyMakeBorder(seen, *borders, cv2.BORDER_CONSTANT, value=fill)


# --- Mirror -----------------------------------------------------------------------------------------------------


def mirror_boxes(boxes: np.ndarray, axis: int = 0) -> np.ndarray:
    """Boxes [n,4] in unit corners after flipping the image along ``axis``: 0 horizontally, 1 vertically."""
    mirrored: np.ndarray = boxes.copy()
    mirrored[:, axis], mirrored[:, axis + 2] = 1 - boxes[:, axis + 2], 1 - boxes[:, axis]
    return mirrored
