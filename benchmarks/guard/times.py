"""Times of what has no count, as ratios to a calibration of the same kind: convolution, matrix product, copy.

The ratio of one processor says nothing of another: caches and vector units differ. So each has a case of its own, and
on one without any nothing is compared.

Both take turns in one process, in processor time of one thread, so that a machine that is slower or busy slows both.
``python -m guard.times`` is that process.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guard.baseline import Accepted, Measured, Values, compare
from guard.instructions import ROOT
from guard.processes import measured_by

TURNS = 25
TRIES = 5  # processes at most
ACCEPTED = 3  # processes, whose median is accepted: one alone may be off by a tenth
DIGITS = 4


def measure(accepted: Accepted | None, limit: float, package: Path = ROOT) -> Measured:
    """Where a ratio seems to have grown, the least of up to `TRIES` processes: what is slower is so in all of them.

    `package`: the folder that holds the package.
    """
    measured = in_process(package)
    for _ in range(TRIES - 1):
        known = on_this_processor(accepted, measured)
        if known is None or all(one.better for one in compare(known.values, measured.values, limit)):
            break
        measured = least(measured, in_process(package))
    return measured


def on_this_processor(accepted: Accepted | None, measured: Measured) -> Accepted | None:
    """The accepted ratios of the processor that these were measured on; None where there are none."""
    if accepted is None:
        return None
    values = {
        name: {case: ratio for case, ratio in accepted.values.get(name, {}).items() if case in of}
        for name, of in measured.values.items()
    }
    return Accepted(values, accepted.made_with, accepted.reason) if any(values.values()) else None


def beside_others(accepted: Accepted | None, renewed: Accepted) -> Accepted:
    """`renewed`, with the ratios of the other processors as they were."""
    if accepted is None or accepted.made_with != renewed.made_with:
        return renewed
    values = {name: accepted.values.get(name, {}) | of for name, of in renewed.values.items()}
    return Accepted(values, renewed.made_with, renewed.reason)


def least(a: Measured, b: Measured) -> Measured:
    values = {
        name: {case: min(ratio, b.values[name][case]) for case, ratio in of.items()} for name, of in a.values.items()
    }
    return Measured(values, a.made_with)


def measure_to_accept() -> Measured:
    """The median of several processes."""
    all_of = [in_process(ROOT) for _ in range(ACCEPTED)]
    values = {
        name: {case: statistics.median(one.values[name][case] for one in all_of) for case in of}
        for name, of in all_of[0].values.items()
    }
    return Measured(values, all_of[0].made_with)


def in_process(package: Path) -> Measured:
    return measured_by("guard.times", package, "the times could not be measured")


# --- In the process ---------------------------------------------------------------------------------------------------


def ratios() -> Values:
    """Each workload's median time over that of the calibration, which takes a turn before each of its own."""
    import torch

    torch.set_num_threads(1)
    calibrate, work = calibration(), workloads()
    for call in (calibrate, *work.values()):
        call()
        call()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(TURNS):
        for name, call in work.items():
            taken[name].append((seconds(calibrate), seconds(call)))
    return {name: {processor(): ratio_of_medians(turns)} for name, turns in taken.items()}


def processor() -> str:
    import torch

    from refinedet.profiling.machine import cpu_name

    return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def ratio_of_medians(turns: list[tuple[float, float]]) -> float:
    """Steadier than the ratio of the least times and the median of the ratios: five runs on a busy machine differed by
    1.8 %, 8.3 % and 3.4 %."""
    of_calibration, of_work = zip(*turns, strict=True)
    return round(statistics.median(of_work) / statistics.median(of_calibration), DIGITS)


def seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def calibration() -> Callable[[], Any]:
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 64, 40, 40, generator=generator).to(memory_format=torch.channels_last)
    weights = torch.randn(64, 64, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    matrix = torch.randn(256, 256, generator=generator)
    source = torch.randn(1 << 20, generator=generator)
    target = torch.empty_like(source)

    @torch.inference_mode()
    def calibrate() -> None:
        for _ in range(32):
            functional.conv2d(images, weights, padding=1)
            torch.mm(matrix, matrix)
            target.copy_(source)

    return calibrate


def workloads() -> dict[str, Callable[[], Any]]:
    import cv2

    import refinedet

    cv2.setNumThreads(1)
    model = refinedet.load("bccd")
    photograph = cv2.imread(str(ROOT / "examples" / "bccd" / "BloodImage_00031.jpg"))
    assert photograph is not None
    return {"model.detect, the shipped model and a photograph": lambda: model.detect([photograph])}


if __name__ == "__main__":
    values = ratios()
    import torch

    release = ".".join(torch.__version__.split(".")[:2])
    print(json.dumps({"values": values, "made_with": {"torch": release}}))
