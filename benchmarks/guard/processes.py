"""Other processes: what they print, or a sentence for people."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guard.baseline import Measured

BENCHMARKS = Path(__file__).resolve().parents[1]
SECONDS = 120
SHOWN = 2000  # characters of what a process says of its failure: the last ones


class GuardError(RuntimeError):
    """The guard cannot measure: a sentence for people."""


def run(command: Sequence[str], failure: str, seconds: int = SECONDS, **options: Any) -> str:
    """Standard output. GuardError, which begins with ``failure``, where the command fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, **options)
    except subprocess.TimeoutExpired:
        raise GuardError(f"{failure}: no end in {seconds} s") from None
    except OSError as error:
        raise GuardError(f"{failure}: {error}") from None
    if done.returncode != 0:
        raise GuardError(f"{failure}:\n{done.stderr[-SHOWN:]}")
    return done.stdout


def measured_by(module: str, package: Path, failure: str, **environment: str) -> Measured:
    """What a module of the guard, run by itself in one thread, measures of the package in a folder, and prints."""
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (package, BENCHMARKS)))}
    printed = run([sys.executable, "-m", module], failure, env=os.environ | environment, cwd=package)
    return Measured(**json.loads(printed))
