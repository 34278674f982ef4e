"""Small tests of every operator once more under each tool of compute-sanitizer."""

import os
import shutil
import subprocess
import sys

import pytest
from support.paths import TESTS

pytestmark = pytest.mark.gpu

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
# Torch asks the driver for functions that it may not have, which would count as errors.
OPTIONS = ["--error-exitcode=66", "--target-processes=all", "--launch-timeout=0", "--report-api-errors=no"]


@pytest.mark.long
@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not on PATH: it is part of the CUDA toolkit")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_sanitizer(tool: str) -> None:
    # Torch's allocator keeps memory, in which an overrun would go unseen.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitizer = [SANITIZER, f"--tool={tool}", *OPTIONS]
    tests = [sys.executable, "-m", "pytest", "-q", "-x", TESTS, "-m", "gpu and small"]
    done = subprocess.run([*sanitizer, *tests], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
