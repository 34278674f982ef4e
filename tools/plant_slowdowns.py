"""Makes everything that `make bench-check` guards a tenth slower, one after the other, and demands that it notices.

    python tools/plant_slowdowns.py [--only PART ...] [--write]

Nothing of the product is changed: changed copies lie in build/slowdowns. They hang on no line of it, but on names:

operators   The function of the contract, <op>.h, first computes a share of its own work: that share of the anchors or
            boxes, then all of them. How large a share makes a case a tenth slower is searched for.
clones      Without REFINEDET_VECTOR_CLONES, as if a change had cost the vector instructions.
kernels     Every warp of every kernel starts with a tenth of the instructions that a warp executes, for nothing.
calls       Every face makes a view of its first argument: another crossing of the dispatcher.
times       `model.detect` keeps the processor busy for a fifth of its time more.

Compared is with the working tree as it is, not with the baseline. Exit status 1 if something was not caught.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ops"))

import count_kernels
from guard import calls, instructions, kernels, times
from guard.baseline import Finding, Values, compare
from guard.command import COUNTS, RATIOS
from guard.processes import GuardError
from mutate import blank_comments, device_functions, table, write_if_changed
from ptx_on_cpu import harness
from simulated.harness import CSRC, OPERATORS, compiler, kernel_file
from tqdm import tqdm

from cuda_build import ToolkitError, nvcc_command
from refinedet.files import write_text

ROOT = Path(__file__).resolve().parents[1]
OVERLAY = ROOT / "build" / "slowdowns"
PAGE = ROOT / "docs" / "slowdowns.md"
TENTH = 0.10

# Of the work that is computed twice, in thousandths: tried for every operator.
SHARES = (0, 20, 50, 75, 100, 130, 160, 200, 250)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    case: str
    plant: str
    growth: float
    caught: bool


def caught(found: Iterable[Finding], name: str, case: str) -> bool:
    """Whether a failure names the place."""
    return any((one.name, one.case) == (name, case) and not one.better for one in found)


def growth(old: Values, new: Values, name: str, case: str) -> float:
    return float(new[name][case] / old[name][case] - 1)


def distance(grown: float) -> float:
    """From a tenth: 0.05 and 0.2 are equally far."""
    return abs(log(max(grown, 1e-9) / TENTH))


# --- Operators --------------------------------------------------------------------------------------------------------

# What follows a renamed operator: the operator, which computes the share and then all.
TWICE = """
#include <cstdlib>

