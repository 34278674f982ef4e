"""What the CUDA kernels execute, counted in their PTX on the CPU (tests/ptx_on_cpu): docs/kernels/counts.json.

    python tools/count_kernels.py [--case TEXT]                  compares with the table; exit status 1 if it differs
    python tools/count_kernels.py --write --reason "why"         makes the tables anew (two minutes)

These are counts.json, counts.md, the same for people, refinedet/profiling/counts.json, what the cost model takes of it,
its predictions in README.md and docs/kernels, and before them those of tools/kernel_budget.py: how many blocks a
multiprocessor holds decides about the predictions. tests/support/counted_cases.py has the cases.
"""

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ops"))

import kernel_budget
from ptx_on_cpu.harness import launches_of, start, toolkit
from simulated.harness import CSRC
from support.counted_cases import CASES, Case
from tqdm import tqdm

from refinedet.files import write_text
from refinedet.profiling import cost
from refinedet.profiling.resources import MULTIPROCESSORS, WARP

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
KERNELS = ROOT / "docs" / "kernels"
TABLE = KERNELS / "counts.json"
PAGE = KERNELS / "counts.md"
FOR_THE_MODEL = ROOT / "refinedet" / "profiling" / "counts.json"
RENEW = 'python tools/count_kernels.py --write --reason "..."'

ARCHITECTURE = "7.5"  # of the PTX
MODELLED = ("5.2", "6.1", "7.0", "8.0", "9.0")  # architectures of the cost model's GPUs
TOLERANCE = 0.01
SECTOR = 32  # bytes
SECONDS = 600  # of processor time for a case
LINES = 6  # of a kernel, on the page
WORTH_A_LINE = 0.04  # share of the kernel's instructions

Counts = dict[str, Any]  # a launch: kernel, blocks, threads, and numbers by name; tests/ptx_on_cpu/counters.h


# --- Counting ---------------------------------------------------------------------------------------------------------


def count(case: Case, ptx: Path | None = None) -> dict[str, Any]:
    """The entry of a case in the table. `ptx`: instead of that of the kernels."""
    call = importlib.import_module(f"test_{case.operator}").launch
    counts = "lines" if case.by_line else "launches"
    with start(case.operator, ARCHITECTURE, ptx=ptx, counts=counts, timeout=SECONDS) as harness:
        outputs = call(harness, *case.arguments())
    assert harness.last_result is not None
    launches = launches_of(harness.last_result)
    lines = {launch["kernel"]: _busiest(launch.pop("lines", [])) for launch in launches}
    return {
        "images": case.images,
        **({"kept": kept(case.operator, outputs)} if case.operator in cost.OF_BOXES else {}),
        "launches": [launch | {"blocks": prod(launch["blocks"])} for launch in launches],
        **({"lines": lines} if case.by_line else {}),
    }


def kept(operator: str, outputs: Any) -> int:
    """Boxes that come out."""
    return len(outputs) if operator == "nms" else int(outputs.counts.sum())


def _busiest(lines: list[Counts]) -> list[Counts]:
    """What executes most of a launch, by what the lines say: their numbers move with every change above them."""
    total: dict[tuple[str, str], Counts] = {}
    for line in lines:
        place = _place(Path(line["file"]).resolve(), line["line"])
        before = total.get(place, {})
        total[place] = {key: before.get(key, 0) + line[key] for key in line if key not in ("file", "line")}
    least = WORTH_A_LINE * sum(line["warp_instructions"] for line in lines)
    busy = [(place, line) for place, line in total.items() if line["warp_instructions"] >= least]
    busy.sort(key=lambda item: -item[1]["warp_instructions"])
    return [{"file": file, "line": source, **line} for (file, source), line in busy[:LINES]]


def _place(path: Path, line: int) -> tuple[str, str]:
    source = path.read_text().splitlines()[line - 1].strip() if line > 0 else ""
    return str(path.relative_to(CSRC)) if path.is_relative_to(CSRC) else path.name, source


def count_all(cases: Iterable[Case]) -> dict[str, dict[str, Any]]:
    """The table: operator -> case -> entry."""
    cases = list(cases)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        entries = list(tqdm(pool.map(count, cases), "cases", len(cases)))
    table: dict[str, dict[str, Any]] = {}
    for case, entry in zip(cases, entries, strict=True):
        table.setdefault(case.operator, {})[case.name] = entry
    return table


# --- Comparing --------------------------------------------------------------------------------------------------------


