"""Milliseconds per image of the training augmentation and its stages, 640x480 to 320x320 on one core.

pytest benchmarks/data/bench_augment.py --benchmark-enable
"""

import itertools

import cv2
import numpy as np
import pytest

from refinedet.augmentation import AugmentConfig
from refinedet.data.augment import Plan, TrainAugment, cut_out, distort, draw_plan, render
from refinedet.preprocessing import Preprocessing, normalize, to_tensor
from refinedet.records import Sample

PREPROCESSING = Preprocessing()
IMAGES = 64


@pytest.fixture(autouse=True)
def one_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def make_sample(seed: int) -> Sample:
    """A smooth image with 14 boxes, as many as an image of blood cells has."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    corner = rng.uniform(0, 0.8, (14, 2))
    boxes = np.concatenate((corner, corner + 0.2), 1).astype(np.float32)
    return Sample(image, boxes, rng.integers(1, 4, 14), np.zeros(14, bool), "", "")


SAMPLES = [make_sample(seed) for seed in range(IMAGES)]
PLANS = [
    draw_plan(item.image.shape[:2], item.boxes, np.random.default_rng(seed), AugmentConfig())
    for seed, item in enumerate(SAMPLES)
]


def per_image(benchmark, function) -> None:
    """Time ``function(i)`` over all images in turn; ``extra_info`` gets the best round in milliseconds per image."""

    def all_images() -> None:
        for index in range(IMAGES):
            function(index)

    benchmark.pedantic(all_images, rounds=10, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["best ms per image"] = round(benchmark.stats.stats.min / IMAGES * 1e3, 3)


def whole_canvas(image: np.ndarray, plan: Plan) -> np.ndarray:
    """The stages in the order of the specification, with the expanded canvas in memory."""
    canvas = np.empty((*plan.canvas, 3), np.uint8)
    canvas[:] = PREPROCESSING.mean
    x, y, width, height = plan.placed
    canvas[y : y + height, x : x + width] = distort(image, plan.distortion)
    x, y, width, height = plan.crop
    return canvas[y : y + height, x : x + width]


def test_augment(benchmark):
    augment = TrainAugment((320, 320), PREPROCESSING)
    tensor, boxes, labels, _ = augment(SAMPLES[0], np.random.default_rng(0))
    assert tensor.shape == (3, 320, 320)
    assert len(boxes) == len(labels)
    seeds = itertools.cycle(range(IMAGES))
    per_image(benchmark, lambda index: augment(SAMPLES[index], np.random.default_rng(next(seeds))))


def test_plan(benchmark):
    config = AugmentConfig()
    assert draw_plan((480, 640), SAMPLES[0].boxes, np.random.default_rng(0), config) == PLANS[0]
    per_image(benchmark, lambda i: draw_plan((480, 640), SAMPLES[i].boxes, np.random.default_rng(i), config))


@pytest.mark.parametrize("cut", [cut_out, whole_canvas])
def test_cut(benchmark, cut):
    for item, plan in zip(SAMPLES, PLANS, strict=True):
        plain = plan._replace(distortion=())
        np.testing.assert_array_equal(cut_out(item.image, plain, PREPROCESSING.mean), whole_canvas(item.image, plain))
    arguments = (PREPROCESSING.mean,) if cut is cut_out else ()
    per_image(benchmark, lambda index: cut(SAMPLES[index].image, PLANS[index], *arguments))


def test_render(benchmark):
    assert render(SAMPLES[0].image, PLANS[0], (320, 320), PREPROCESSING.mean).shape == (320, 320, 3)
    per_image(benchmark, lambda index: render(SAMPLES[index].image, PLANS[index], (320, 320), PREPROCESSING.mean))


def test_normalize(benchmark):
    image = SAMPLES[0].image[:320, :320]
    expected = image.astype(np.float32) - np.float32(PREPROCESSING.mean)
    np.testing.assert_array_equal(normalize(image, PREPROCESSING), expected)
    per_image(benchmark, lambda index: to_tensor(normalize(image, PREPROCESSING), PREPROCESSING))