namespace refinedet::cpu {

void {op}(const {Op}Inputs& in, const {Op}Options& options, const {Op}Outputs& out) {
  static const char* const thousandths = std::getenv("REFINEDET_SHARE");
  static const int64_t share = thousandths == nullptr ? 0 : std::atoll(thousandths);
  if (share != 0) {
    {Op}Inputs part = in;
    {Op}Options of_part = options;
{shrink}
    {op}_itself(part, of_part, out);
  }
  {op}_itself(in, options, out);
}

}  // namespace refinedet::cpu
"""
LEVELS = """\
    of_part.keep_top_k = of_part.keep_top_k * share / 1000 + 1;
    part.num_anchors = 0;
    for (int i = 0; i < part.num_levels; ++i) {
      part.levels[i].num_anchors = part.levels[i].num_anchors * share / 1000;
      part.num_anchors += part.levels[i].num_anchors;
    }"""
ANCHORS = "    part.num_anchors = part.num_anchors * share / 1000;"
BOXES = "    part.num_boxes = part.num_boxes * share / 1000;"
SHRINK = {"detect": LEVELS, "match": ANCHORS, "mine": ANCHORS, "refine": ANCHORS}  # others: BOXES


def twice(op: str, source: str) -> str:
    """The source of an operator of the CPU with the plant."""
    definition = re.compile(rf"^void\s+{op}(?=\s*\(const\s+\w+Inputs\s*&)", re.MULTILINE)
    renamed, number = definition.subn(f"void {op}_itself", source)
    if number != 1:
        raise RuntimeError(f"{op}_cpu.cpp defines {op} {number} times, expected once")
    kind = "".join(word.capitalize() for word in op.split("_"))
    planted = TWICE.replace("{shrink}", SHRINK.get(op, BOXES))
    return renamed + planted.replace("{op}", op).replace("{Op}", kind)


def slower_operators() -> Iterator[Row]:
    overlay = OVERLAY / "operators"
    for op in OPERATORS:
        file = Path("ops", op, f"{op}_cpu.cpp")
        write_if_changed(overlay / file, twice(op, (CSRC / file).read_text()))
    program = instructions.build(overlay)
    for op in tqdm(OPERATORS, "operators"):
        counts = {
            share: instructions.count(program, op, environment={"REFINEDET_SHARE": str(share)}) for share in SHARES
        }
        for case in counts[0][op]:
            share = min(SHARES[1:], key=lambda share: distance(growth(counts[0], counts[share], op, case)))
            found = compare(counts[0], counts[share], COUNTS)
            grown = growth(counts[0], counts[share], op, case)
            yield Row(op, case, f"{share / 1000:.1%} twice", grown, caught(found, op, case))


def operators_without_clones() -> Iterator[Row]:
    overlay = OVERLAY / "clones"
    header = CSRC / "cpu" / "parallel.h"
    text, number = re.subn(r"(#define REFINEDET_VECTOR_CLONES) __attribute__.*", r"\1", header.read_text())
    if number != 1:
        raise RuntimeError(f"{header.name} defines REFINEDET_VECTOR_CLONES {number} times, expected once")
    write_if_changed(overlay / "cpu" / header.name, text)
    old, new = instructions.count(instructions.build()), instructions.count(instructions.build(overlay))
    found = compare(old, new, COUNTS)
    for op, cases in old.items():
        case = max(cases, key=lambda case: growth(old, new, op, case))
        yield Row(op, case, "no clones", growth(old, new, op, case), caught(found, op, case))


# --- Kernels ----------------------------------------------------------------------------------------------------------

BUSY = """\
namespace slowdown {
__device__ __forceinline__ void work(unsigned& sum) { asm volatile("add.u32 %0, %0, 1;" : "+r"(sum)); }
template <int kTurns, int kRest>
__device__ __forceinline__ void keep_busy() {
  unsigned sum = 0;
#pragma unroll 1
  for (int i = 0; i < kTurns; ++i) work(sum);
#pragma unroll
  for (int i = 0; i < kRest; ++i) work(sum);
}
}  // namespace slowdown
#line 1
"""
PER_TURN = 4  # instructions: the sum, the counter, the comparison, the branch
FEW = 32  # instructions that need no loop


def instructions_of_a_warp(op: str) -> dict[str, float]:
    """By kernel, without its type: of its first quick case."""
    operators = json.loads(count_kernels.TABLE.read_text())["operators"][op]
    found: dict[str, float] = {}
    for case in kernels.QUICK:
        for launch in operators[case.name]["launches"] if case.operator == op else ():
            warps = launch["blocks"] * launch["threads"] / 32
            found.setdefault(launch["kernel"].partition("<")[0], launch["warp_instructions"] / warps)
    return found


def busy(source: str, work: dict[str, float]) -> str:
    """The kernels with a loop in front."""
    clean = blank_comments(source)
    places = {begin + 1: name for name, begin, _ in device_functions(clean) if name in work}
    if sorted(places.values()) != sorted(work):
        raise RuntimeError(f"the kernels are {', '.join(sorted(work))}; found are {', '.join(sorted(places.values()))}")
    text = source
    for place in sorted(places, reverse=True):
        number = round(TENTH * work[places[place]])
        turns = number // PER_TURN if number > FEW else 0
        text = f"{text[:place]} ::slowdown::keep_busy<{turns}, {number - PER_TURN * turns}>();{text[place:]}"
    return BUSY + text


def slower_kernels() -> Iterator[Row]:
    for op in tqdm(OPERATORS, "kernels"):
        source = OVERLAY / "kernels" / f"{op}_cuda.cu"
        write_if_changed(source, busy(kernel_file(op).read_text(), instructions_of_a_warp(op)))
        ptx = source.with_suffix(".ptx")
        nvcc = [*nvcc_command(harness.toolkit(), compiler()), *harness.toolkit().flags(warnings_are_errors=True)]
        architecture = count_kernels.ARCHITECTURE.replace(".", "")
        command = [*nvcc, f"-I{CSRC}", f"-arch=compute_{architecture}", "-ptx", str(source), "-o", str(ptx)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{source} does not compile:\n{done.stderr}")
        cases = [case for case in kernels.QUICK if case.operator == op]
        old = kernels.values_of({op: {case.name: count_kernels.count(case) for case in cases}})
        new = kernels.values_of({op: {case.name: count_kernels.count(case, ptx) for case in cases}})
        found = compare(old, new, COUNTS)
        for kernel, numbers in old.items():
            case = next(case for case in numbers if case.endswith(": instructions"))
            name = case.removeprefix(f"{op}, ").removesuffix(": instructions")
            yield Row(
                kernel, f"{op}, {name}", "instructions", growth(old, new, kernel, case), caught(found, kernel, case)
            )


# --- Calls and times --------------------------------------------------------------------------------------------------

ANOTHER_VIEW = """

