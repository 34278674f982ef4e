"""The training augmentation: each stage against spec 9.2, and properties of the whole."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet.data.augment import (
    AugmentConfig,
    Plan,
    Rect,
    Step,
    TrainAugment,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    crop_boxes,
    cut_out,
    distort,
    draw_crop,
    draw_distortion,
    draw_expansion,
    draw_plan,
    draw_trials,
    mirror_boxes,
    place_boxes,
    render,
    to_input,
    transform_boxes,
)
from refinedet.errors import InputError
from refinedet.preprocessing import Preprocessing, normalize, to_tensor
from refinedet.records import Sample

OFFICIAL = AugmentConfig()
NOTHING = AugmentConfig(
    distort_probability=0.0, expand_probability=0.0, crop=False, mirror_probability=0.0, vertical_mirror_probability=0.0
)
MEAN = (104.0, 117.0, 123.0)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = np.sort(rng.random((count, 2, 2)), axis=1)
    corners[:, 1] = np.minimum(corners[:, 1] + 0.01, 1.0)
    return corners.reshape(count, 4).astype(np.float32)


def sample(height: int = 48, width: int = 64, count: int = 3, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = rng.integers(1, 5, count)
    return Sample(image, random_boxes(rng, count), labels, rng.random(count) < 0.3, "a.jpg", "a")


def levels(channels: int = 3) -> np.ndarray:
    """An image [16,16,3] that holds every grey level."""
    return np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), channels, 2)


# --- Distortion -------------------------------------------------------------------------------------------------


def test_brightness_shifts_rounds_and_saturates():
    assert adjust_brightness(levels(), 31.6)[0, 0].tolist() == [32] * 3
    assert adjust_brightness(levels(), 31.6)[15, 15].tolist() == [255] * 3
    assert adjust_brightness(levels(), -32.0)[1, 15].tolist() == [0] * 3


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.5])
def test_contrast_scales_rounds_and_saturates(factor):
    expected = np.clip(np.rint(levels().astype(np.float64) * factor), 0, 255)
    assert np.abs(adjust_contrast(levels(), factor) - expected).max() == 0


def test_saturation_zero_leaves_the_brightest_channel_and_grey_unmoved():
    colour = np.full((4, 4, 3), (20, 100, 200), np.uint8)
    grey = adjust_saturation(colour, 0.0)
    assert grey[0, 0].tolist() == [200, 200, 200]
    np.testing.assert_array_equal(adjust_saturation(levels(), 1.5), levels())


def test_hue_of_60_half_degrees_turns_blue_into_red_into_green():
    # OpenCV's hue counts half degrees: blue 120, red 0 (or 180), green 60.
    blue, red = np.uint8([[[255, 0, 0]]]), np.uint8([[[0, 0, 255]]])
    assert adjust_hue(blue, 60.0)[0, 0].tolist() == [0, 0, 255]
    assert adjust_hue(red, 60.0)[0, 0].tolist() == [0, 255, 0]


def test_hue_saturates_at_zero_and_wraps_above():
    red, pink = np.uint8([[[0, 0, 255]]]), np.uint8([[[64, 0, 255]]])
    assert adjust_hue(red, -18.0)[0, 0].tolist() == [0, 0, 255]  # hue 0 stays 0
    hue = cv2.cvtColor(pink, cv2.COLOR_BGR2HSV)[0, 0, 0]
    assert hue > 180 - 18
    turned = adjust_hue(pink, 18.0)
    assert abs(int(cv2.cvtColor(turned, cv2.COLOR_BGR2HSV)[0, 0, 0]) - (int(hue) + 18 - 180)) <= 1


def test_distort_saturates_after_each_step():
    steps = (Step("brightness", 32.0), Step("contrast", 0.5))
    assert distort(levels(), steps)[15, 15].tolist() == [128] * 3  # 255 + 32 -> 255 -> 127.5 -> 128, not 143


def test_distortion_draws_both_orders_each_step_with_half_probability_and_the_official_ranges():
    rng = np.random.default_rng(1)
    drawn = [draw_distortion(rng, OFFICIAL) for _ in range(4000)]
    full = [tuple(step.kind for step in steps) for steps in drawn if len(steps) == 4]
    assert set(full) == {
        ("brightness", "contrast", "saturation", "hue"),
        ("brightness", "saturation", "hue", "contrast"),
    }
    ranges = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 18)}
    for kind, (low, high) in ranges.items():
        amounts = np.array([step.amount for steps in drawn for step in steps if step.kind == kind])
        assert abs(len(amounts) / 4000 - 0.5) < 0.04
        assert low <= amounts.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < amounts.max() <= high
        assert abs(amounts.mean() - (low + high) / 2) < 0.03 * (high - low)


# --- Expansion --------------------------------------------------------------------------------------------------


def test_expansion_has_half_probability_and_ratios_from_1_to_4():
    rng = np.random.default_rng(2)
    drawn = [draw_expansion((480, 640), rng, OFFICIAL) for _ in range(4000)]
    expanded = [(placed, canvas) for placed, canvas in drawn if canvas != (480, 640)]
    assert abs(len(expanded) / 4000 - 0.5) < 0.04
    ratios = np.array([canvas[1] / 640 for _, canvas in expanded])
    assert 1 < ratios.min() < 1.02
    assert 3.98 < ratios.max() < 4
    assert abs(ratios.mean() - 2.5) < 0.1
    for placed, (height, width) in expanded:
        assert placed[2:] == (640, 480)
        assert abs(width / 640 - height / 480) < 1 / 480
        assert 0 <= placed.x <= width - 640
        assert 0 <= placed.y <= height - 480


def test_boxes_move_with_the_image():
    boxes = place_boxes(np.float32([[0, 0, 1, 1], [0.5, 0.25, 0.75, 0.5]]), Rect(40, 30, 100, 60), (120, 200))
    np.testing.assert_allclose(boxes, [[0.2, 0.25, 0.7, 0.75], [0.45, 0.375, 0.575, 0.5]])


# --- Crop -------------------------------------------------------------------------------------------------------


def iou(rect: Rect, box: np.ndarray, canvas: tuple[int, int]) -> float:
    x1, y1, x2, y2 = box * (canvas[1], canvas[0], canvas[1], canvas[0])
    wide = min(x2, rect.x + rect.width) - max(x1, rect.x)
    high = min(y2, rect.y + rect.height) - max(y1, rect.y)
    inter = max(wide, 0) * max(high, 0)
    return inter / (rect.width * rect.height + (x2 - x1) * (y2 - y1) - inter)


def test_one_of_the_samplers_first_passing_trials_is_chosen():
    """Draw for draw against a plain loop over samplers and trials (spec 9.2 step 3)."""
    boxes = np.array([[0.05, 0.05, 0.95, 0.95], [0.1, 0.1, 0.4, 0.5]])
    canvas = (200, 300)
    counts = np.zeros(7, int)
    for seed in range(500):
        crop = draw_crop(canvas, boxes, np.random.default_rng(seed), OFFICIAL)
        rng = np.random.default_rng(seed)
        trials = draw_trials(canvas, rng, 300, OFFICIAL)
        found = [Rect(0, 0, 300, 200)]
        for sampler, least in enumerate((0.1, 0.3, 0.5, 0.7, 0.9, 0.0)):
            for trial in trials[50 * sampler : 50 * (sampler + 1)].tolist():
                if any(iou(Rect(*trial), box, canvas) >= least for box in boxes):
                    found.append(Rect(*trial))
                    break
        chosen = int(rng.integers(len(found)))
        assert crop == found[chosen]
        if len(found) == 7:
            counts[chosen] += 1
    assert counts.min() > 0  # each was chosen at some time while all seven were to be had


def test_trials_have_the_official_scales_and_aspect_ratios():
    rects = draw_trials((1000, 1000), np.random.default_rng(4), 2000, OFFICIAL)
    sides = rects[:, 2:] / 1000
    scales, aspects = np.sqrt(sides.prod(1)), sides[:, 0] / sides[:, 1]
    assert 0.297 < scales.min() < 0.31
    assert 0.99 < scales.max() <= 1
    assert abs(scales.mean() - 0.65) < 0.02
    assert (aspects >= np.maximum(0.5, scales**2) - 0.01).all()
    assert (aspects <= np.minimum(2.0, 1 / scales**2) + 0.01).all()
    assert (rects[:, :2] >= 0).all()
    assert (rects[:, :2] + rects[:, 2:] <= 1000).all()
    assert 0 == rects[:, :2].min() < rects[:, :2].max()


def test_without_boxes_the_crop_is_the_whole_image():
    rng = np.random.default_rng(5)
    crops = {draw_crop((48, 64), np.zeros((0, 4)), rng, OFFICIAL) for _ in range(50)}
    assert crops == {Rect(0, 0, 64, 48)}


def test_a_box_stays_when_its_centre_is_in_the_crop_border_included():
    canvas, crop = (100, 100), Rect(20, 20, 40, 40)
    pixels = np.array(
        [
            [30, 30, 50, 50],  # inside
            [0, 0, 40, 40],  # centre on the corner: stays, clipped
            [0, 0, 39, 39],  # centre just outside
            [50, 20, 70, 30],  # centre on the right edge
            [50, 20, 70.1, 30],  # centre beyond it
            [60, 30, 60, 40],  # on the edge, without area
        ]
    )
    boxes, kept = crop_boxes(pixels / 100, crop, canvas)
    assert kept.tolist() == [True, True, False, True, False, False]
    np.testing.assert_allclose(boxes, [[0.25, 0.25, 0.75, 0.75], [0, 0, 0.5, 0.5], [0.75, 0, 1, 0.25]])


def test_a_box_too_thin_for_float32_is_left_out():
    thin = np.float32([[1e-9, 0.2, 2e-9, 0.8], [0.2, 0.2, 0.8, 0.8]])
    plan = draw_plan((48, 64), thin, np.random.default_rng(0), replace(NOTHING, mirror_probability=1.0))
    boxes, kept = transform_boxes(thin, plan)
    assert kept.tolist() == [False, True]
    np.testing.assert_allclose(boxes, [[0.2, 0.2, 0.8, 0.8]], rtol=1e-6)


# --- Carrying out -----------------------------------------------------------------------------------------------


def stage_by_stage(image: np.ndarray, plan: Plan) -> np.ndarray:
    """Distort the whole image, paste it on the whole canvas, cut the crop: the stages as the spec has them."""
    canvas = np.empty((*plan.canvas, 3), np.uint8)
    canvas[:] = MEAN
    x, y, width, height = plan.placed
    canvas[y : y + height, x : x + width] = distort(image, plan.distortion)
    x, y, width, height = plan.crop
    return canvas[y : y + height, x : x + width]


def plans(count: int):
    """Images of many sizes, each with a plan of its own."""
    for seed in range(count):
        item = sample(seed=seed, height=20 + seed % 50, width=90 - seed % 60)
        yield item.image, draw_plan(item.image.shape[:2], item.boxes, np.random.default_rng(seed), OFFICIAL)


def test_cutting_first_gives_the_pixels_of_the_stages_in_order():
    empty = 0
    for image, plan in plans(300):
        exact = plan._replace(distortion=tuple(s for s in plan.distortion if s.kind in ("brightness", "contrast")))
        cut = cut_out(image, exact, MEAN)
        np.testing.assert_array_equal(cut, stage_by_stage(image, exact))
        empty += bool((cut == np.uint8(MEAN)).all())
    assert empty > 0  # crops beside the image were among them


@pytest.mark.parametrize("kind", ["saturation", "hue"])
def test_cutting_first_changes_a_colour_conversion_by_one_level_at_most(kind):
    """OpenCV's vector and scalar code round differently, and a row's end falls to the scalar code."""
    checked = 0
    for image, plan in plans(200):
        one = plan._replace(distortion=tuple(step for step in plan.distortion if step.kind == kind))
        difference = cut_out(image, one, MEAN).astype(int) - stage_by_stage(image, one)
        assert np.abs(difference).max() <= 1
        checked += len(one.distortion)
    assert checked > 50


def test_the_five_interpolations_are_equally_likely():
    drawn = [draw_plan((8, 8), np.zeros((0, 4)), np.random.default_rng(i), OFFICIAL).interpolation for i in range(2000)]
    values, counts = np.unique(drawn, return_counts=True)
    modes = {cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4}
    assert set(values.tolist()) == modes
    assert counts.min() > 320


@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_twice_is_the_identity(axis):
    boxes = random_boxes(np.random.default_rng(6), 20).astype(np.float64)
    mirrored = mirror_boxes(boxes, axis)
    assert (mirrored[:, 2:] > mirrored[:, :2]).all()
    np.testing.assert_allclose(mirror_boxes(mirrored, axis), boxes, atol=1e-15)


@pytest.mark.parametrize("stage", ["mirror", "vertical_mirror", "transpose"])
def test_boxes_follow_the_moved_pixels(stage):
    """A white rectangle stays under its box."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[12:24, 8:40] = 255
    boxes = np.float32([[8 / 64, 0.25, 40 / 64, 0.5]])
    item = Sample(image, boxes, np.array([1]), np.array([False]), "", "")
    plan = draw_plan((48, 64), boxes, np.random.default_rng(0), replace(NOTHING, **{f"{stage}_probability": 1.0}))
    moved, kept = transform_boxes(item.boxes, plan)
    assert kept.all()
    height, width = (64, 48) if stage == "transpose" else (48, 64)
    seen = render(image, plan, (height, width), MEAN)
    assert seen.shape == (height, width, 3)
    x1, y1, x2, y2 = np.rint(moved[0] * (width, height, width, height)).astype(int)
    assert (y2 - y1, x2 - x1) == ((32, 12) if stage == "transpose" else (12, 32))
    assert (seen[y1:y2, x1:x2] == 255).all()
    assert (seen == 255).sum() == 3 * (y2 - y1) * (x2 - x1)


