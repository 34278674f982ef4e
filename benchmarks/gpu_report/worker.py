"""The process of one part: ``python -m gpu_report.worker PART OUT [--dry-run]``.

It imports ``gpu_report.stages.<part>`` and calls its ``run`` with a `Job`, through which the part reports.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gpu_times
import torch

from gpu_report.document import FAILED, SKIPPED, Figure

Call = Callable[[], Any]
FLUSHED = 256 << 20  # bytes, more than any L2


class Skip(Exception):
    """Why a part cannot be done here, though nothing is wrong."""


@dataclass(frozen=True)
class Job:
    """What a part works with. In a dry run everything runs on the CPU, once and small."""

    records: Path  # where the parent reads what is found
    out: Path  # for files that stay
    dry_run: bool

    # --- What is found, written at once.

    def figure(self, case: str, name: str, value: float, unit: str) -> None:
        self._write({"figure": asdict(Figure(case, name, float(value), unit))})

    def figures(self, case: str, unit: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.figure(case, name, value, unit)

    def note(self, text: str) -> None:
        self._write({"note": text})

    def fail(self, reason: str) -> None:
        """The part has failed, and goes on."""
        self._write({"state": FAILED, "reason": reason})

    def skip(self, reason: str) -> None:
        self._write({"state": SKIPPED, "reason": reason})

    @contextmanager
    def tolerated(self, what: str) -> Iterator[None]:
        """An error of other people's code becomes a note; in a dry run it stays an error."""
        try:
            yield
        except Exception as error:
            if self.dry_run:
                raise
            traceback.print_exc()
            self.note(f"skipped: {what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")

    def _write(self, record: Mapping[str, Any]) -> None:
        with self.records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    # --- The device, and its clock.

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.dry_run else torch.device("cuda", 0)

    @cached_property
    def _flushed(self) -> torch.Tensor:
        return torch.empty(8 if self.dry_run else FLUSHED, dtype=torch.uint8, device=self.device)

    def flush(self) -> None:
        """Queues the writing of so much memory that nothing else is left in L2."""
        self._flushed.zero_()

    def flush_and_wait(self) -> None:
        self.flush()
        self.wait()

    def wait(self) -> None:
        if not self.dry_run:
            torch.cuda.synchronize()

    def graph(self, call: Call) -> Call:
        """The call as a CUDA graph, to be replayed."""
        from support.gpu import captured  # not above: it loads the extension, which is still to be built

        return call if self.dry_run else _Replay(*captured(call))

    def busy(self) -> None:
        """Queues some 0.1 ms of work, in which the host queues what is measured."""
        if not self.dry_run:
            gpu_times.busy()

    def microseconds(self, call: Call, before: Call = gpu_times.nothing, rounds: int = gpu_times.ROUNDS) -> float:
        """Median time of a call on the device, by CUDA events; ``before`` is queued ahead of the first of them."""
        if not self.dry_run:
            return gpu_times.microseconds(call, before, rounds)
        before()
        return 1e6 * _seconds(call)

    def host_milliseconds(self, call: Call, rounds: int) -> float:
        """Median time of a call on the clock of the host, with what it has queued on the GPU."""

        def whole() -> None:
            call()
            self.wait()

        if self.dry_run:
            return 1e3 * _seconds(whole)
        whole()
        return 1e3 * statistics.median(_seconds(whole) for _ in range(rounds))


def measure_call(job: Job, call: Call, capturable: bool = True, rounds: int = gpu_times.ROUNDS) -> dict[str, float]:
    """Medians of microseconds:

    graph, warm    a CUDA graph of one call, replayed: the kernels alone
    graph, cold    the same with nothing of it in L2
    eager, warm    a call from Python to a GPU that waits for it: with what the host adds
    eager, cold    the same with nothing of it in L2
    """
    call()
    times = {}
    if capturable:
        graph = job.graph(call)
        times["graph, warm"] = job.microseconds(graph, job.busy, rounds)
        times["graph, cold"] = job.microseconds(graph, job.flush, rounds)
    times["eager, warm"] = job.microseconds(call, rounds=rounds)
    times["eager, cold"] = job.microseconds(call, job.flush_and_wait, rounds)
    return times


@dataclass(frozen=True)
class _Replay:
    """A graph with its result, whose memory lives as long."""

    graph: Any
    result: Any

    def __call__(self) -> None:
        self.graph.replay()


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_report.worker")
    parser.add_argument("part")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    job = Job(options.out / "parts" / f"{options.part}.jsonl", options.out, options.dry_run)
    try:
        importlib.import_module(f"gpu_report.stages.{options.part}").run(job)
    except Skip as reason:
        job.skip(str(reason))
    except Exception as error:
        traceback.print_exc()
        job.fail(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
