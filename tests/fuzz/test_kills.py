"""The tests of check_kills.py, in a process of their own: one that has computed gradients on several threads cannot be
forked by torch's autograd, and runs are forked from it."""

import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("check_kills.py")


def test_killed_runs_and_planted_faults():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(CHECKS)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 passed" in result.stdout
