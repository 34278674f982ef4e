"""The calls of which the cost model has a prediction, and the GPU here as the model knows it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gpu_report import machine
from gpu_report.worker import Job
from refinedet.profiling import cost
from refinedet.profiling.calibration import describe_device

BATCHES = (1, 32)

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


def model_device(job: Job, bandwidth: float) -> cost.Device:
    """In a dry run the last GPU that the model knows. ``bandwidth``: of the memory, in GB/s, for one it does not."""
    found = machine.gpu()
    if job.dry_run or found is None:
        return cost.DEVICES[-1]
    here = torch.cuda.get_device_properties(job.device)
    clock = float(found["largest clock"].split()[0]) / 1e3  # "1980 MHz"
    capability = f"{here.major}.{here.minor}"
    return describe_device(here.name, here.multi_processor_count, capability, clock, bandwidth)
