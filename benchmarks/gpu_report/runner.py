"""Runs one part in a process of its own, so that neither a crash nor a hang of it costs the others."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu_report import machine
from gpu_report.document import CUT_OFF, FAILED, PASSED, RUNNING, SKIPPED, Figure, Lines, PartReport
from gpu_report.parts import Part

POLL = 0.1  # seconds
LAST_LINES = 15  # of the log, for a process that ends without a reason of its own


def missing(part: Part, dry_run: bool) -> str | None:
    """Why a part cannot start here: what it needs and this machine lacks."""
    packages = [name for name in part.packages if not machine.has_package(name)]
    programs = [name for name in part.programs if not dry_run and machine.find_program(name) is None]
    if packages:
        return f"not installed: {', '.join(packages)}"
    if programs:
        return f"not on PATH nor in {machine.CUDA_PROGRAMS}: {', '.join(programs)}"
    return None


def command(part: Part, out: Path, dry_run: bool) -> list[str]:
    flags = ["--dry-run"] if dry_run else []
    return [sys.executable, "-m", "gpu_report.worker", part.name, str(out), *flags]


def environment() -> dict[str, str]:
    """The source tree, not another refinedet that may be installed."""
    folders = [machine.ROOT, *(machine.ROOT / name for name in ("benchmarks", "tests", "tools"))]
    path = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def run(
    command: Sequence[str], found: PartReport, folder: Path, publish: Callable[[], None], limit: float | None = None
) -> None:
    """Run a part's process and fill in ``found``, whose limit holds unless ``limit`` is given.

    The process writes what it finds to ``<name>.jsonl`` in ``folder`` and prints to ``<name>.log``; ``publish`` is
    called whenever ``found`` has changed. Whatever ends this function early, the process and its children end too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, lines = folder / f"{found.name}.log", Lines(folder / f"{found.name}.jsonl")
    (folder / f"{found.name}.jsonl").unlink(missing_ok=True)
    begin = time.monotonic()
    found.state = RUNNING
    publish()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=machine.ROOT,
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() - begin < (limit or found.limit):
                time.sleep(POLL)
                if take(found, lines):
                    publish()
            ended = process.poll()
        except BaseException:
            found.state, found.reason = CUT_OFF, "interrupted"
            publish()
            raise
        finally:
            _stop(process)
    take(found, lines)
    found.seconds = round(time.monotonic() - begin, 1)
    if ended is None:
        found.state, found.reason = CUT_OFF, f"it took longer than its {limit or found.limit} s; what it found is kept"
    elif ended != 0 or found.state == FAILED:
        found.state, found.reason = FAILED, found.reason or _last_words(ended, log)
    elif found.state != SKIPPED:
        found.state = PASSED
    publish()


def take(found: PartReport, lines: Lines) -> bool:
    """Add the records that have come; whether there were any."""
    any_came = False
    for record in lines.new():
        any_came = True
        if "figure" in record:
            found.figures.append(Figure(**record["figure"]))
        elif "note" in record:
            found.notes.append(record["note"])
        else:
            found.state = record["state"]
            found.reason = "\n".join(filter(None, [found.reason, record["reason"]]))
    return any_came


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """The process and what it has started: all are in one group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(status: int, log: Path) -> str:
    how = f"ended by signal {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([how, *last])