def _slower(face):
    return lambda first, *others, **options: face(first.view_as(first), *others, **options)


for _name in ("batched_nms", "detect", "match", "mine", "nms", "refine", "soft_nms", "vote"):
    globals()[_name] = _slower(globals()[_name])
"""
A_FIFTH = """

def _slower(method):
    import time

    def call(*arguments, **options):
        begin = time.process_time()
        result = method(*arguments, **options)
        taken = time.process_time() - begin
        while time.process_time() < begin + 1.2 * taken:
            pass
        return result

    return call


Detector.detect = _slower(Detector.detect)
"""


def changed_package(name: str, file: str, more: str) -> Path:
    """A folder with a copy of the package, in which `more` is at the end of a file."""
    folder = OVERLAY / name
    shutil.rmtree(folder, ignore_errors=True)
    package = ROOT / "refinedet"
    shutil.copytree(package, folder / "refinedet", ignore=shutil.ignore_patterns("*.so", "__pycache__", "checkpoints"))
    for path in [*package.glob("*.so"), package / "checkpoints"]:
        (folder / "refinedet" / path.name).symlink_to(path)
    with (folder / "refinedet" / file).open("a") as stream:
        stream.write(more)
    return folder


def slower_calls() -> Iterator[Row]:
    old = calls.measure().values
    new = calls.measure(changed_package("calls", "ops/__init__.py", ANOTHER_VIEW)).values
    found = compare(old, new, COUNTS)
    for face, numbers in old.items():
        most = max(numbers, key=lambda what: growth(old, new, face, what))
        yield Row(face, most, "another view", growth(old, new, face, most), caught(found, face, most))


def slower_times() -> Iterator[Row]:
    old = times.measure(None, RATIOS).values
    new = times.measure(None, RATIOS, changed_package("times", "inference/detector.py", A_FIFTH)).values
    found = compare(old, new, RATIOS)
    for name, cases in old.items():
        for case in cases:
            yield Row(name, case, "20% busy", growth(old, new, name, case), caught(found, name, case))


# --- Reporting --------------------------------------------------------------------------------------------------------

PARTS = {
    "operators": slower_operators,
    "clones": operators_without_clones,
    "kernels": slower_kernels,
    "calls": slower_calls,
    "times": slower_times,
}
TITLES = {
    "operators": "CPU operators: a share of the work is computed twice",
    "clones": "CPU operators: the vector clones are lost",
    "kernels": "CUDA kernels: a tenth of a warp's instructions before its work",
    "calls": "Calls from Python: a view of the first argument",
    "times": "Times: a fifth more",
}
ABOUT = """\
# Planted slowdowns

Written by `python tools/plant_slowdowns.py --write`, which makes everything that `make bench-check` guards slower, one
kind after the other, and asks whether the guard names it ([guard.md](guard.md)). *Growth* is what the guard sees; it
fails above 3 %, of times above 10 %. Of the shares of an operator's work that were tried, the table shows the one that
slows a case most nearly by a tenth; what a call costs whatever its size comes on top, as with 12 anchors.
"""
WITHOUT_CLONES = "\nOf every operator the case that loses most. A case without vector code does not change.\n"


def report(rows: Mapping[str, Sequence[Row]]) -> str:
    parts = [ABOUT]
    for part, found in rows.items():
        lines = [
            [f"`{row.name}`", row.case, row.plant, f"{row.growth:+.1%}", "yes" if row.caught else "**no**"]
            for row in found
        ]
        number = sum(row.caught for row in found)
        parts.append(f"\n## {TITLES[part]}\n\nCaught: {number} of {len(found)}.\n")
        if part == "clones":
            parts.append(WITHOUT_CLONES)
        parts.append(f"\n{table(['what', 'case', 'plant', 'growth', 'caught'], lines)}\n")
    return "".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants slowdowns, and asks the guard about them.")
    either = parser.add_mutually_exclusive_group()  # the table is of all parts
    either.add_argument("--only", nargs="+", choices=PARTS, default=tuple(PARTS), metavar="PART")
    either.add_argument("--write", action="store_true", help=f"write the table, {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    try:
        rows = {part: list(plant()) for part, plant in PARTS.items() if part in arguments.only}
    except (GuardError, ToolkitError) as error:
        parser.exit(2, f"plant_slowdowns: {error}\n")
    text = report(rows)
    print(text)
    if arguments.write:
        write_text(PAGE, text)
    return int(not all(row.caught for found in rows.values() for row in found))


if __name__ == "__main__":
    sys.exit(main())
