"""Nsight Compute on every kernel, and the counters that docs/kernels predicts beside the prediction.

ncu runs this module, once for each batch size, which calls every operator once. Its reports stay, for its window.
"""

import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from problems import arguments_of, crowd
from support.gpu import to

from gpu_report import machine
from gpu_report.cases import BATCHES, Case, measure_bandwidth, model_device
from gpu_report.worker import Job, Skip
from refinedet import ops
from refinedet.profiling import cost, resources

NET = cost.NETWORKS[0]
BOXES = {1: 1000, 32: 6375}  # of nms, which has no batch
DENIED = "ERR_NVGPUCTRPERM"

# What ncu calls it -> what it is called here, unit, and units of ncu in one of ours.
COUNTERS = {
    "gpu__time_duration.sum": ("time", "us", 1e3),
    "dram__bytes.sum": ("DRAM", "B", 1),
    "lts__t_bytes.sum": ("L2", "B", 1),
    "smsp__inst_executed.sum": ("warp instructions", "count", 1),
    "launch__registers_per_thread": ("registers", "count", 1),
    "sm__maximum_warps_per_active_cycle_pct": ("occupancy", "%", 1),
    "smsp__inst_executed_op_local_ld.sum": ("local loads", "count", 1),
    "smsp__inst_executed_op_local_st.sum": ("local stores", "count", 1),
}


@dataclass(frozen=True)
class Launch:
    """One kernel under ncu."""

    kernel: str
    counters: dict[str, float]  # by the names of COUNTERS


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
    return found


@torch.inference_mode()
def call_operators(device: torch.device, batch: int) -> None:
    for _, _, operator, arguments in calls(batch).values():
        operator(*to(device, arguments))


def profile(file: Path, batch: int) -> None:
    options = ["--set", "full", "--clock-control", "none", "--import-source", "yes", "--force-overwrite"]
    options += ["--metrics", ",".join(COUNTERS), "--kernel-name", f"regex:^({'|'.join(operators_of_kernels())})$"]
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
    texts = {name: cells.get(name, "").replace(",", "") for name in COUNTERS}
    numbers = {name: float(text) for name, text in texts.items() if re.fullmatch(r"[\d.]+(e[+-]?\d+)?", text)}
    return Launch(kernel, numbers)


def tell(job: Job, operator: str, batch: int, launches: list[Launch], device: cost.Device) -> None:
    """Every counter, with its prediction where there is one."""
    label, expected, _, _ = calls(batch)[operator]
    modelled = list(expected.kernels)
    for launch in launches:
        kernel = next((kernel for kernel in modelled if kernel.name == launch.kernel), None)
        if kernel is not None:
            modelled.remove(kernel)  # the next launch of the same kernel is the next of the model
        predicted = predictions(launch.kernel, kernel, device)
        for counter, (name, unit, scale) in COUNTERS.items():
            if counter in launch.counters:
                job.figure(f"{label}, {launch.kernel}", name, launch.counters[counter] / scale, unit)
            if name in predicted:
                job.figure(f"{label}, {launch.kernel}", f"{name}, predicted", predicted[name], unit)


def predictions(name: str, kernel: cost.Kernel | None, device: cost.Device) -> dict[str, float]:
    """What the cost model and the table of resources say, by the names of COUNTERS."""
    found: dict[str, float] = {"local loads": 0, "local stores": 0}
    if kernel is not None:
        found |= {"time": kernel.microseconds(device), "DRAM": kernel.moved}
        if kernel.instructions:
            found["warp instructions"] = kernel.instructions
    rows = [row for row in resources.table() if row.kernel.partition("<")[0] == name]
    rows.sort(key=lambda row: "float" not in row.kernel)  # of the types, the one that is called
    if rows:
        found |= {"registers": rows[0].registers, "occupancy": 100 * rows[0].occupancy()}
    return found


if __name__ == "__main__":
    call_operators(torch.device("cuda", 0), int(sys.argv[1]))
