"""Nsight Compute on every kernel, and the counters that docs/kernels predicts beside the prediction.

ncu runs this module, once for each batch size, which calls every operator once. Its reports stay, for its window.
"""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from problems import arguments_of, crowd, image_of
from support.gpu import to

from gpu_report import machine
from gpu_report.cases import BATCHES, Case, measure_bandwidth, model_device
from gpu_report.worker import Job, Skip
from refinedet import ops
from refinedet.profiling import cost, resources

NET = cost.NETWORKS[0]
BOXES = {1: 1000, 32: 6375}  # of the operators that have no batch of a network
COUNTS = machine.ROOT / "docs" / "kernels" / "counts.json"
DENIED = "ERR_NVGPUCTRPERM"


@dataclass(frozen=True)
class Counter:
    """The sum of some metrics of ncu. ``counted``: the same in docs/kernels/counts.json."""

    unit: str
    metrics: tuple[str, ...]
    scale: float = 1  # units of ncu in one of ours
    counted: str = ""


SECTORS = "l1tex__t_sectors_pipe_lsu_mem_global_op_{}.sum"
CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_{}.sum"
LOCAL = "smsp__inst_executed_op_local_{}.sum"

COUNTERS = {
    "time": Counter("us", ("gpu__time_duration.sum",), 1e3),
    "DRAM": Counter("B", ("dram__bytes.sum",)),
    "L2": Counter("B", ("lts__t_bytes.sum",)),
    "warp instructions": Counter("count", ("smsp__inst_executed.sum",), counted="warp_instructions"),
    "global sectors": Counter("count", (SECTORS.format("ld"), SECTORS.format("st")), counted="global_sectors"),
    "bank conflicts": Counter("count", (CONFLICTS.format("ld"), CONFLICTS.format("st")), counted="bank_conflicts"),
    "registers": Counter("count", ("launch__registers_per_thread",)),
    "occupancy": Counter("%", ("sm__maximum_warps_per_active_cycle_pct",)),
    "local loads and stores": Counter("count", (LOCAL.format("ld"), LOCAL.format("st"))),
}


@dataclass(frozen=True)
class Launch:
    """One kernel under ncu."""

    kernel: str
    values: dict[str, float]  # by the names of COUNTERS


def run(job: Job) -> None:
    if job.dry_run:
        call_operators(job.device, 1)
        job.note("a dry run: the operators were called without ncu")
        return
    device = model_device(job, measure_bandwidth(job))
    for batch in BATCHES:
        file = job.out / f"kernels-batch-{batch}.ncu-rep"
        profile(file, batch)
        for operator, launches in groupby(read(export(file)), lambda launch: operators_of_kernels()[launch.kernel]):
            tell(job, operator, batch, list(launches), device)


def calls(batch: int) -> dict[str, tuple[str, cost.Cost, Callable[..., Any], tuple[Any, ...]]]:
    """Of every operator: label, prediction, function and arguments."""
    found = {}
    for name in cost.OPERATORS:
        case = Case(name, NET, batch)
        found[name] = (case.label, case.cost, getattr(ops, name), arguments_of(name, NET, batch))
    boxes = BOXES[batch]
    found["nms"] = (f"nms, {boxes} boxes", cost.nms(boxes), ops.batched_nms, (*crowd(boxes), 0.45))
    image = image_of(*crowd(boxes))
    found["soft_nms"] = (f"soft_nms, {boxes} boxes", cost.soft_nms(boxes), ops.soft_nms, image)
    found["vote"] = (f"vote, {boxes} boxes", cost.vote(boxes), ops.vote, image)
    return found


@torch.inference_mode()
def call_operators(device: torch.device, batch: int) -> None:
    for _, _, operator, arguments in calls(batch).values():
        operator(*to(device, arguments))


