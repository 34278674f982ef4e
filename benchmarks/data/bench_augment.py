"""From a JPEG file to the input of a training step at 320: CPU time per photograph, by stage, on one core.

The photographs are the project's at the size of VOC's, 500 x 375, saved with quality 95, three boxes in each; or those
of a data set. Beside it the nearest that torchvision has, behind the same decoder.

pytest benchmarks/data/bench_augment.py --benchmark-enable [--data DIR --split NAME]
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pytest
import torch
import torchvision
from pytest_benchmark.fixture import BenchmarkFixture
from support.paths import ROOT
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from refinedet.augmentation import AugmentConfig
from refinedet.data import open_dataset
from refinedet.data.augment import Plan, TrainAugment, cut_out, distort, draw_plan, render, to_input, transform_boxes
from refinedet.data.images import read_image
from refinedet.preprocessing import Preprocessing
from refinedet.records import Sample

PREPROCESSING = Preprocessing()
SIZE = (320, 320)
AT_LEAST = 80  # photographs per second
SECONDS = 3.0  # of each side: a turn is all photographs
COUNT, ROUNDS = 48, 7
PHOTOGRAPHS = sorted((ROOT / "examples" / "bccd").glob("*.jpg"))

T = TypeVar("T")
Photograph = tuple[Path, np.ndarray]  # file; boxes float32 [n,4] in units of its sides


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads, torchs = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(threads)
    torch.set_num_threads(torchs)


@pytest.fixture(scope="module")
def photographs(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> list[Photograph]:
    if folder := pytestconfig.getoption("--data", default=None):
        records = open_dataset(folder, pytestconfig.getoption("--split")).records[:COUNT]
        return [(record.path, record.boxes) for record in records if len(record.boxes)]
    rng = np.random.default_rng(0)
    made = []
    for index in range(COUNT):
        image = cv2.resize(cv2.imread(str(PHOTOGRAPHS[index % len(PHOTOGRAPHS)])), (500, 375))
        path = tmp_path_factory.mktemp("photographs") / f"{index}.jpg"
        cv2.imwrite(str(path), image[:, :: (-1) ** index], [cv2.IMWRITE_JPEG_QUALITY, 95])
        corners = rng.uniform(0, 0.7, (3, 2))
        made.append((path, np.concatenate((corners, corners + rng.uniform(0.1, 0.3, (3, 2))), 1).astype(np.float32)))
    return made


class Clock:
    """CPU seconds of the calls that go through it, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, function: Callable[..., T], *arguments: object) -> T:
        begin = time.thread_time()
        result = function(*arguments)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.thread_time() - begin
        return result


def by_stage(photographs: list[Photograph], clock: Clock) -> list[torch.Tensor]:
    """What `TrainAugment` does, each stage through the clock; the order is the one in which pixels pass them."""
    inputs = []
    for index, (path, boxes) in enumerate(photographs):
        image = clock("read and decode", read_image, path)
        rng = np.random.default_rng(index)
        plan = clock("draw the plan (crop samplers)", draw_plan, image.shape[:2], boxes, rng, AugmentConfig())
        plain = plan._replace(distortion=())
        distorted = clock("distort", seen_and_distorted, image, plan)
        cut = clock("crop, expand", cut_out, distorted, plain, PREPROCESSING.mean)
        whole = plain._replace(placed=plan.crop._replace(x=0, y=0), crop=plan.crop._replace(x=0, y=0))
        resized = clock("resize, mirror", render, cut, whole, SIZE, PREPROCESSING.mean)
        clock("boxes", transform_boxes, boxes, plan)
        inputs.append(clock("mean, tensor", to_input, resized, PREPROCESSING))
    return inputs


def seen_and_distorted(image: np.ndarray, plan: Plan) -> np.ndarray:
    """The image, distorted where the crop shows it."""
    x1, y1 = max(plan.crop.x - plan.placed.x, 0), max(plan.crop.y - plan.placed.y, 0)
    x2, y2 = plan.crop.x + plan.crop.width - plan.placed.x, plan.crop.y + plan.crop.height - plan.placed.y
    if plan.distortion and x2 > x1 and y2 > y1:
        image[y1:y2, x1:x2] = distort(image[y1:y2, x1:x2], plan.distortion)
    return image


def ours(photographs: list[Photograph]) -> list[torch.Tensor]:
    augment = TrainAugment(SIZE, PREPROCESSING)
    inputs = []
    for index, (path, boxes) in enumerate(photographs):
        sample = Sample(read_image(path), boxes, np.ones(len(boxes), np.int64), np.zeros(len(boxes), bool), "", "")
        inputs.append(augment(sample, np.random.default_rng(index))[0])
    return inputs


def torchvisions(photographs: list[Photograph]) -> list[torch.Tensor]:
    """The augmentation of SSD as torchvision's references have it, by its second transforms on uint8 tensors."""
    mean = PREPROCESSING.mean[::-1]
    augment = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=[int(level) for level in mean]),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize(SIZE),
            v2.ToDtype(torch.float32),
            v2.Normalize(mean, [1.0, 1.0, 1.0]),
        ]
    )
    inputs = []
    for path, boxes in photographs:
        image = torch.from_numpy(np.ascontiguousarray(read_image(path)[..., ::-1].transpose(2, 0, 1)))
        height, width = image.shape[1:]
        pixels = torch.from_numpy(boxes) * torch.tensor([width, height, width, height])
        inputs.append(augment(image, BoundingBoxes(pixels, format="XYXY", canvas_size=(height, width)))[0])
    return inputs


def cpu_seconds(function: Callable[..., object], *arguments: object) -> float:
    begin = time.thread_time()
    function(*arguments)
    return time.thread_time() - begin


def test_stages(photographs: list[Photograph], benchmark: BenchmarkFixture) -> None:
    """The whole, and its stages, which give the same tensors."""
    for mine, staged in zip(ours(photographs), by_stage(photographs, Clock()), strict=True):
        assert torch.equal(mine, staged)
    if not benchmark.enabled:
        benchmark(ours, photographs[:1])
        return
    wholes, rounds = [], []
    for _ in range(ROUNDS):
        wholes.append(cpu_seconds(ours, photographs))
        clock = Clock()
        by_stage(photographs, clock)
        rounds.append(clock.seconds)
    benchmark.pedantic(ours, args=(photographs,), rounds=1)
    count = len(photographs)
    print(f"\nmilliseconds of CPU time per photograph at 320, one core, medians of {ROUNDS} rounds")
    stages = {stage: statistics.median(seconds[stage] for seconds in rounds) / count for stage in rounds[0]}
    for stage, seconds in stages.items():
        print(f"{stage:32s} {seconds * 1e3:7.3f}  {seconds / sum(stages.values()):6.1%}")
    rate = count / statistics.median(wholes)
    print(f"{'all':32s} {1e3 / rate:7.3f}  {rate:.0f} photographs/s")
    benchmark.extra_info["photographs per second"] = rate
    assert rate >= AT_LEAST


def test_beside_torchvision(photographs: list[Photograph], compare: Callable[..., None]) -> None:
    assert ours(photographs[:1])[0].shape == torchvisions(photographs[:1])[0].shape == (3, *SIZE)
    print(f"\npeer: torchvision {torchvision.__version__}, transforms.v2")
    peers = {"torchvision": lambda: torchvisions(photographs)}
    compare(lambda: ours(photographs), peers, {"torchvision": 1.0}, budget=SECONDS)
