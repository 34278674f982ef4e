"""Feeds mutated files to a reader, and judges each: read, refused in one sentence, or a failure.

A failure is any other exception (a traceback for the user), more time or more memory than the target allows, or the
death of the process. The files are tried in a process of their own, which is replaced when one kills or hangs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refinedet.errors import RefineDetError

MEBIBYTE = 1 << 20
HANG = 60.0  # seconds after which the process is ended: to tell slow from endless


@dataclass(frozen=True)
class Target:
    """A kind of input: how valid ones are made, how they are mutated, and what reads them."""

    name: str
    seeds: Callable[[Path], Sequence[Path]]  # writes valid inputs into a folder; each is read before the run
    mutate: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], object]  # as a user would; refuses with RefineDetError
    count: int = 5000  # inputs of a whole run, `make fuzz`
    ci_count: int = 500  # inputs of a test run
    seconds: float = 5.0  # of this process's own work, the most that one input may take: other processes do not count
    memory: Callable[[int], int] | None = None  # bytes that reading a file of so many bytes may take


@dataclass(frozen=True)
class Failure:
    """An input that was neither read nor refused in one sentence."""

    kind: str  # "traceback", "hang", "memory" or "death"
    number: int  # of the input: the same seed and number make it again
    file: Path  # where it is kept
    detail: str


@dataclass
class Report:
    """What became of the inputs of one target."""

    target: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)  # "read", "refused" and the kinds of failures
    failures: list[Failure] = field(default_factory=list)
    slowest: float = 0.0  # seconds

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        total = sum(self.outcomes.values())
        return f"{self.target}: seed {self.seed}, {total} inputs: {counts}; slowest {self.slowest:.2f} s"


def fuzz(target: Target, count: int, seed: int, folder: Path, on_input: Callable[[], object] = lambda: None) -> Report:
    """Try ``count`` mutated inputs of ``target``; input n depends on ``seed`` and n alone. Failing ones stay in
    ``folder``; ``on_input()`` is called after each."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = _read_samples(target, folder)
    originals = {file: file.read_bytes() for file in samples}
    report = Report(target.name, seed)
    with _Reader(target) as reader:
        for number in range(count):
            chance = random.Random(f"{seed} {number}")
            file = chance.choice(samples)
            content = target.mutate(chance, originals[file])
            file.write_bytes(content)  # in place: what refers to it, and what it refers to, stay where they are
            outcome, detail, seconds = reader.read(file)
            report.outcomes[outcome] += 1
            report.slowest = max(report.slowest, seconds)
            if outcome not in ("read", "refused"):
                kept = folder / f"{target.name}-{seed}-{number}{file.suffix}"
                kept.write_bytes(content)
                report.failures.append(Failure(outcome, number, kept, detail))
            file.write_bytes(originals[file])
            on_input()
    return report


def _read_samples(target: Target, folder: Path) -> list[Path]:
    """The valid inputs; one that cannot be read would make the run worthless."""
    samples = list(target.seeds(folder))
    with _Reader(target) as reader:
        for sample in samples:
            outcome, detail, _ = reader.read(sample)
            if outcome != "read":
                raise AssertionError(f"{target.name}: the valid input {sample} is not read: {outcome}\n{detail}")
    return samples


class _Reader:
    """A process that reads one file after the other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: multiprocessing.connection.Connection

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, file: Path) -> tuple[str, str, float]:
        """What became of the file, the details of a failure, and the seconds it took."""
        if self._process is None:
            self._start()
        allowed = None if self._target.memory is None else self._target.memory(file.stat().st_size)
        started = time.monotonic()
        self._pipe.send(file)
        try:
            if not self._pipe.poll(HANG):
                self._stop()
                return "hang", f"not done after {HANG:.0f} s", HANG
            outcome, detail, peak, seconds = self._pipe.recv()
        except EOFError:
            self._process.join()  # type: ignore[union-attr]
            status = self._process.exitcode  # type: ignore[union-attr]
            self._process = None
            return "death", f"the process ended with status {status}", time.monotonic() - started
        if seconds > self._target.seconds:
            return "hang", f"took {seconds:.1f} s, {self._target.seconds:.0f} are allowed\n{detail}", seconds
        if allowed is not None and peak > allowed:
            return "memory", f"took {peak / MEBIBYTE:.0f} MiB, {allowed / MEBIBYTE:.0f} are allowed\n{detail}", seconds
        return outcome, detail, seconds

    def _start(self) -> None:
        self._pipe, other = multiprocessing.Pipe()
        # Forked: the reader's imports are made already.
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(self._target, other), daemon=True
        )
        self._process.start()
        other.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(target: Target, pipe: multiprocessing.connection.Connection) -> None:
    warnings.simplefilter("ignore")  # a damaged file may well be warned of
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_try(target, pipe.recv()))


def _try(target: Target, file: Path) -> tuple[str, str, int, float]:
    """Outcome, detail, bytes of memory taken at the most, seconds of this process's own work."""
    # What is free in the heap goes back to the system: an input that is served from it would seem to take nothing.
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    started = time.process_time()
    outcome, detail = "read", ""
    try:
        target.read(file)
    except RefineDetError as error:
        outcome, detail = "refused", str(error)
    except BaseException:
        outcome, detail = "traceback", traceback.format_exc()
    seconds = time.process_time() - started
    return outcome, detail, max(0, _resident("VmHWM") - before), seconds


def _resident(key: str) -> int:
    match = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024