def differences(case: Case, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each number that has moved by more than TOLERANCE."""
    place = f"{case.operator}, {case.name}"
    kernels = [[launch["kernel"] for launch in entry["launches"]] for entry in (old, new)]
    if kernels[0] != kernels[1]:
        return [f"{place}: the kernels were {', '.join(kernels[0])}, are {', '.join(kernels[1])}"]
    pairs = list(zip(kernels[0], old["launches"], new["launches"], strict=True))
    found = [line for kernel, *both in pairs for line in _moved(f"{kernel}, {place}", *both)]
    for kernel, lines in old.get("lines", {}).items():
        others = {(line["file"], line["line"]): line for line in new["lines"][kernel]}
        for line in lines:
            where = f"{kernel}, {place}, {line['file']}, `{line['line']}`"
            other = others.get((line["file"], line["line"]))
            found += _moved(where, line, other) if other else [f"{where}: no longer among the busiest lines"]
    return found


def _moved(place: str, old: Counts, new: Counts) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, 0), new.get(name, 0)
        if isinstance(before, str):
            continue
        if abs(after - before) > TOLERANCE * before:
            change = f" ({after / before - 1:+.1%})" if before else ""
            yield f"{place}: {name} was {before:,}, is {after:,}{change}"


def compare(cases: Iterable[Case]) -> str:
    """Counts the cases again; what has moved, or nothing."""
    cases = list(cases)
    known, counted = json.loads(TABLE.read_text())["operators"], count_all(cases)
    found = []
    for case in cases:
        entry = known.get(case.operator, {}).get(case.name)
        if entry is None:
            found.append(f"{case.operator}, {case.name}: not in {TABLE.name}")
        else:
            found += differences(case, entry, counted[case.operator][case.name])
    return "\n".join([*found, f"If that is meant: {RENEW}"]) if found else ""


# --- Writing ----------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """A line for every launch, so that a change shows as one."""
    if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {to_json(item)}" for key, item in value.items()) + "\n}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(map(to_json, value)) + "\n]"
    return json.dumps(value)


def for_the_model(table: dict[str, Any]) -> dict[str, Any]:
    """What refinedet/profiling/cost.py needs of the table, and of docs/kernels/resources.json."""
    budget = json.loads((KERNELS / "resources.json").read_text())

    def blocks(kernel: dict[str, Any], architecture: str) -> int:
        warps = float(kernel["architectures"][architecture]["occupancy"]) * MULTIPROCESSORS[architecture].warps
        return round(warps * WARP / int(kernel["threads"]))

    resident = {
        name: min(blocks(kernel, architecture) for architecture in MODELLED)
        for name, kernel in budget["kernels"].items()
    }

    def numbers(launch: Counts) -> list[str | int]:
        counts = (launch[key] for key in ("blocks", "longest_block_cycles", "warp_instructions"))
        return [launch["kernel"], *counts, SECTOR * launch["first_sectors"]]

    cases = {
        operator: {
            name: {key: value for key, value in entry.items() if key in ("images", "kept")}
            | {"launches": [numbers(launch) for launch in entry["launches"]]}
            for name, entry in entries.items()
        }
        for operator, entries in table["operators"].items()
    }
    return {"resident": resident, "operators": cases}


ABOUT = """\
# What the kernels execute

Counted in their PTX (nvcc {nvcc}, compute_75), which runs on the CPU: `tests/ptx_on_cpu`. Nothing here was measured on
a GPU, and nothing depends on one: the numbers are the same on every machine. `make test` counts some of the cases
again, `make test-cuda` all, and a number that has moved by more than 1 % fails. They are renewed, with a reason, by
`python tools/count_kernels.py --write --reason "..."`; the last one: {reason}

- *Instructions*: of warps, in thousands; *lanes*: threads that take part in one, of 32.
- *Requests*: of warps to global memory; *sectors*: of 32 bytes, that one touches. *Memory*: sectors that the kernel
  touches, each once: what DRAM has to give and take where nothing is cached.
- *Conflicts*: passes through shared memory beyond the first. *Divergent*: branches that split a warp. *Barriers*: of
  warps. *Atomics*: of threads.
- *Longest block*: modelled cycles of the block that takes longest, alone on a multiprocessor, its inputs in L2.
  Latencies, and where they come from: `tests/ptx_on_cpu/timing.cpp`.
- A kernel that is launched several times is added up. Where fewer images are counted than the batch has, the title says
  so.
"""

COLUMNS = (
    *("kernel", "blocks", "instructions", "lanes", "requests", "sectors", "memory", "conflicts", "divergent"),
    *("barriers", "atomics", "longest block"),
)


def _sum(launches: list[Counts]) -> Counts:
    return {key: sum(launch[key] for launch in launches) for key in launches[0] if key != "kernel"}


def _row(kernel: str, total: Counts) -> list[str]:
    def per(what: str, each: str) -> str:
        return f"{total[what] / total[each]:.1f}" if total[each] else "-"

    return [
        f"`{kernel}`",
        f"{total['blocks']:,}",
        f"{total['warp_instructions'] / 1e3:,.1f}",
        per("thread_instructions", "warp_instructions"),
        f"{total['global_requests']:,}",
        per("global_sectors", "global_requests"),
        f"{SECTOR * total['first_sectors'] / 1e3:,.1f} KB",
        *(f"{total[key]:,}" for key in ("bank_conflicts", "divergent_branches", "barriers", "atomics")),
        f"{total['longest_block_cycles']:,}",
    ]


def _markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> str:
    header = list(header)
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def _case_to_markdown(name: str, entry: dict[str, Any]) -> str:
    kernels = dict.fromkeys(launch["kernel"] for launch in entry["launches"])
    of_kernel = {name: [launch for launch in entry["launches"] if launch["kernel"] == name] for name in kernels}
    images = entry["images"]
    some = "" if images == 1 or name.endswith(f"batch {images}") else f", {images} images counted"
    text = f"\n### {name}{some}\n\n"
    text += _markdown_table(COLUMNS, (_row(name, _sum(launches)) for name, launches in of_kernel.items()))
    for kernel, lines in entry.get("lines", {}).items():
        total = sum(launch["warp_instructions"] for launch in of_kernel[kernel])
        rows = [_line(line, total) for line in lines]
        text += f"\n`{kernel}`, by line of the source:\n\n"
        text += _markdown_table(("file", "line", "instructions", "lanes", "sectors", "conflicts", "divergent"), rows, 2)
    return text


def _line(line: Counts, total: int) -> list[str]:
    sectors = f"{line['global_sectors'] / line['global_requests']:.1f}" if line["global_requests"] else "-"
    return [
        line["file"],
        f"`{line['line']}`".replace("|", "\\|"),
        f"{line['warp_instructions'] / total:.0%}",
        f"{line['thread_instructions'] / line['warp_instructions']:.1f}",
        sectors,
        f"{line['bank_conflicts']:,}",
        f"{line['divergent_branches']:,}",
    ]


def to_markdown(table: dict[str, Any]) -> str:
    parts = [ABOUT.format_map(table)]
    for operator, entries in table["operators"].items():
        parts.append(f"\n## {operator}\n")
        parts += [_case_to_markdown(*item) for item in entries.items()]
    return "".join(parts)


def files(table: dict[str, Any]) -> dict[Path, str]:
    """What is written of a table."""
    return {
        TABLE: to_json(table) + "\n",
        PAGE: to_markdown(table),
        FOR_THE_MODEL: to_json(for_the_model(table)) + "\n",
    }


def headline() -> str:
    """What README.md says of the predictions."""
    call = cost.detect(cost.NETWORKS[0], 1)
    maxwell, *_, hopper = (call.predicted(device) for device in cost.DEVICES)
    return f"{hopper:.0f} us on an H100 and {maxwell:.0f} us on a Titan X"


def renew_predictions() -> None:
    """What the cost model says, in the pages of docs/kernels and in README.md."""
    cost.read_counts.cache_clear()
    table = r"^\| case \| batch \|.*\n(?:\|.*\n)+"
    _renew(README, r"\d+ us on an H100 and \d+ us on a Titan X", headline())
    _renew(KERNELS / "cost.md", table, cost.summary())
    for name in (*cost.OPERATORS, *cost.OF_BOXES):
        _renew(KERNELS / f"{name}.md", table, cost.table(name))


def _renew(page: Path, pattern: str, text: str) -> None:
    old = page.read_text()
    new, number = re.subn(pattern, text, old, flags=re.MULTILINE)
    if number != 1:
        raise RuntimeError(f"{page} has {number} places like {pattern}, expected one")
    if new != old:
        write_text(page, new)


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts what the CUDA kernels execute.")
    parser.add_argument("--case", default="", metavar="TEXT", help='only cases like this: "detect, VOC 320"')
    parser.add_argument("--write", action="store_true", help="make the tables anew")
    parser.add_argument("--reason", metavar="TEXT", help="why the numbers are others; kept in the table")
    arguments = parser.parse_args()
    if arguments.write and (not arguments.reason or arguments.case):
        parser.error("--write counts all cases, and needs --reason")

    if arguments.write:
        print("compiling for all architectures")
        kernel_budget.main()
        table = {"reason": arguments.reason, "nvcc": toolkit().version, "operators": count_all(CASES)}
        for path, text in files(table).items():
            write_text(path, text)
        renew_predictions()
        return 0
    cases = [case for case in CASES if arguments.case in f"{case.operator}, {case.name}"]
    found = compare(cases)
    print(found or f"{len(cases)} cases as in {TABLE.name}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
