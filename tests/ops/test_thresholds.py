"""Options that are out of range are refused, NaN always: by the operators and by their plain-PyTorch twins."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from refinedet import ops
from refinedet.errors import InputError
from refinedet.presets import OFFICIAL

BOXES, SCORES, LABELS = torch.zeros(1, 3, 4), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.int64)
ARGUMENTS = {
    "detect": (BOXES, BOXES[..., :2], BOXES, torch.zeros(1, 3, 5), BOXES[0]),
    "match": (BOXES[0], BOXES[0], LABELS[0], torch.tensor([0, 3])),
    "mine": (SCORES, LABELS, SCORES, SCORES),
    "nms": (BOXES[0], SCORES[0]),
    "batched_nms": (BOXES[0], SCORES[0], LABELS[0]),
    "soft_nms": (BOXES, SCORES, LABELS),
    "vote": (BOXES, SCORES, LABELS),
}
NEEDED = {"nms": {"iou_threshold": 0.5}, "batched_nms": {"iou_threshold": 0.5}}

AT_LEAST_0 = [
    ("detect", "iou_threshold"),
    ("match", "iou_threshold"),
    ("mine", "negative_iou"),
    ("mine", "negative_ratio"),
    ("nms", "iou_threshold"),
    ("batched_nms", "iou_threshold"),
    ("soft_nms", "iou_threshold"),
    ("vote", "iou_threshold"),
]
ANY_NUMBER = [
    ("detect", "objectness_threshold"),
    ("detect", "score_threshold"),
    ("mine", "objectness_threshold"),
    ("soft_nms", "score_threshold"),
    ("vote", "score_threshold"),
]
EVERY = pytest.mark.parametrize("place", [ops, ops.reference], ids=["operator", "twin"])


def run(place: Any, name: str, **options: float) -> Any:
    function: Callable[..., Any] = getattr(place, name)
    return function(*ARGUMENTS[name], **(NEEDED.get(name, {}) | options))


@EVERY
@pytest.mark.parametrize(("name", "option"), AT_LEAST_0)
@pytest.mark.parametrize("value", [-0.5, -math.inf, math.nan])
def test_negative_numbers_and_nan_are_refused(place: Any, name: str, option: str, value: float) -> None:
    operator = name.removeprefix("batched_")
    with pytest.raises(InputError, match=rf"^refinedet\.{operator}: {option} must be at least 0, got {value:g}$"):
        run(place, name, **{option: value})


@EVERY
@pytest.mark.parametrize(("name", "option"), ANY_NUMBER)
def test_nan_is_refused(place: Any, name: str, option: str) -> None:
    with pytest.raises(InputError, match=rf"^refinedet\.{name}: {option} must be a number, got nan$"):
        run(place, name, **{option: math.nan})


@EVERY
@pytest.mark.parametrize(("name", "option"), ANY_NUMBER)
@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0, -math.inf, math.inf])
def test_thresholds_of_scores_are_any_number(place: Any, name: str, option: str, value: float) -> None:
    run(place, name, **{option: value})


@EVERY
@pytest.mark.parametrize(("name", "option"), [case for case in AT_LEAST_0 if case[1] != "negative_ratio"])
@pytest.mark.parametrize("value", [0.0, 1.5, math.inf])
def test_thresholds_of_ious_are_not_negative(place: Any, name: str, option: str, value: float) -> None:
    run(place, name, **{option: value})


@EVERY
@pytest.mark.parametrize("value", [0.0, -0.5, -math.inf, math.nan, 1e-50])
def test_sigma_is_positive(place: Any, value: float) -> None:
    """In float32, for it divides."""
    with pytest.raises(InputError, match=rf"^refinedet\.soft_nms: sigma must be a number above 0, got {value:g}$"):
        run(place, "soft_nms", method="gaussian", sigma=value)
    run(place, "soft_nms", method="gaussian", sigma=math.inf)


@EVERY
@pytest.mark.parametrize("option", ["top_k", "keep_top_k"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_of_boxes_are_positive(place: Any, option: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"^refinedet\.detect: {option} must be at least 1, got {value}$"):
        run(place, "detect", **{option: value})


def test_shapes_are_checked_before_values() -> None:
    with pytest.raises(InputError, match=r"^refinedet\.nms: scores has shape \[2\], expected \[3\]$"):
        ops.nms(BOXES[0], SCORES[0, :2], math.nan)


def test_a_preset_gives_the_defaults_of_detect() -> None:
    parameters = inspect.signature(ops.detect).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert len(defaults) == 6
    assert defaults == {name: getattr(OFFICIAL, {"iou_threshold": "nms_iou"}.get(name, name)) for name in defaults}
