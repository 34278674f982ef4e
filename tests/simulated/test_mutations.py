"""Every barrier and every bounds check of the CUDA kernels is needed, and the committed table says so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

TABLE = ROOT / "docs" / "kernels" / "mutations.md"


def facts(table: Path) -> str:
    """The table but for who notices a mutant first, which may depend on the machine."""
    return re.sub(r"\| \w+, (plain|address|thread) \|$", "| caught |", table.read_text(), flags=re.MULTILINE)


@pytest.mark.long
@pytest.mark.first
def test_removing_any_of_them_is_noticed(tmp_path: Path) -> None:
    written = tmp_path / "mutations.md"
    command = [sys.executable, ROOT / "tools" / "mutate.py", "--write", written]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts(written) == facts(TABLE)
