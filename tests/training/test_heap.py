"""The memory that training keeps, in a process of its own: the setting is for its whole life."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from refinedet.training.heap import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(1 << 25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = keep_freed_memory()
for _ in range(5):  # until the places of the tensors, a few bytes apart, come round again
    faults()
print(kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="of glibc")
@pytest.mark.parametrize(("variables", "expected"), [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False)])
def test_freed_memory_is_kept_unless_the_user_has_a_say(variables, expected):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", CODE]
    run = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True, timeout=300)
    kept, faults = run.stdout.split()
    assert kept == str(expected)
    assert (int(faults) < 1000) is expected  # 3 times 128 MiB are 98,304 pages
