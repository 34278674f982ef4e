"""The command line: which parts, in which folder, and what of it went wrong."""

import argparse
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from gpu_report import document, machine, page, runner
from gpu_report.document import PASSED, SKIPPED, PartReport, Report, ReportError
from gpu_report.parts import CALIBRATION, DRY_LIMIT, PARTS, Part

REPORT = "report.json"
PAGE = "report.md"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 where every part has passed or is skipped, 1 where not, 2 where it cannot start."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        parts = chosen(options)
        report = prepare(options, parts)
    except ReportError as error:
        print(f"gpu-report: {error}", file=sys.stderr)
        return 2
    try:
        run_parts(parts, report, options.out)
    except KeyboardInterrupt:
        print(f"gpu-report: interrupted; what was found is in {options.out}", file=sys.stderr)
        return 130
    print(f"{options.out / PAGE}, {options.out / REPORT}")
    return 1 if report.broken else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-report", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the report (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="go through every part on the CPU, without a GPU")
    parser.add_argument("--calibrate", action="store_true", help="at the end fit the cost model to what was measured")
    parser.add_argument("--resume", action="store_true", help="keep what has passed in a report of the same kernels")
    parser.add_argument("--only", nargs="+", metavar="PART", help="of " + ", ".join(part.name for part in PARTS))
    parser.add_argument("--commit", help="for the report, where the source tree has no git")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    return options


def chosen(options: argparse.Namespace) -> list[Part]:
    """The parts to run. A dry run has all of them, calibration included."""
    names = [part.name for part in PARTS]
    unknown = [name for name in options.only or () if name not in names]
    if unknown:
        raise ReportError(f"--only names {', '.join(unknown)}; the parts are {', '.join(names)}")
    parts = [part for part in PARTS if options.only is None or part.name in options.only]
    return [*parts, CALIBRATION] if options.calibrate or (options.dry_run and options.only is None) else parts


def prepare(options: argparse.Namespace, parts: list[Part]) -> Report:
    """An empty report, or with ``--resume`` that of the folder, which has to be of this machine and these kernels."""
    if not options.dry_run and machine.gpu() is None:
        raise ReportError("nvidia-smi finds no GPU here: --dry-run goes through every part on the CPU")
    facts = machine.describe(options.commit)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report = Report(options.dry_run, now, facts, [PartReport(p.name, p.title, p.limit) for p in parts])
    if options.resume:
        _take_over(report, options.out / REPORT)
    return report


def _take_over(report: Report, path: Path) -> None:
    """What has passed in an older report; with all its other parts, which its page then still shows."""
    old = document.load(path)
    for fact in ("device", "driver", "kernels", "torch"):
        if old.machine.get(fact) != report.machine.get(fact):
            raise ReportError(
                f"{path} is of another {fact} ({old.machine.get(fact)}, here {report.machine.get(fact)}): "
                "run without --resume"
            )
    if old.dry_run != report.dry_run:
        raise ReportError(f"{path} {'is' if old.dry_run else 'is not'} of a dry run: run without --resume")
    report.started = old.started
    done = {part.name: part for part in old.parts if part.state == PASSED and part.name != CALIBRATION.name}
    order = [part.name for part in (*PARTS, CALIBRATION)]
    parts = {part.name: part for part in old.parts} | {part.name: part for part in report.parts} | done
    report.parts = sorted(parts.values(), key=lambda part: order.index(part.name))


def run_parts(parts: list[Part], report: Report, out: Path) -> None:
    def publish() -> None:
        report.save(out / REPORT)
        document.write_text(out / PAGE, page.markdown(report))

    publish()
    for part in parts:
        found = report.part(part.name)
        if found.state == PASSED:
            continue
        reason = runner.missing(part, report.dry_run)
        begin = time.monotonic()
        if reason is not None:
            found.state, found.reason, found.seconds = SKIPPED, reason, 0.0
            publish()
        else:
            limit = max(part.limit, DRY_LIMIT) if report.dry_run else part.limit
            runner.run(runner.command(part, out, report.dry_run), found, out / "parts", publish, limit)
        print(f"{part.name:<16} {found.state:<8} {time.monotonic() - begin:6.1f} s  {_first_line(found)}", flush=True)


def _first_line(found: PartReport) -> str:
    return found.reason.partition("\n")[0]


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
