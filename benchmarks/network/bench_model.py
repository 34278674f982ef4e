"""Whole networks on the CPU, batch 1: the forward pass, and the operators that turn its output into boxes.

The weights of VGG-16 are random, so the operators after it get outputs as of a trained network. `bench_gpu_network.py`
is the same on a GPU, beside the times of the paper; whether VGG-16 reaches the targets of `targets.toml` is told at the
end.
"""

from collections.abc import Iterator

import pytest
import targets
import torch
from problems import network_outputs
from pytest_benchmark.fixture import BenchmarkFixture
from turns import Table

import refinedet
from refinedet.inference.detector import Detector
from refinedet.models import RefineDet
from refinedet.profiling import cost
from refinedet.records import RawOutput

ROUNDS = 5
VGG = {"vgg16 320": cost.NETWORKS[0], "vgg16 512": cost.NETWORKS[1]}


@pytest.fixture(scope="module", params=["bccd", *VGG])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Iterator[RefineDet]:
    if name == "bccd":
        yield refinedet.load("bccd").trained_network
    else:
        backbone, size = name.split()
        torch.manual_seed(0)
        yield refinedet.build(backbone, size=int(size), num_classes=21).eval()


def test_forward(name: str, model: RefineDet, benchmark: BenchmarkFixture, table: Table) -> None:
    image = torch.randn(1, 3, *model.config.size)
    raw = benchmark.pedantic(model, args=(image,), kwargs={"by_level": True}, rounds=ROUNDS, warmup_rounds=1)
    assert sum(level.shape[1] for level in raw.odm_conf) == len(model.anchors)
    if benchmark.stats is not None and name in VGG:
        table.verdicts.append(targets.on_cpu(model.config.size[0], benchmark.stats.stats.min * 1e3))


def test_operators(name: str, model: RefineDet, benchmark: BenchmarkFixture) -> None:
    image = torch.randn(1, 3, *model.config.size)
    raw = RawOutput(*network_outputs(VGG[name], 1)[:4]) if name in VGG else model(image, by_level=True)
    found = benchmark.pedantic(Detector(model).select, args=(raw,), rounds=ROUNDS, warmup_rounds=1)
    assert found.boxes.shape == (1, model.config.preset.keep_top_k, 4)
