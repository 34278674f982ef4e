"""Whole networks, batch 1: the forward pass and, apart from it, the operators that turn its output into boxes.

The paper's figures, 24.8 ms at 320 and 41.5 ms at 512 on a Titan X, are VGG-16's and most likely leave the operators
out (spec section 10.6), so both times are given.
"""

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import refinedet
from refinedet.models import RefineDet
from refinedet.predict import select_detections

ROUNDS = 5


@pytest.fixture(scope="module", params=["bccd", "vgg16 320", "vgg16 512"])
def model(request: pytest.FixtureRequest) -> Iterator[RefineDet]:
    if request.param == "bccd":
        yield refinedet.load("bccd")
    else:
        backbone, size = request.param.split()
        torch.manual_seed(0)
        yield refinedet.build(backbone, size=int(size), num_classes=21).eval()


def test_forward(model: RefineDet, benchmark: BenchmarkFixture) -> None:
    image = torch.randn(1, 3, *model.config.size)
    raw = benchmark.pedantic(model, args=(image,), kwargs={"by_level": True}, rounds=ROUNDS, warmup_rounds=1)
    assert sum(level.shape[1] for level in raw.odm_conf) == len(model.anchors)


def test_operators(model: RefineDet, benchmark: BenchmarkFixture) -> None:
    raw = model(torch.randn(1, 3, *model.config.size), by_level=True)
    found = benchmark.pedantic(
        select_detections, args=(model, raw, model.config.preset.score_threshold), rounds=ROUNDS, warmup_rounds=1
    )
    assert found.boxes.shape == (1, model.config.preset.keep_top_k, 4)