def test_a_transposed_picture_has_its_rows_as_columns():
    image = np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8)
    plan = draw_plan((48, 64), np.empty((0, 4)), np.random.default_rng(0), replace(NOTHING, transpose_probability=1.0))
    np.testing.assert_array_equal(render(image, plan, (64, 48), MEAN), image.transpose(1, 0, 2))


def test_boxes_follow_the_pixels_through_expansion_and_crop():
    """The same with everything geometric turned on: inside its box the rectangle is white, outside it is not."""
    image = np.zeros((480, 640, 3), np.uint8)
    image[120:240, 80:400] = 255
    boxes = np.float32([[80 / 640, 0.25, 400 / 640, 0.5]])
    config = replace(OFFICIAL, distort_probability=0.0)
    seen = 0
    for seed in range(200):
        plan = draw_plan((480, 640), boxes, np.random.default_rng(seed), config)
        moved, kept = transform_boxes(boxes, plan)
        if not kept[0] or plan.interpolation != cv2.INTER_NEAREST:
            continue
        pixels = render(image, plan, (320, 320), MEAN)
        x1, y1, x2, y2 = moved[0] * 320
        rows, columns = np.nonzero((pixels == 255).all(2))
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(edges - (x1, y1, x2, y2)).max() <= 1.0
        seen += 1
    assert seen > 20


