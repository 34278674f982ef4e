"""Presets: a value that no operator and no network can use is refused where it is given."""

import math
from dataclasses import fields

import pytest

from refinedet.errors import InputError
from refinedet.presets import COCO, OFFICIAL, Preset, get_preset

FRACTIONS = ("match_iou", "negative_iou", "objectness_threshold", "score_threshold")
OPTIONAL_FRACTIONS = ("nms_iou", "soft_nms_iou")
NO_FRACTIONS = (-0.1, 1.1, math.nan, math.inf, "0.5", True)


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("value", [*NO_FRACTIONS, None])
def test_a_fraction_is_from_0_to_1(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^preset official: {name} is {value}; give a value from 0 to 1$"):
        Preset(**{name: value})


def test_a_score_threshold_lets_something_pass() -> None:
    with pytest.raises(InputError, match=r"score_threshold is 1\.0; give a value below 1; no score is above 1"):
        Preset(score_threshold=1.0)


@pytest.mark.parametrize("name", OPTIONAL_FRACTIONS)
@pytest.mark.parametrize("value", NO_FRACTIONS)
def test_an_overlap_is_from_0_to_1_or_none(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^preset official: {name} is {value}; give a value from 0 to 1, or None$"):
        Preset(**{name: value})
    assert getattr(Preset(**{name: None}), name) is None


def test_the_coco_preset_is_that_of_the_released_evaluation() -> None:
    """Spec sections 8 and 10.2; all else is as in the official preset."""
    differs = {f.name for f in fields(COCO) if getattr(COCO, f.name) != getattr(OFFICIAL, f.name)}
    assert differs == {"name", "score_threshold", "nms_iou", "top_k", "keep_top_k", "soft_nms_iou"}
    assert (COCO.score_threshold, COCO.soft_nms_iou) == (0.016, 0.30)
    assert (COCO.nms_iou, COCO.top_k, COCO.keep_top_k) == (None, None, None)
    assert get_preset("coco") is COCO


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True])
def test_a_ratio_is_positive_and_finite(value: object) -> None:
    with pytest.raises(InputError, match=rf"^preset official: negative_ratio is {value}; give a value above 0$"):
        Preset(negative_ratio=value)


@pytest.mark.parametrize("name", ["top_k", "keep_top_k"])
@pytest.mark.parametrize("value", [0, -1, 10.5, 10.0, math.nan, True, "10"])
def test_a_number_of_boxes_is_whole(name: str, value: object) -> None:
    wanted = rf"^preset official: {name} is {value}; give a whole number, at least 1, or None$"
    with pytest.raises(InputError, match=wanted):
        Preset(**{name: value})


@pytest.mark.parametrize("name", ["head_bottleneck", "cascade", "tcb"])
def test_a_switch_is_true_or_false(name: str) -> None:
    with pytest.raises(InputError, match=rf"^preset official: {name} is 1; give True or False$"):
        Preset(**{name: 1})


@pytest.mark.parametrize(
    "value",
    [(0.1, 0.2), (0.1,) * 5, (0.1, 0.1, 0.2, 0.0), (0.1, 0.1, -0.2, 0.2), (0.1, 0.1, math.inf, 0.2), 0.1, "0.10"],
)
def test_variances_are_four_positive_numbers(value: object) -> None:
    with pytest.raises(InputError, match=r"^preset official: variances is .*; give four values above 0$"):
        Preset(variances=value)


def test_whole_numbers_are_values() -> None:
    preset = Preset(match_iou=1, negative_ratio=3, score_threshold=0)
    assert (preset.match_iou, preset.negative_ratio, preset.score_threshold) == (1, 3, 0)
