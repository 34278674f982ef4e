"""Five hundred mutated inputs of each kind, fewer of videos: each is read, or refused in one sentence, in bounded time
and memory."""

import os
import random
import re
import subprocess
import sys
import time

import pytest
from support.paths import ROOT

from fuzz import find_targets
from fuzz.engine import Target, fuzz
from fuzz.mutations import damage_bytes
from refinedet.errors import DataError

SEED = 20261128
FUZZ = ROOT / "tests" / "fuzz"


@pytest.mark.parametrize("name", sorted(find_targets()))
def test_mutated_inputs_are_read_or_refused(name, tmp_path):
    """In a process of its own: one that has computed gradients before cannot be forked (torch's autograd)."""
    count = find_targets()[name].ci_count
    command = [sys.executable, FUZZ, "--only", name, "--count", str(count), "--seed", str(SEED), "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    outcomes = {outcome: int(number) for number, outcome in re.findall(r"(\d+) (read|refused)", result.stdout)}
    # Where one of them is missing the mutations do nothing, or end before the reader begins.
    assert min(outcomes["refused"], outcomes["read"]) > 20, result.stdout
    assert sum(outcomes.values()) == count


def planted(tmp_path, read, **limits) -> dict[str, int]:
    """The outcomes of eight inputs under a reader with a fault."""

    def make_seeds(folder):
        (folder / "seed.txt").write_bytes(b"sound")
        return [folder / "seed.txt"]

    def read_or_fail(path):
        if path.read_bytes() != b"sound":
            read(path)

    target = Target("planted", make_seeds, damage_bytes, read_or_fail, **limits)
    return dict(fuzz(target, 8, SEED, tmp_path).outcomes)


def test_a_refusal_is_no_failure(tmp_path):
    def refuse(path):
        raise DataError("no")

    assert planted(tmp_path, refuse).keys() <= {"refused", "read"}


def test_planted_traceback_is_found(tmp_path):
    def fail(path):
        raise KeyError("bbox")

    assert planted(tmp_path, fail)["traceback"] > 0


def test_planted_hang_is_found(tmp_path):
    def work(path):
        start = time.process_time()
        while time.process_time() < start + 0.2:
            pass

    assert planted(tmp_path, work, seconds=0.1)["hang"] > 0


def eat_64_mebibytes(path):
    bytearray(64 << 20)[::4096] = b"x" * (64 << 20 >> 12)


def leave_a_hole_in_the_heap():
    """A free run of 120 MiB that stays in the process: freeing one such block has glibc take the next from its heap."""
    for count in (1, 4):
        fill = [bytearray(b"x") * (30 << 20) for _ in range(count)]
        fence = [bytearray(1000) for _ in range(2000)]  # behind the run, or its end would be given back
        fill.clear()
    return fence


@pytest.mark.parametrize("prepare", [lambda: None, leave_a_hole_in_the_heap], ids=["as it is", "with a hole"])
def test_planted_appetite_is_found(tmp_path, prepare):
    fence = prepare()
    outcomes = planted(tmp_path, eat_64_mebibytes, memory=lambda size: 2 * size + (16 << 20))
    assert outcomes.get("memory", 0) > 0, outcomes
    del fence


def test_planted_death_is_found(tmp_path):
    def die(path):
        os._exit(3)

    assert planted(tmp_path, die)["death"] > 0


def test_an_input_depends_on_seed_and_number_alone():
    content = bytes(range(256))
    assert damage_bytes(random.Random("1 2"), content) == damage_bytes(random.Random("1 2"), content)
    assert len({damage_bytes(random.Random(f"1 {n}"), content) for n in range(50)}) > 40