def test_nothing_is_a_plain_resize_with_the_mean_subtracted():
    item = sample(height=64, width=64)
    tensor, boxes, labels, difficult = TrainAugment((64, 64), Preprocessing(), NOTHING)(item, np.random.default_rng(0))
    expected = item.image.astype(np.float32) - np.float32(MEAN)
    np.testing.assert_array_equal(tensor.numpy(), expected.transpose(2, 0, 1))
    np.testing.assert_allclose(boxes, item.boxes, rtol=1e-6)
    np.testing.assert_array_equal(labels, item.labels)
    np.testing.assert_array_equal(difficult, item.difficult)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (57.375, 57.12, 58.395)])
def test_the_input_is_that_of_the_evaluation(order, std):
    """Bit for bit: every level of every channel."""
    image = levels()
    image[..., 1] = image[..., 1].T
    preprocessing = Preprocessing(mean=(103.53, 116.28, 123.675), std=std, order=order)
    expected = to_tensor(normalize(image, preprocessing), preprocessing)
    found = to_input(image, preprocessing)
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_fill_is_the_preprocessing_mean_in_either_channel_order():
    preprocessing = Preprocessing(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0), order="rgb")
    config = replace(NOTHING, expand_probability=1.0)
    tensor, *_ = TrainAugment((64, 64), preprocessing, config)(sample(count=0), np.random.default_rng(8))
    border = torch.cat([tensor[:, 0], tensor[:, -1], tensor[:, :, 0], tensor[:, :, -1]], 1)
    assert (border == 0).all()
    assert tensor.abs().max() > 10


