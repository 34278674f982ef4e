"""How time and memory of the operators grow: with anchors, batch, classes and objects.

    python benchmarks/growth.py                    # measures (minutes), then writes numbers, pictures and page
    python benchmarks/growth.py --only "match, objects" --out growth.json   # some curves, numbers alone
    python benchmarks/growth.py --page             # pictures and page anew, from the numbers that lie there

Each point is a process of its own, forked when its inputs lie ready. Memory is what its largest resident size grows by
in one call, results included; then it calls again for the median of CPU time. One thread.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # as a script
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import growth_page
import torch
from gpu_report import machine
from growth_curves import CURVES, Curve

from refinedet.files import atomic_write
from refinedet.progress import quiet, show_progress

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "growth" / "cpu.json"
ENOUGH = 0.15  # seconds of a point, after its first call
CALLS = 15
TOO_LONG = 20.0  # seconds of a call: a point that would take longer, were it quadratic, is left out

NO_HUGE_PAGES = 41  # prctl(PR_SET_THP_DISABLE): a page that is touched counts with 4 KiB


def measure(curves: Iterable[Curve], memory_alone: bool = False) -> dict[str, Any]:
    """The document of `RESULTS`."""
    curves = tuple(curves)
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(NO_HUGE_PAGES, 1, 0, 0, 0)
    found = []
    with show_progress("growth", "point", sum(len(curve.points()) for curve in curves)) as progress:
        for curve in curves:
            points: list[dict[str, float]] = []
            for value in curve.points():
                if not _would_take_too_long(points, value):
                    points.append({curve.axis: value, **_measure_point(curve, value, memory_alone)})
                progress.update()
            found.append({"operator": curve.operator, "axis": curve.axis, "points": points})
    facts = {"processor": machine.processor(), "torch": machine.version("torch"), "kernels": machine.sources_hash()}
    return {"machine": facts, "curves": found}


def _would_take_too_long(points: list[dict[str, float]], value: int) -> bool:
    if not points or "seconds" not in points[-1]:
        return False
    before = next(iter(points[-1].values()))
    return points[-1]["seconds"] * (value / before) ** 2 > TOO_LONG


def _measure_point(curve: Curve, value: int, memory_alone: bool) -> dict[str, float]:
    """``seconds`` and ``bytes``, by a fork of this process."""
    operator, given = curve.problem(value)
    tiny = curve.tiny()
    operator(*tiny)
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide growth
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answer = json.dumps(_call_again_and_again(operator, tiny, given, memory_alone))
            os.write(writer, answer.encode())
            status = 0
        finally:
            os._exit(status)  # no clean-up of what the parent has
    os.close(writer)
    with os.fdopen(reader) as answer_of_child:
        answer = answer_of_child.read()
    os.waitpid(child, 0)
    if not answer:
        raise SystemExit(f"growth: the process of {curve.name} = {value} ended without a result")
    found: dict[str, float] = json.loads(answer)
    return found


def _call_again_and_again(
    operator: Callable[..., Any], tiny: tuple[Any, ...], given: tuple[Any, ...], memory_alone: bool
) -> dict[str, float]:
    operator(*tiny)  # the pages of its code count as resident from here on
    before = _resident("VmRSS")
    result = operator(*given)
    found: dict[str, float] = {"bytes": max(0, _resident("VmHWM") - before)}
    del result
    if memory_alone:
        return found
    times: list[float] = []
    while len(times) < CALLS and (not times or sum(times) < ENOUGH):
        begin = time.process_time()
        operator(*given)
        times.append(time.process_time() - begin)
    return {"seconds": statistics.median(times), **found}


def _resident(name: str) -> int:
    """Bytes of this process: "VmRSS" in memory now, "VmHWM" at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", metavar="CURVE", help='"match", "match, objects", ...; several times'
    )
    parser.add_argument("--memory", action="store_true", help="no times")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}, and the page of it")
    parser.add_argument("--json", action="store_true", help="print the numbers, not the table")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args()
    curves = [curve for curve in CURVES if _chosen(curve, arguments.only)]
    if not curves:
        parser.error(f"--only {' --only '.join(arguments.only)} names no curve; choose of: {_names()}")
    if (arguments.only or arguments.memory) and arguments.out is None:
        parser.error("--only and --memory need --out: the page is of all curves")
    out = arguments.out or RESULTS
    if not arguments.page:
        with quiet(arguments.quiet):
            found = measure(curves, arguments.memory)
        with atomic_write(out) as path:
            path.write_text(growth_page.as_json(found))
    found = json.loads(out.read_text())
    print(growth_page.as_json(found) if arguments.json else growth_page.table(found))
    if out == RESULTS:
        growth_page.write(found)


def _chosen(curve: Curve, only: list[str] | None) -> bool:
    return only is None or any(curve.name == text or curve.operator == text for text in only)


def _names() -> str:
    return "; ".join(curve.name for curve in CURVES)


if __name__ == "__main__":
    main()
