"""Every barrier and every bounds check of the CUDA kernels is needed, and the committed table says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
TABLE = TESTS.parent / "docs" / "kernels" / "mutations.md"


def facts(table: Path) -> str:
    """The table but for who notices a mutant first, which may depend on the machine."""
    return re.sub(r"\| \w+, (plain|address|thread) \|$", "| caught |", table.read_text(), flags=re.MULTILINE)


@pytest.mark.long
def test_removing_any_of_them_is_noticed(tmp_path: Path) -> None:
    written = tmp_path / "mutations.md"
    command = [sys.executable, "-m", "cuda_on_cpu.mutate", "--write", written]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts(written) == facts(TABLE)
