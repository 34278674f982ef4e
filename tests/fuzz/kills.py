"""Kills training runs at any moment and resumes them: each has to go through the losses of one that never stopped.

A run is killed at a line of the package's Python, counted, or after a time, which also hits compiled code; by SIGKILL,
SIGTERM or SIGINT, to the process or to its whole group. A resumed run is killed again, until one finishes.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch._dynamo  # this and the next: here once, not in every process
import torch.utils.tensorboard
from safetensors.torch import load_file
from support.runs import recipe_content
from support.synthetic import make_voc

from fuzz.engine import Failure
from refinedet.commands.main import main
from refinedet.files import PACKAGE
from refinedet.training.folder import MODEL_FILE, STATE_FILE
from refinedet.training.logs import LOG_FILE, read_log
from refinedet.weights.checkpoint import load_training_state

COUNT = 40  # kills of a whole run, `make fuzz`
HANG = 120.0  # seconds after which a run is ended: it needs a few
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SETTINGS = {
    # Saving, logging and evaluating fall together and apart.
    "train": {"steps": 7, "workers": 1, "checkpoint_every": 2, "log_every": 3, "ema_decay": 0.9, "clip_norm": 50.0},
    "evaluate": {"every": 4},
}


@dataclass(frozen=True)
class Kill:
    """When and how a run ends."""

    number: signal.Signals
    line: int | None  # after so many lines of the package, or
    seconds: float | None  # after that time
    group: bool  # the loading process, too


@dataclass
class KillReport:
    """What became of the kills."""

    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)  # by signal, "late" where the run was done before
    runs: int = 0  # that finished, and were compared
    failures: list[Failure] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "late")

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return (
            f"kills: seed {self.seed}, {self.kills} kills of {self.runs} runs ({counts}), {len(self.failures)} failures"
        )


def kill_runs(count: int, seed: int, folder: Path, on_kill: Callable[[], object] = lambda: None) -> KillReport:
    """Kill runs ``count`` times; what goes wrong stays in ``folder``. ``on_kill()`` is called after each."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = _write_recipe(folder)
    started = time.monotonic()
    whole = _Run(folder / f"whole-{seed}", recipe)
    lines = whole.count_lines()
    seconds = time.monotonic() - started
    report = KillReport(seed)
    while report.kills < count:
        run = _Run(folder / f"run-{seed}-{report.runs}", recipe)
        finished = False
        while not finished:
            kill = _choose(chance, lines, seconds) if report.kills < count else None
            finished, problem = run.go_on(kill)
            if kill is not None:
                report.outcomes["late" if finished else kill.number.name] += 1
                on_kill()
            if not problem and finished:
                problem = whole.differences(run)
            if problem:
                report.failures.append(Failure("kill", report.kills, run.out, f"{kill}: {problem}"))
                break
        report.runs += 1
    return report


def _write_recipe(folder: Path) -> Path:
    data = make_voc(folder / "data")
    content = recipe_content(**SETTINGS, data={"root": str(data)})
    path = folder / "tiny.toml"
    lines = [
        f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in c.items()) for section, c in content.items()
    ]
    path.write_text("\n".join(lines))
    return path


def _choose(chance: random.Random, lines: int, seconds: float) -> Kill:
    number, group = chance.choice(SIGNALS), chance.random() < 0.5
    if chance.random() < 0.5:
        return Kill(number, chance.randrange(lines), None, group)
    return Kill(number, None, chance.uniform(0, seconds), group)


