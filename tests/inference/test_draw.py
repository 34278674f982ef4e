"""refinedet.inference.draw: frames and labels on a picture."""

import itertools
import os

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet.errors import InputError
from refinedet.inference.draw import _ink, _place, _Rectangle, color_of, draw
from refinedet.records import Detections


def detections(boxes, size=(120, 160), scores=None, labels=None, name="disc") -> Detections:
    count = len(boxes)
    labels = labels or [1] * count
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores or [0.9] * count),
        torch.tensor(labels, dtype=torch.int64),
        [name] * count,
        None,
        size,
    )


def canvas(height=120, width=160, grey=128) -> np.ndarray:
    return np.full((height, width, 3), grey, np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(2)


def test_a_frame_in_the_colour_of_the_class_and_a_label_above_it():
    picture = canvas()
    drawn = draw(picture, detections([[40, 50, 120, 100]], labels=[2]))
    assert (picture == 128).all()  # the original is untouched
    for point in ((100, 80), (75, 40), (75, 120)):
        assert tuple(int(value) for value in drawn[point]) == color_of(2)
    touched = changed(picture, drawn)
    assert touched[38:50, 42:72].mean() > 0.9
    assert not touched[55:95, 45:115].any()
    assert not touched[:30].any()


def test_only_detections_of_at_least_the_threshold():
    picture = canvas()
    found = detections([[40, 50, 120, 100], [10, 60, 30, 80]], scores=[0.5, 0.49])
    assert np.array_equal(draw(picture, found), draw(picture, detections([[40, 50, 120, 100]], scores=[0.5])))
    assert np.array_equal(draw(picture, found, score_threshold=0.6), picture)
    assert changed(picture, draw(picture, found, score_threshold=0.1))[70, 10]


def test_nothing_found_gives_a_copy():
    picture = canvas()
    drawn = draw(picture, detections([]))
    assert np.array_equal(drawn, picture)
    assert drawn is not picture


@pytest.mark.parametrize("box", [[0, 0, 20, 20], [140, 0, 159, 30], [0, 100, 15, 119], [150, 110, 159, 119]])
def test_labels_of_objects_at_the_edge_are_whole(box):
    middle = changed(canvas(), draw(canvas(), detections([[40, 50, 40, 50]]))).sum()
    edge = changed(canvas(), draw(canvas(), detections([box]))).sum()
    assert edge >= middle  # as many pixels of label as in the middle of the picture, and a frame


def test_labels_of_a_crowd_cover_each_other_as_little_as_possible():
    placed = []
    for shift in range(4):  # four boxes on nearly the same spot
        frame = _Rectangle(40 + shift, 40 + shift, 100 + shift, 80 + shift)
        placed.append(_place(frame, (30, 10), (120, 160), placed))
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(placed, 2))


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(-50, 250)] * 4), st.integers(1, 60), st.integers(1, 20))
def test_a_label_that_fits_lies_inside_the_picture(corners, width, height):
    place = _place(_Rectangle(*corners), (width, height), (40, 80), [])
    assert (place.x2 - place.x1, place.y2 - place.y1) == (width, height)
    assert place.x1 >= 0
    assert place.y1 >= 0
    assert place.x2 <= 80
    assert place.y2 <= 40


def test_lines_and_letters_grow_with_the_picture():
    sizes = [(240, 320), (960, 1280), (3840, 5120)]
    widths = []
    for height, width in sizes:
        box = [width // 4, height // 2, width // 2, height * 3 // 4]
        touched = changed(canvas(height, width), draw(canvas(height, width), detections([box], (height, width))))
        widths.append((touched[height * 5 // 8, : width * 3 // 8].sum(), touched.sum() / touched.size))
    assert widths[0][0] < widths[1][0] < widths[2][0]
    assert widths[2][1] > widths[1][1] / 2  # about the same share of the picture


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_tiny_pictures_and_points_do_not_fail(size):
    drawn = draw(canvas(*size), detections([[0, 0, 0, 0], [-5, -5, 300, 300]], size, name="a long class name"))
    assert drawn.shape == (*size, 3)


def test_colours_are_stable_distinct_and_the_text_on_them_legible():
    colors = [color_of(label) for label in range(1, 37)]
    assert colors == [color_of(label) for label in range(1, 37)]
    lab = cv2.cvtColor(np.array([colors], np.float32) / 255, cv2.COLOR_BGR2LAB)[0]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab[:4], 2)) > 80
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab[:20], 2)) > 30
    assert len(set(colors)) == len(colors)
    for color in colors:
        bright, dark = sorted((luminance(color), luminance(_ink(color))), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4  # WCAG contrast; 3 is asked of graphics


def luminance(bgr) -> float:
    """WCAG 2 relative luminance."""
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in bgr)]
    return 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((120, 160), np.uint8), r"\[120, 160\].*\[H,W,3\]"),
        (np.zeros((120, 160, 3), np.float32), "float32.*uint8"),
        (np.zeros((100, 160, 3), np.uint8), "160x100.*160x120"),
    ],
)
def test_a_picture_of_another_kind_is_refused(picture, message):
    with pytest.raises(InputError, match=message):
        draw(picture, detections([[1, 2, 3, 4]]))


def test_a_name_of_any_letters_is_one_line_of_text(monkeypatch):
    """OpenCV breaks lines, and ends the process for what is not UTF-8."""
    texts = []
    monkeypatch.setattr(cv2, "putText", lambda canvas, text, *options: texts.append(text))
    names = ["Fußgänger 猫", "two\nlines\0", os.fsdecode(b"\xff")]
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 3)
    found = Detections(boxes, torch.ones(3), torch.ones(3).long(), names, None, (50, 50))
    draw(np.zeros((50, 50, 3), np.uint8), found)
    assert texts == ["Fußgänger 猫 1.00", "two\\nlines\\x00 1.00", "\\xff 1.00"]
