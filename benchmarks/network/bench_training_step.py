"""Where the CPU time of a training step of VGG-16 320 goes, on one thread: convolutions, and everything else.

The step is `Trainer.step` by the recipe for VOC 2007, on the project's photographs with boxes at random.
Every operator that torch dispatches is timed, forwards and backwards; a convolution is `aten::convolution` or its
backward, with the bias, the layouts that oneDNN wants and the memory of its results, and where the two are fused, the
ReLU. What no operator takes (Python, autograd, the measurement itself) counts as something else than a convolution.

pytest benchmarks/network/bench_training_step.py --benchmark-enable -s

The batch has 8 images, or as many as STEP_IMAGES says (a multiple of 4): the recipe's are 32.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from support.paths import ROOT
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from refinedet.classes import VOC_CLASSES
from refinedet.models import build
from refinedet.preprocessing import Preprocessing, prepare
from refinedet.records import Batch, Targets
from refinedet.training.heap import keep_freed_memory
from refinedet.training.read import read_recipe
from refinedet.training.step import Trainer

RECIPE = "vgg16_voc07_320"
PHOTOGRAPHS = sorted((ROOT / "examples" / "bccd").glob("*.jpg"))
BOXES = 3  # of an image; VOC 2007 has 2.5
MOST = 0.03  # of a step, for everything but convolutions
STEPS = 3
CATEGORIES = (  # of an operator, by the first that has a part of its name
    ("convolution", ("convolution",)),
    ("ReLU and pooling", ("relu", "threshold", "max_pool", "clamp_min")),
    ("L2Norm", ("l2norm", "rsqrt")),
    ("check for infinities", ("_foreach_norm",)),
    ("optimiser", ("_foreach", "sgd")),
    ("sums of gradients and of maps", ("aten::add",)),
    ("loss", ("match", "mine", "refine", "softmax", "nll", "smooth_l1", "index", "gather", "nonzero")),
)
REST = "other operators"
PYTHON = "Python, autograd, measurement"


class Clock(TorchDispatchMode):
    """CPU seconds of every operator, by category."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        begin = time.thread_time()
        result = operator(*arguments, **(options or {}))
        self.seconds[category(operator.name())] += time.thread_time() - begin
        return result


def category(operator: str) -> str:
    return next((name for name, parts in CATEGORIES if any(part in operator for part in parts)), REST)


def photographs(images: int, side: int) -> Batch:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((images * BOXES, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0] * 0.9, corners[:, 1] * 0.9 + 0.1], axis=1).astype(np.float32)
    labels = rng.integers(1, len(VOC_CLASSES) + 1, len(boxes))
    seen = [prepare(cv2.imread(str(path)), (side, side), Preprocessing()) for path in PHOTOGRAPHS]
    flips: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: x.flip(1), lambda x: x.flip(2)]
    picked = [flips[i // len(seen) % len(flips)](seen[i % len(seen)]) for i in range(images)]
    targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), torch.arange(images + 1) * BOXES)
    return Batch(torch.stack(picked), targets, tuple(str(i) for i in range(images)))


def measured_step(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """CPU seconds of one step by category."""
    with Clock() as clock:
        begin = time.process_time()
        trainer.step(batch)
        seconds = time.process_time() - begin
    found = dict(clock.seconds)
    return {**found, PYTHON: seconds - sum(found.values())}


def test_everything_but_convolutions(benchmark: BenchmarkFixture) -> None:
    images = int(os.environ.get("STEP_IMAGES", "8")) if benchmark.enabled else 4
    side = 320 if benchmark.enabled else 64
    keep_freed_memory()
    with torch.inference_mode(False):
        torch.manual_seed(0)
        trainer = Trainer(build("vgg16", side, classes=VOC_CLASSES), read_recipe(RECIPE), torch.device("cpu"))
        batch = photographs(images, side)
        losses = benchmark.pedantic(trainer.step, args=(batch,), rounds=1)
        assert losses["arm_positives"] > 0
        steps = [measured_step(trainer, batch) for _ in range(STEPS if benchmark.enabled else 1)]
    shares = {name: statistics.median(step.get(name, 0) / sum(step.values()) for step in steps) for name in steps[0]}
    others = [1 - step["convolution"] / sum(step.values()) for step in steps]
    assert shares["convolution"] > 0
    if benchmark.enabled:
        print(f"\nshares of a step of {images} images, medians of {STEPS} steps, one thread, torch {torch.__version__}")
        for name, share in sorted(shares.items(), key=lambda item: -item[1]):
            print(f"{name:32s} {share:7.2%}")
        print(f"{'everything but convolutions':32s} {min(others):7.2%} to {max(others):.2%}")
        benchmark.extra_info["shares"] = shares
        assert statistics.median(others) <= MOST