class _Run:
    """A run at the command line, in a process of its own that has its imports from this one."""

    def __init__(self, out: Path, recipe: Path) -> None:
        self.out = out
        self._recipe = recipe
        self._shown = out.with_suffix(".stderr")

    def count_lines(self) -> int:
        """Go through the run undisturbed; gives the number of lines of the package that this takes."""
        counted = multiprocessing.get_context("fork").Value("q", 0)

        def count() -> None:
            counted.value += 1

        status = self._start(lambda: _on_every_line(count))
        assert status == 0, self._shown.read_text()
        return int(counted.value)

    def go_on(self, kill: Kill | None) -> tuple[bool, str]:
        """Start or resume the run, and kill it; whether it finished, and what is wrong."""
        status = self._start(lambda: _prepare(kill), kill)
        shown = self._shown.read_text(errors="replace")
        if status is None:
            return False, f"not done after {HANG:.0f} s\n{shown}"
        if "Traceback" in shown or "Exception ignored" in shown:
            return False, f"a traceback, status {status}\n{shown}"
        allowed = {0} if kill is None else {0, -kill.number, 128 + kill.number}
        if status not in allowed:
            return False, f"ended with status {status}, not one of {sorted(allowed)}\n{shown}"
        if self._has_state():
            load_training_state(self.out / STATE_FILE)  # it is whole
        return status == 0, ""

    def differences(self, other: _Run) -> str:
        """What of ``other`` is not as it is here."""
        if self._log() != other._log():
            return f"other losses: {other._log()}\nnot {self._log()}"
        for name in (MODEL_FILE, STATE_FILE):
            ours, theirs = load_file(self.out / name), load_file(other.out / name)
            differ = [key for key in ours.keys() | theirs.keys() if not torch.equal(ours[key], theirs[key])]
            if differ:
                return f"{name} differs in {differ}"
        ours, theirs = ({path.name for path in run.out.iterdir()} for run in (self, other))
        return "" if ours == theirs else f"files differ: {sorted(ours ^ theirs)}"

    def _log(self) -> list[dict[str, Any]]:
        """All that is logged but the speed."""
        return [
            {key: value for key, value in entry.items() if key not in ("images_per_second", "data_wait")}
            for entry in read_log(self.out / LOG_FILE)
        ]

    def _has_state(self) -> bool:
        return (self.out / STATE_FILE).exists()

    def _start(self, prepare: Callable[[], None], kill: Kill | None = None) -> int | None:
        """The exit status of the run; None for one that hangs."""
        arguments = ["train", str(self._recipe), "--out", str(self.out), "--device", "cpu"]
        if self._has_state():
            arguments.append("--resume")
        process = multiprocessing.get_context("fork").Process(target=self._serve, args=(prepare, arguments))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            process.start()
        if kill is not None and kill.seconds is not None:
            process.join(kill.seconds)
            with contextlib.suppress(ProcessLookupError):
                _send(kill, process.pid or 0)
        process.join(HANG)
        if process.exitcode is None:
            _send(Kill(signal.SIGKILL, None, None, True), process.pid or 0)
            process.join()
            return None
        return process.exitcode

    def _serve(self, prepare: Callable[[], None], arguments: list[str]) -> None:
        with contextlib.suppress(PermissionError):
            os.setsid()  # a group of its own
        torch.set_num_threads(1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        shown = os.open(self._shown, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        try:
            prepare()
            status = main(arguments)
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT  # before the command could answer
        sys.settrace(None)
        sys.stdout.flush()
        os._exit(status)


def _prepare(kill: Kill | None) -> None:
    """Make this process kill itself, where it is to do so at a line."""
    if kill is None or kill.line is None:
        return
    left = kill.line

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            _send(kill, os.getpid())

    _on_every_line(count)


def _on_every_line(act: Callable[[], None]) -> None:
    """Call ``act`` at each line of the package that this process, but none of its children, comes to."""
    own, prefix = os.getpid(), str(PACKAGE)

    def at_line(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and os.getpid() == own:
            act()
        return at_line

    def at_call(frame: FrameType, event: str, _: object) -> Any:
        return at_line if frame.f_code.co_filename.startswith(prefix) else None

    sys.settrace(at_call)


def _send(kill: Kill, process: int) -> None:
    (os.killpg if kill.group and os.getpgid(process) == process else os.kill)(process, kill.number)
