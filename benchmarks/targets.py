"""The times that VGG-16 RefineDet has to reach, and whether a run did: targets.toml.

    python benchmarks/targets.py          # the targets of the GPUs that the cost model knows
    python benchmarks/targets.py --write  # computed anew into targets.toml

The paper's times are of a Titan X (spec section 10.6). The roofline of a network on a device is the time in which its
convolutions could run if nothing but arithmetic at the device's peak or bytes at its bandwidth took time, each layer by
itself. On the Titan X it is some share of the paper's time; every other device has to reach the same share.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script

from refinedet.files import atomic_write
from refinedet.models import build
from refinedet.parsing import parse_toml
from refinedet.profiling.cost import DEVICES, Device

FILE = Path(__file__).with_name("targets.toml")
PAPER = {320: 24.8, 512: 41.5}  # milliseconds at batch 1, float32
PAPER_DEVICE = DEVICES[0]  # Titan X (Maxwell)
PRODUCT, COPIED = 1024, 1 << 26  # side of the matrices, bytes, by which a CPU's ceilings are measured

ABOUT = """\
# Milliseconds in which the network of VGG-16 has to run, batch 1, float32, by input size. Written by
# `python benchmarks/targets.py --write`, which says how they come about; a test computes them again.
#
# The paper's are of a Titan X (Maxwell). A share is the part of that time which the device would take if only the
# arithmetic of the convolutions at its peak, or their bytes at the bandwidth of its memory, took time; other devices
# have to reach the same share. Peaks are those of `refinedet.profiling.cost.DEVICES`: two operations times cores times
# clock, without tensor cores. A CPU's is measured in the run, by as many threads: the product of two matrices, a copy.
"""


@dataclass(frozen=True)
class Layer:
    """A convolution: float32 operations, and bytes of its input, weights and output."""

    operations: int
    moved: int


@cache
def layers(size: int) -> tuple[Layer, ...]:
    """Those of VGG-16 RefineDet with 21 classes, by a forward pass without numbers."""
    found = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        at = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output  # where the kernel is laid
        found.append(
            Layer(
                2 * at.numel() * weight.numel() // weight.shape[0],
                4 * (inputs[0].numel() + weight.numel() + output.numel()),
            )
        )

    with torch.device("meta"):
        network, image = build("vgg16", size=size, num_classes=21).eval(), torch.empty(1, 3, size, size)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        network(image)
    return tuple(found)


def roofline(size: int, peak: float, bandwidth: float) -> float:
    """Milliseconds of all layers at ``peak`` GFLOP/s and ``bandwidth`` GB/s. Winograd's convolutions, which need fewer
    operations, may take less; the paper's time has them as well."""
    return sum(max(layer.operations / peak, layer.moved / bandwidth) for layer in layers(size)) / 1e6


def peak(device: Device) -> float:
    """GFLOP/s in float32, a multiplication and an addition in every lane and cycle."""
    return 2 * device.multiprocessors * device.cores * device.clock


def share(size: int) -> float:
    """Of its roofline that the paper's Titan X reaches."""
    return roofline(size, peak(PAPER_DEVICE), PAPER_DEVICE.bandwidth) / PAPER[size]


def text() -> str:
    """The file, computed."""
    lines = [ABOUT, "[share]", *(f"{size} = {share(size):.3f}" for size in PAPER)]
    for device in DEVICES:
        lines += ["", f'[milliseconds."{device.name}"]']
        lines += [f"{size} = {roofline(size, peak(device), device.bandwidth) / share(size):.2f}" for size in PAPER]
    return "\n".join(lines) + "\n"


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def on_gpu(size: int, milliseconds: float, device: Device | None, dtype: torch.dtype = torch.float32) -> str:
    """A line for the table; ``device``: None where the cost model does not know the GPU."""
    if device is None:
        return _not_applicable(size, milliseconds, "the cost model does not know this GPU")
    if dtype != torch.float32:
        return _not_applicable(size, milliseconds, f"the paper's time is of float32, this of {str(dtype)[6:]}")
    target = parse_toml(FILE.read_text())["milliseconds"][device.name][str(size)]
    return _verdict(size, milliseconds, target, device.name)


def on_cpu(size: int, milliseconds: float) -> str:
    """A line for the table, of the best of several calls: so are the ceilings, which the threads of torch measure here
    and now."""
    here = parse_toml(FILE.read_text())["share"][str(size)]
    compute, bandwidth = measure_ceilings()
    where = f"CPU, {torch.get_num_threads()} threads, {compute:.0f} GFLOP/s and {bandwidth:.1f} GB/s measured"
    return _verdict(size, milliseconds, roofline(size, compute, bandwidth) / here, where)


def measure_ceilings() -> tuple[float, float]:
    """GFLOP/s of the product of two matrices and GB/s of a copy, which reads and writes, on the CPU."""
    a, b = torch.rand(2, PRODUCT, PRODUCT)
    source = torch.zeros(COPIED // 4)
    target = torch.empty_like(source)
    compute = 2 * PRODUCT**3 / _best_seconds(lambda: torch.mm(a, b))
    return compute / 1e9, 2 * COPIED / _best_seconds(lambda: target.copy_(source)) / 1e9


def _best_seconds(call: Callable[[], Tensor], calls: int = 8) -> float:
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _verdict(size: int, milliseconds: float, target: float, where: str) -> str:
    word = "met" if milliseconds <= target else "missed"
    return f"VGG-16 {size}: {word}, {milliseconds:.1f} ms, target {target:.1f} ms ({where})"


def _not_applicable(size: int, milliseconds: float, why: str) -> str:
    return f"VGG-16 {size}: not applicable, {milliseconds:.1f} ms ({why})"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        with atomic_write(FILE) as path:
            path.write_text(text())
    elif sys.argv[1:]:
        sys.exit("usage: python benchmarks/targets.py [--write]")
    print(text())
