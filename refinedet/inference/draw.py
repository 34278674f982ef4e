"""Detections painted on a picture: a coloured frame per object, its class and score on a label that covers no other."""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import cv2
import numpy as np

from refinedet.errors import InputError, printable
from refinedet.records import Detections

FONT = cv2.FONT_HERSHEY_SIMPLEX
# Hues step by the golden ratio and tones take turns. The numbers, found by a grid search, keep the first 4 classes 80
# apart in CIE Lab, the first 20 classes 30; the first is the strong red that shows on most photographs.
GOLDEN_RATIO = 0.6180339887
FIRST_HUE = 0.98
TONES = ((0.9, 1.0), (1.0, 0.55), (0.6, 0.95))  # saturation and value
REFERENCE_SIDE = 600.0  # geometric mean side, in pixels, at which lines are LINE_WIDTH thick and text is FONT_SCALE
LINE_WIDTH = 2.0
FONT_SCALE = 0.42
MIN_FONT_SCALE = 0.35  # smaller is illegible
DARK = (20, 20, 20)
LIGHT = (255, 255, 255)
INK_SWITCH = 0.2  # luminance at which dark and light letters contrast about equally with the ground


class _Style(NamedTuple):
    """Sizes of lines and letters for one picture."""

    line: int
    font_scale: float
    stroke: int
    padding: int


class _Rectangle(NamedTuple):
    """Whole pixels; x2 and y2 are outside."""

    x1: int
    y1: int
    x2: int
    y2: int

    def overlap(self, other: _Rectangle) -> int:
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(width, 0) * max(height, 0)


def color_of(label: int) -> tuple[int, int, int]:
    """The BGR colour of class ``label`` (1, 2, ...): the same in every picture, neighbours far apart in hue."""
    saturation, value = TONES[(label - 1) % len(TONES)]
    red, green, blue = colorsys.hsv_to_rgb((FIRST_HUE + (label - 1) * GOLDEN_RATIO) % 1.0, saturation, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def draw(image: np.ndarray, detections: Detections, score_threshold: float = 0.5, *, scores: bool = True) -> np.ndarray:
    """A copy of the uint8 BGR image [H,W,3] with every detection of at least ``score_threshold`` painted on it, and its
    score beside its class unless ``scores`` is False.

    Widths follow the size of the picture. Frames come first, labels above all frames; each label, best score first,
    takes the corner of its box where it hides the least of the labels already set, and stays inside the picture.
    OpenCV 5 has the letters of most scripts; OpenCV 4 writes ? for those outside ASCII.
    Raises InputError when the image is of another kind or size than the detections'.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image is {image.dtype} of shape {list(image.shape)}; give uint8 [H,W,3] in BGR order")
    if image.shape[:2] != tuple(detections.size):
        raise InputError(
            f"image is {image.shape[1]}x{image.shape[0]} but the detections are for "
            f"{detections.size[1]}x{detections.size[0]}; draw on the image they were found in"
        )
    canvas: np.ndarray = image.copy()
    style = _style(*image.shape[:2])
    shown = [row for row, score in enumerate(detections.scores.tolist()) if score >= score_threshold]
    frames = [_Rectangle(*(round(value) for value in detections.boxes[row].tolist())) for row in shown]
    colors = [color_of(int(detections.labels[row])) for row in shown]
    for frame, color in zip(reversed(frames), reversed(colors), strict=True):  # the best on top
        cv2.rectangle(canvas, frame[:2], frame[2:], color, style.line)
    placed: list[_Rectangle] = []
    for row, frame, color in zip(shown, frames, colors, strict=True):
        text = printable(detections.names[row]) + (f" {detections.scores[row]:.2f}" if scores else "")
        placed.append(_draw_label(canvas, text, frame, color, style, placed))
    return canvas


def _style(height: int, width: int) -> _Style:
    scale = (height * width) ** 0.5 / REFERENCE_SIDE
    font_scale = max(MIN_FONT_SCALE, FONT_SCALE * scale)
    return _Style(
        line=max(1, round(LINE_WIDTH * scale)),
        font_scale=font_scale,
        stroke=max(1, round(font_scale * 1.5)),
        padding=max(2, round(2 * scale)),
    )


def _draw_label(
    canvas: np.ndarray,
    text: str,
    frame: _Rectangle,
    color: tuple[int, int, int],
    style: _Style,
    placed: list[_Rectangle],
) -> _Rectangle:
    (width, height), baseline = cv2.getTextSize(text, FONT, style.font_scale, style.stroke)
    size = (width + 2 * style.padding, height + baseline + style.padding)
    place = _place(frame, size, canvas.shape[:2], placed)
    cv2.rectangle(canvas, (place.x1, place.y1), (place.x2 - 1, place.y2 - 1), color, cv2.FILLED)
    origin = (place.x1 + style.padding, place.y1 + style.padding // 2 + height)
    cv2.putText(canvas, text, origin, FONT, style.font_scale, _ink(color), style.stroke, cv2.LINE_AA)
    return place


def _place(
    frame: _Rectangle, size: tuple[int, int], image_size: tuple[int, int], placed: list[_Rectangle]
) -> _Rectangle:
    """Where a label of ``size`` (width, height) goes: of the spots around the box, the one that covers the least of
    the labels already placed; the earlier spot on equality."""
    width, height = size
    spots = (
        (frame.x1, frame.y1 - height),  # above, left
        (frame.x1, frame.y1),  # inside, top left
        (frame.x2 - width, frame.y1 - height),  # above, right
        (frame.x1, frame.y2),  # below, left
        (frame.x1, frame.y2 - height),  # inside, bottom left
        (frame.x2 - width, frame.y2),  # below, right
        (frame.x2 - width, frame.y1),  # inside, top right
        (frame.x2 - width, frame.y2 - height),  # inside, bottom right
    )
    candidates = [_inside(x, y, size, image_size) for x, y in spots]
    return min(candidates, key=lambda candidate: sum(candidate.overlap(other) for other in placed))


def _inside(x: int, y: int, size: tuple[int, int], image_size: tuple[int, int]) -> _Rectangle:
    """The rectangle at (x, y) moved into the picture; one larger than the picture starts at its edge."""
    x = max(0, min(x, image_size[1] - size[0]))
    y = max(0, min(y, image_size[0] - size[1]))
    return _Rectangle(x, y, x + size[0], y + size[1])


def _ink(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Dark letters on a light ground, light ones on a dark ground."""
    return DARK if _luminance(background) > INK_SWITCH else LIGHT


def _luminance(bgr: tuple[int, int, int]) -> float:
    """Approximate relative luminance 0..1: BT.709 weights, gamma 2.2."""
    blue, green, red = ((value / 255) ** 2.2 for value in bgr)
    luminance: float = 0.0722 * blue + 0.7152 * green + 0.2126 * red
    return luminance
