"""The calls of which the cost model has a prediction, and the GPU here as the model knows it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gpu_report import machine
from gpu_report.worker import Job
from refinedet.profiling import cost
from refinedet.profiling.calibration import describe_device

BATCHES = (1, 32)
COPIED = 1 << 30  # bytes, of which none is found in L2 again
ASSUMED_CLOCK = 1.5  # GHz, where the driver does not tell

# Where `stages.operators` writes what others read.
OPERATORS, MEMORY, BANDWIDTH, COLD = "operators", "memory", "copy, read and write", "graph, cold"


@dataclass(frozen=True)
class Case:
    operator: str
    net: cost.Network
    batch: int

    @property
    def label(self) -> str:
        return f"{self.operator}, {self.net.name}, batch {self.batch}"

    @property
    def cost(self) -> cost.Cost:
        return cost.OPERATORS[self.operator](self.net, self.batch)


def every_case() -> Iterator[Case]:
    for net in cost.NETWORKS:
        for batch in BATCHES:
            yield from (Case(name, net, batch) for name in cost.OPERATORS)


def measure_bandwidth(job: Job) -> float:
    """GB/s of a copy, which reads and writes each byte."""
    source = torch.empty(1 << 20 if job.dry_run else COPIED, dtype=torch.uint8, device=job.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / job.microseconds(lambda: target.copy_(source)) / 1e3


def model_device(job: Job, bandwidth: float) -> cost.Device:
    """In a dry run the last GPU that the model knows. ``bandwidth``: of the memory, in GB/s, for one it does not."""
    found = machine.gpu()
    if job.dry_run or found is None:
        return cost.DEVICES[-1]
    here = torch.cuda.get_device_properties(job.device)
    clock = re.match(r"(\d+) MHz", found["largest clock"])
    gigahertz = int(clock[1]) / 1e3 if clock else ASSUMED_CLOCK
    capability = f"{here.major}.{here.minor}"
    return describe_device(here.name, here.multi_processor_count, capability, gigahertz, bandwidth)