def profile(file: Path, batch: int) -> None:
    options = ["--set", "full", "--clock-control", "none", "--import-source", "yes", "--force-overwrite"]
    metrics = [metric for counter in COUNTERS.values() for metric in counter.metrics]
    options += ["--metrics", ",".join(metrics), "--kernel-name", f"regex:^({'|'.join(operators_of_kernels())})$"]
    program = [sys.executable, "-m", "gpu_report.stages.counters", str(batch)]
    command = [ncu(), *options, "--export", str(file), *program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    if DENIED in done.stdout:
        raise Skip(
            f"the driver keeps the counters from this user ({DENIED}): run with sudo, or load the driver with "
            "NVreg_RestrictProfilingToAdminUsers=0"
        )
    if done.returncode != 0 or not file.exists():
        raise RuntimeError(f"ncu ended with exit status {done.returncode}; its output is in parts/counters.log")


def export(file: Path) -> str:
    command = [ncu(), "--import", str(file), "--csv", "--page", "raw", "--print-units", "base"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ncu() -> str:
    return machine.find_program("ncu") or "ncu"


def operators_of_kernels() -> dict[str, str]:
    """The name of every kernel, without template arguments, and its operator, from the sources."""
    sources = (machine.ROOT / "csrc" / "ops").glob("*/*.cu")
    return {name: path.parent.name for path in sources for name in re.findall(r"(\w+_kernel)\(", path.read_text())}


def read(text: str) -> list[Launch]:
    """The launches in ncu's table, whose second row has the units. A counter that a GPU lacks is left out."""
    header, _, *rows = filter(None, csv.reader(io.StringIO(text[text.index('"ID"') :])))
    return [_launch(dict(zip(header, row, strict=True))) for row in rows]


def _launch(cells: dict[str, str]) -> Launch:
    (kernel,) = re.findall(r"\w+_kernel", cells["Kernel Name"])[:1]
    values = {}
    for name, counter in COUNTERS.items():
        texts = [cells.get(metric, "").replace(",", "") for metric in counter.metrics]
        if all(re.fullmatch(r"[\d.]+(e[+-]?\d+)?", text) for text in texts):
            values[name] = sum(map(float, texts)) / counter.scale
    return Launch(kernel, values)


def tell(job: Job, operator: str, batch: int, launches: list[Launch], device: cost.Device) -> None:
    """Every counter, with its prediction where there is one."""
    label, expected, _, _ = calls(batch)[operator]
    modelled, counted = list(expected.kernels), count(operator, batch)
    for launch in launches:
        predicted = resources_of(launch.kernel)
        # The next launch of the same kernel is the next one here.
        if (kernel := next((each for each in modelled if each.name == launch.kernel), None)) is not None:
            modelled.remove(kernel)
            predicted |= {"time": kernel.microseconds(device), "DRAM": kernel.moved}
        if (counts := next((each for each in counted if each.kernel == launch.kernel), None)) is not None:
            counted.remove(counts)
            predicted |= counts.values
        for name, counter in COUNTERS.items():
            for what, values in ((name, launch.values), (f"{name}, predicted", predicted)):
                if name in values:
                    job.figure(f"{label}, {launch.kernel}", what, values[name], counter.unit)


def count(operator: str, batch: int) -> list[Launch]:
    """What was counted of a call when its PTX ran on the CPU. Where fewer images were counted, as many times that."""
    entry = json.loads(COUNTS.read_text())["operators"][operator][
        f"{BOXES[batch]:,} boxes of 20 classes" if operator in cost.OF_BOXES else f"{NET.name}, batch {batch}"
    ]
    scale = 1 if operator in cost.OF_BOXES else batch / entry["images"]
    names = {name: counter.counted for name, counter in COUNTERS.items() if counter.counted}
    return [
        Launch(launch["kernel"].partition("<")[0], {name: scale * launch[key] for name, key in names.items()})
        for launch in entry["launches"]
    ]


def resources_of(kernel: str) -> dict[str, float]:
    """What the compiler says of a kernel: nothing spills, so that nothing is loaded from local memory."""
    found: dict[str, float] = {"local loads and stores": 0}
    rows = [row for row in resources.table() if row.kernel.partition("<")[0] == kernel]
    rows.sort(key=lambda row: "float" not in row.kernel)  # of the types, the one that is called
    if rows:
        found |= {"registers": rows[0].registers, "occupancy": 100 * rows[0].occupancy()}
    return found


if __name__ == "__main__":
    call_operators(torch.device("cuda", 0), int(sys.argv[1]))
