"""Times of VGG-16: the network, the same with the operators after it, and both beside what others write.

Milliseconds of a CUDA graph ("network", "whole") and of a call from Python ("whole, eager"); "peer" is the network with
the usual PyTorch and torchvision behind it. The weights are random, so the operators get outputs as of a trained
network. In float32 convolutions may use TF32, as torch sets it. The paper's times are of a Titan X (spec section 10.6).
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch
from problems import network_outputs
from torch import Tensor

from gpu_report import machine
from gpu_report.worker import Job
from refinedet import build
from refinedet.inference.detector import Detector
from refinedet.models import RefineDet
from refinedet.profiling import cost
from refinedet.records import RawOutput

PAPER = {320: 24.8, 512: 41.5}  # milliseconds at batch 1
OUTPUTS = {320: cost.NETWORKS[0], 512: cost.NETWORKS[1]}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
ROUNDS = 20


@dataclass(frozen=True)
class Network:
    size: int
    batch: int
    dtype: torch.dtype
    layout: str

    @property
    def label(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"VGG-16 {self.size}, batch {self.batch}, {dtype}, {self.layout}"

    def build(self, device: torch.device) -> tuple[RefineDet, Tensor]:
        """The network, and images for it."""
        layout = LAYOUTS[self.layout]
        model = deepcopy(_on_cpu(self.size)).to(device, self.dtype).to(memory_format=layout)
        images = 50 * torch.randn(self.batch, 3, self.size, self.size)
        return model, images.to(device, self.dtype, memory_format=layout)


@cache
def _on_cpu(size: int) -> RefineDet:
    torch.manual_seed(0)
    return build("vgg16", size=size, num_classes=21).eval()


DRY = Network(320, 1, torch.float32, "nhwc")


def networks() -> Iterator[Network]:
    """What is deployed first, then what the paper timed, then the rest."""
    half, single = torch.float16, torch.float32
    for batch in (1, 32):
        for size in PAPER:
            yield Network(size, batch, half, "nhwc")
            yield Network(size, batch, single, "nchw")
    for size in PAPER:
        yield Network(size, 1, half, "nchw")
        yield Network(size, 1, single, "nhwc")


@torch.inference_mode()
def run(job: Job) -> None:
    for network in [DRY] if job.dry_run else networks():
        measure(job, network)


def measure(job: Job, network: Network) -> None:
    model, images = network.build(job.device)
    heads = network_outputs(OUTPUTS[network.size], network.batch)[:4]
    outputs = [tensor.to(job.device, network.dtype) for tensor in heads]
    typical = RawOutput(*outputs)
    detector = Detector(model)

    def whole() -> object:
        model(images, by_level=True)
        return detector.select(typical)

    times = {
        "network": job.microseconds(job.graph(lambda: model(images, by_level=True)), job.busy, ROUNDS),
        "whole": job.microseconds(job.graph(whole), job.busy, ROUNDS),
        "whole, eager": job.microseconds(whole, rounds=ROUNDS),
    }
    if machine.has_package("torchvision"):
        import peers

        floats, anchors = [tensor.float() for tensor in outputs], model.anchors

        def peer() -> object:
            model(images)
            return peers.detect(*floats, anchors)

        times["peer, eager"] = job.microseconds(peer, rounds=ROUNDS)
    else:
        job.note("skipped, because torchvision is not installed: the peer")
    job.figures(network.label, "ms", {name: time / 1e3 for name, time in times.items()})
    job.figure(network.label, "per image, whole", times["whole"] / 1e3 / network.batch, "ms")
    if network.batch == 1:
        job.figure(network.label, "of the paper's time", 100 * times["whole"] / 1e3 / PAPER[network.size], "%")
