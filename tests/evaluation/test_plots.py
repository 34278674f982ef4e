"""The picture of an evaluation."""

import html
import re

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from refinedet.errors import InputError
from refinedet.evaluation.plots import curve_points, plot_precision_recall
from refinedet.evaluation.voc_ap import ClassResult


def class_result(hits, objects):
    hits = np.cumsum(hits)
    scores = np.linspace(1, 0.1, len(hits))
    return ClassResult(1, objects, len(hits), 0.5, scores, hits / np.arange(1, len(hits) + 1), hits / objects)


def test_curve_is_thinned_to_its_corners():
    recall, precision = curve_points(class_result([1, 0, 0, 1, 0, 0], 4))
    np.testing.assert_array_equal(recall, [0, 1 / 4, 2 / 4, 2 / 4])
    np.testing.assert_array_equal(precision, [1, 1, 2 / 4, 2 / 6])
    assert [len(points) for points in curve_points(class_result([], 4))] == [0, 0]


def test_png_has_the_colours_of_the_curves(tmp_path):
    path = tmp_path / "new folder" / "curves.png"
    plot_precision_recall(path, ["disc"], [class_result([1, 1, 0, 1], 3)], [0.9])
    image = cv2.imread(str(path))
    blue = (image == (180, 119, 31)).all(axis=2)  # the first colour of matplotlib's tab10, as BGR
    assert image.shape[1] > 1000
    assert blue[:, : image.shape[1] // 2].sum() > 500  # the curve
    assert blue[:, image.shape[1] // 2 :].sum() > 5000  # the bar


def texts(path):
    """All texts of an SVG; matplotlib writes each as a comment before its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_bars_are_sorted_and_classes_without_ap_left_out(tmp_path):
    path = tmp_path / "curves.svg"
    result = class_result([1, 0], 2)
    plot_precision_recall(
        path, ["low", "none", "high"], [result] * 3, [0.25, float("nan"), 0.75], title="all of it", curves_label="IoU"
    )
    words = texts(path)
    assert words.index("high") < words.index("low")
    assert "none" not in words
    assert {"0.750", "0.250", "all of it", "precision over recall (IoU)"} <= set(words)


@pytest.mark.parametrize("classes", [0, 1, 11, 80])
def test_any_number_of_classes(tmp_path, classes):
    path = tmp_path / "curves.svg"
    names = [f"class {i}" for i in range(classes)]
    plot_precision_recall(path, names, [class_result([1, 0], 2)] * classes, np.linspace(0, 1, classes))
    assert set(names) <= set(texts(path))


NAMES = ("$10 bills", "a$b$c", "$\\frac{$", "back\\\\slash$", "_hidden^2", "#%&{}~", "two\nlines", "猫", "x" * 300)


@pytest.mark.parametrize("usetex", [False, True])
def test_names_are_no_maths(tmp_path, recwarn, usetex):
    path = tmp_path / "curves.svg"
    with matplotlib.rc_context({"text.usetex": usetex}):
        title = "data/$x_$/VOC: mean AP = 0.5"
        plot_precision_recall(path, NAMES, [class_result([1, 0], 2)] * len(NAMES), [0.5] * len(NAMES), title=title)
    shown = [html.unescape(text) for text in texts(path)]
    expected = {*NAMES[:6], "two\\nlines", "猫", "x" * 39 + "…", title}
    assert expected <= set(shown)
    assert not recwarn.list


def test_failure_leaves_the_previous_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_text("previous")

    def full_disk(self, target, **_):
        target.write_text("half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        plot_precision_recall(path, ["disc"], [class_result([1], 1)], [1.0])
    assert path.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [path]


def test_lengths_must_agree(tmp_path):
    with pytest.raises(InputError, match="2 names, 1 results and 1 AP values"):
        plot_precision_recall(tmp_path / "curves.png", ["a", "b"], [class_result([1], 1)], [1.0])
