"""What counts when nothing is suppressed or left out: the rows of the operator, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.detect_cases import random_anchors, random_tensor
from torch.nn.functional import pad

from refinedet import ops
from refinedet.inference.selection import beyond_cuda, select
from refinedet.presets import OFFICIAL
from refinedet.protocols import Thresholds
from refinedet.records import LevelOutput, RawOutput

BATCH, LEVELS, CLASSES = 3, (17, 8, 1), 5
ANCHORS = sum(LEVELS)
ROOM = ANCHORS * CLASSES


def problem(seed: int, dtype: torch.dtype = torch.float32) -> tuple[RawOutput, torch.Tensor]:
    """Many ties, and now and then NaN, infinities and anchors of no size."""
    rng = np.random.default_rng(seed)
    outputs = (
        random_tensor(rng, (BATCH, ANCHORS, width), scale=scale, steps=True, trouble=0.02).to(dtype)
        for width, scale in ((4, 1.0), (2, 3.0), (4, 1.0), (CLASSES, 2.0))
    )
    return RawOutput(*outputs), random_anchors(rng, ANCHORS)


def by_the_operator(raw, anchors, preset, thresholds) -> ops.Detected:
    """With room for every pair of anchor and class."""
    return ops.detect(
        raw.arm_loc if preset.cascade else None,
        *raw[1:],
        anchors,
        objectness_threshold=preset.objectness_threshold,
        score_threshold=thresholds.score_threshold,
        iou_threshold=2.0 if thresholds.nms_iou is None else thresholds.nms_iou,
        top_k=thresholds.top_k or ROOM,
        keep_top_k=thresholds.keep_top_k or ROOM,
        variances=preset.variances,
    )


def assert_same(found: ops.Detected, expected: ops.Detected) -> None:
    rows = found.scores.shape[1]
    assert rows >= expected.counts.max()
    assert torch.equal(found.counts, expected.counts)
    for name in ("boxes", "scores", "labels", "indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name)[:, :rows]), name


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 0.0, 0.3, 1.0]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([None, 1, 7]),
    st.sampled_from([0.0, 0.016, 0.3]),
    st.booleans(),
)
def test_the_rows_are_those_of_the_operator(seed, nms_iou, top_k, keep_top_k, score_threshold, cascade):
    raw, anchors = problem(seed)
    preset = replace(OFFICIAL, cascade=cascade, objectness_threshold=0.2)
    thresholds = Thresholds(score_threshold, nms_iou, top_k, keep_top_k)
    found = select(raw, anchors, preset, thresholds)
    assert_same(found, by_the_operator(raw, anchors, preset, thresholds))
    assert torch.equal(found.counts > 0, found.labels[:, :1].sum(dim=1) > 0)


def test_there_is_no_more_room_than_the_fullest_image_needs():
    raw, anchors = problem(1)
    found = select(raw, anchors, OFFICIAL, Thresholds(0.016, None, None, None))
    assert found.scores.shape == (BATCH, int(found.counts.max()))
    assert 0 < found.counts.min() < found.counts.max() < ROOM


def test_levels_and_half_precision_are_taken():
    raw, anchors = problem(2, torch.float16)
    levels = LevelOutput(*(output.split(LEVELS, dim=1) for output in raw))
    free = Thresholds(0.016, None, None, None)
    found = select(levels, anchors, OFFICIAL, free)
    assert found.counts.sum() > 0
    assert_same(found, by_the_operator(RawOutput(*(output.float() for output in raw)), anchors, OFFICIAL, free))


def test_a_single_step_network_has_no_objectness():
    raw, anchors = problem(3)
    single = RawOutput(None, None, raw.odm_loc, raw.odm_conf)
    free = Thresholds(0.016, None, None, None)
    assert_same(select(single, anchors, OFFICIAL, free), by_the_operator(single, anchors, OFFICIAL, free))


def test_another_score_threshold_stands_for_its_own():
    raw, anchors = problem(4)
    for limits in ((None, None, None), (0.45, 100, 100)):
        found = select(raw, anchors, OFFICIAL, Thresholds(0.016, *limits), 0.5)
        assert_same(found, by_the_operator(raw, anchors, OFFICIAL, Thresholds(0.5, *limits)))


@pytest.mark.parametrize(
    ("top_k", "keep_top_k", "beyond"), [(2048, 1024, False), (2049, 1, True), (1, 1025, True), (10**6, 10**6, True)]
)
def test_what_the_operator_does_not_take_on_cuda(top_k, keep_top_k, beyond):
    assert beyond_cuda(top_k, keep_top_k) is beyond


@pytest.mark.parametrize("batch", [0, 2])
def test_nothing_found(batch):
    raw, anchors = problem(5)
    nothing = RawOutput(*(output[:batch] * 0 - pad(torch.ones(1), (0, output.shape[-1] - 1)) for output in raw))
    found = select(nothing, anchors, OFFICIAL, Thresholds(0.9, None, None, None))
    assert found.boxes.shape == (batch, 0, 4)
    assert found.counts.tolist() == [0] * batch
