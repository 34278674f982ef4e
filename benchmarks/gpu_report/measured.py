"""docs/kernels/measured.md, from the reports in benchmarks/results. ``python -m gpu_report.measured`` writes it anew.

It runs with ``benchmarks`` on Python's path, and by the standard library only.
"""

from collections.abc import Iterator
from pathlib import Path

from gpu_report import document, machine
from gpu_report.document import SKIPPED, Report, ReportError
from gpu_report.page import figures, table

RESULTS = machine.ROOT / "benchmarks" / "results"
PAGE = machine.ROOT / "docs" / "kernels" / "measured.md"
SHOWN = ("operators", "counters", "calibration", "networks", "compiled", "images", "training")

ABOUT = """\
# Measured

Made from the reports in `benchmarks/results` by `PYTHONPATH=benchmarks python -m gpu_report.measured`; a test compares.
A report comes from `make gpu-report` on a machine with a GPU ([profiling.md](../profiling.md)).

"""
NOTHING = "**No report lies there yet: every time in this folder is a prediction.**\n"


def main() -> None:
    document.write_text(PAGE, markdown(RESULTS))


def markdown(folder: Path) -> str:
    """Raises ReportError for a file that is no report, and for that of a dry run."""
    paths = sorted(folder.glob("*.json"))
    return ABOUT + ("\n".join(line for path in paths for line in section(path)) if paths else NOTHING)


def section(path: Path) -> Iterator[str]:
    report = document.load(path)
    if report.dry_run:
        raise ReportError(f"{path} is of a dry run, in which no GPU took part: remove it")
    yield f"## {report.machine['device']}, {report.started[:10]}"
    yield ""
    yield f"From `benchmarks/results/{path.name}`."
    yield ""
    yield from table(["", ""], [[name, value] for name, value in report.machine.items()])
    yield from _open_questions(report)
    for name in SHOWN:
        for part in report.parts:
            if part.name == name and part.figures:
                yield f"### {part.title}"
                yield ""
                yield from figures(part.figures)


def _open_questions(report: Report) -> Iterator[str]:
    """What failed or did not run stands before the numbers."""
    parts = [part for part in report.parts if part in report.broken or part.state == SKIPPED]
    for part in parts:
        yield f"- {part.title}: {part.state} ({part.reason.partition(chr(10))[0]})"
    if parts:
        yield ""


if __name__ == "__main__":
    main()