# --- The whole --------------------------------------------------------------------------------------------------

SIZES = st.integers(1, 90)


@settings(max_examples=200, deadline=None)
@given(SIZES, SIZES, st.integers(0, 6), st.integers(0, 2**32 - 1), st.sampled_from([(64, 64), (64, 192)]))
def test_whatever_comes_in_a_sound_sample_comes_out(height, width, count, seed, size):
    item = sample(height, width, count, seed)
    config = replace(OFFICIAL, vertical_mirror_probability=0.5, transpose_probability=0.5)
    augment = TrainAugment(size, Preprocessing(), config)
    tensor, boxes, labels, difficult = augment(item, np.random.default_rng(seed))
    assert tensor.shape == (3, *size)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor.min() >= -123
    assert tensor.max() <= 255 - 104
    assert len(boxes) == len(labels) == len(difficult) <= count
    assert (boxes.dtype, labels.dtype, difficult.dtype) == (np.float32, np.int64, np.bool_)
    assert boxes.shape[1] == 4
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("seed", range(5))
def test_equal_generators_give_equal_results_and_leave_the_sample_alone(seed):
    item = sample(seed=seed)
    before = [np.copy(part) for part in item[:4]]
    augment = TrainAugment((64, 64), Preprocessing())
    first, second = (augment(item, np.random.default_rng(seed)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    for one, two in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(one, two)
    for part, copy in zip(item[:4], before, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_labels_and_flags_stay_with_their_boxes():
    item = sample(count=6)._replace(labels=np.arange(1, 7), difficult=np.arange(6) % 2 == 0)
    plan = draw_plan(item.image.shape[:2], item.boxes, np.random.default_rng(11), OFFICIAL)
    _, kept = transform_boxes(item.boxes, plan)
    _, _, labels, difficult = TrainAugment((64, 64), Preprocessing())(item, np.random.default_rng(11))
    assert 0 < kept.sum() < 6
    np.testing.assert_array_equal(labels, np.arange(1, 7)[kept])
    np.testing.assert_array_equal(difficult, item.difficult[kept])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mirror_probability": 1.5}, "mirror_probability is 1.5; give 0 to 1"),
        ({"expand_probability": float("nan")}, "expand_probability is nan; give 0 to 1"),
        ({"contrast": (1.5, 0.5)}, r"contrast is \(1.5, 0.5\); give a range"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale is \(0.0, 1.0\); give a range within 0.001 to 1"),
        ({"crop_scale": (1e-300, 1.0)}, "crop_scale is .*; give a range within 0.001 to 1"),
        ({"saturation": (1.0, float("inf"))}, r"saturation is \(1.0, inf\); give a range .* up to 100"),
        ({"crop_trials": 10**9}, "crop_trials is 1000000000; give 1 to 1000"),
        ({"crop_min_ious": (0.5,) * 10**6}, r"crop_min_ious is \(0.5, .*\.\.\.; give at most 100 values"),
        ({"max_expand": 0.5}, "max_expand is 0.5; give 1 to 16"),
        ({"crop_min_ious": (0.5, 2.0)}, "crop_min_ious is .*; give values from 0 to 1"),
        ({"crop_trials": 0}, "crop_trials is 0; give 1 to 1000"),
        ({"brightness": -1.0}, "brightness is -1.0; give 0 to 255"),
        ({"hue": 200.0}, "hue is 200.0; give 0 to 180"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(InputError, match=message):
        AugmentConfig(**values)
