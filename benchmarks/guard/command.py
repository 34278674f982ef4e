"""Measures, compares with the baseline, and says what has grown.

Exit status: 0 where nothing has grown beyond its limit, 1 where something has, 2 where that cannot be said.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guard import baseline, calls, instructions, kernels, times
from guard.baseline import Accepted, Measured, Report
from guard.processes import GuardError
from refinedet.errors import RefineDetError

COUNTS, RATIOS = 0.03, 0.10  # growth that fails


@dataclass(frozen=True)
class Part:
    """Something that is measured in one go."""

    name: str
    what: str
    limit: float
    measure: Callable[[], Measured]


OPERATORS = Part("operators", "instructions of the operators on the CPU", COUNTS, instructions.measure)
CALLS = Part("calls", "what surrounds an operator that is called from Python", COUNTS, calls.measure)
KERNELS = Part("kernels", "what the CUDA kernels execute", COUNTS, kernels.measure)
COUNTED = (OPERATORS, CALLS, KERNELS)
TIMES = "times"  # processor time, as ratios to a calibration
PARTS = (*(part.name for part in COUNTED), TIMES)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    begin = time.perf_counter()
    try:
        accepted = read(options.baseline)
        measured = measure(options.only, accepted, options.verb)
        reports = [report(name, accepted.get(name), of) for name, of in measured.items()]
        print("\n".join(line for one in reports for line in one.lines))
        if options.verb == "accept":
            accept(accepted, measured, options.baseline, options.reason)
    except (GuardError, RefineDetError) as error:
        print(f"bench-{options.verb}: {error}", file=sys.stderr)
        return 2
    if options.verb == "accept":
        return 0
    print("\n".join([*baseline.advice(reports), f"{time.perf_counter() - begin:.0f} s"]))
    return 1 if any(one.failed for one in reports) else 0 if all(one.comparable for one in reports) else 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="guard", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, does in (("check", "compare with the baseline"), ("accept", "renew what has moved beyond its limit")):
        words = verbs.add_parser(verb, help=does)
        words.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the guard")
        words.add_argument(
            "--baseline", type=Path, default=baseline.FILE, metavar="FILE", help="instead of the committed"
        )
        if verb == "accept":
            words.add_argument("--reason", required=True, metavar="TEXT", help="why; it is kept in the baseline")
    options = parser.parse_args(arguments)
    if options.verb == "accept" and not options.reason.strip():
        parser.error(f"the reason is empty; the commit needs one: {baseline.ACCEPT}")
    return options


def limit_of(name: str) -> float:
    return RATIOS if name == TIMES else COUNTS


def read(file: Path) -> dict[str, Accepted]:
    """The accepted numbers of every part; those of the kernels have a table of their own."""
    return {**baseline.read(file), KERNELS.name: kernels.accepted()}


def measure(names: Sequence[str], accepted: Mapping[str, Accepted], verb: str) -> dict[str, Measured]:
    """The counts beside one another, then the times."""
    parts = [part for part in COUNTED if part.name in names]
    with ThreadPoolExecutor(len(COUNTED)) as pool:
        measured = dict(zip([part.name for part in parts], pool.map(lambda part: part.measure(), parts), strict=True))
    if TIMES in names:
        to_accept = verb == "accept"
        measured[TIMES] = times.measure_to_accept() if to_accept else times.measure(accepted.get(TIMES), RATIOS)
    return measured


def report(name: str, accepted: Accepted | None, measured: Measured) -> Report:
    if name != TIMES:
        return baseline.report(name, accepted, measured, COUNTS)
    known = times.on_this_processor(accepted, measured)
    if known is None and accepted is not None:
        (case,) = {case for of in measured.values.values() for case in of}
        return Report([f"{TIMES}: not compared, for there is no ratio of this processor: {case}"])
    return baseline.report(TIMES, known, measured, RATIOS)


def accept(accepted: Mapping[str, Accepted], measured: Mapping[str, Measured], file: Path, reason: str) -> None:
    """Renews what has moved; the tables of the kernels only if one of their numbers has."""
    new, renewed = dict(accepted), []
    for name, of in measured.items():
        old = times.on_this_processor(accepted.get(name), of) if name == TIMES else accepted.get(name)
        latest = baseline.renewed(old, of, limit_of(name), reason)
        if latest is not old:
            renewed.append(name)
            new[name] = times.beside_others(accepted.get(name), latest) if name == TIMES else latest
    if KERNELS.name in renewed:
        kernels.renew(reason)
    del new[KERNELS.name]
    if set(renewed) - {KERNELS.name}:
        baseline.write(file, new)
    print(f"renewed, because {reason}: {', '.join(renewed)}" if renewed else "nothing has moved; nothing is renewed")
