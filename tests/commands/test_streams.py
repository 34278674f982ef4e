"""What becomes of stdout and stderr when their reader goes, their disk is full, they are closed or lack a letter."""

import json
import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper

import pytest
from support.commands import TIMEOUT
from support.paths import ROOT

from refinedet.commands.streams import safe_streams

DOCTOR = [sys.executable, "-m", "refinedet", "doctor"]


def shell(command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)


def test_what_the_encoding_lacks_is_escaped(monkeypatch):
    for name, encoding, expected in (
        ("out", "ascii", b"caf\\xe9 \\udcff\n"),
        ("out", "utf-8", "café \\udcff\n".encode()),
        ("err", "latin-1", b"caf\xe9 \\udcff\n"),
    ):
        raw = BytesIO()
        monkeypatch.setattr(sys, f"std{name}", TextIOWrapper(raw, encoding=encoding, errors="strict"))
        with safe_streams():
            print("café \udcff", file=getattr(sys, f"std{name}"), flush=True)
        assert raw.getvalue() == expected


def test_a_reader_that_goes_ends_no_work(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        os.close(reader)
        with safe_streams() as out:
            print("lost", flush=True)
            print("also lost", flush=True)
        assert isinstance(out.error, BrokenPipeError)
        assert sys.stdout is stream
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # closing it writes what is left


def test_a_closed_stderr_is_not_replaced_by_stdout(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    with safe_streams():
        print("a message", file=sys.stderr)
        print("a result")
    assert capsys.readouterr().out == "a result\n"


def test_a_file_never_gets_the_number_of_a_closed_stream():
    """Else what a library prints to file descriptor 2 would go into it."""
    script = (
        "import os\nfrom refinedet.commands.streams import safe_streams\n"
        "with safe_streams():\n    number = os.open('/dev/null', os.O_RDONLY)\nraise SystemExit(number)"
    )
    assert shell(f'{sys.executable} -c "{script}" <&- >&- 2>&-').returncode > 2


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_full_stdout_is_an_error(options):
    done = shell(f"{' '.join(DOCTOR)} {options} > /dev/full")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert errors == ["refinedet: error: stdout: No space left on device; free space or choose another folder"]


def test_json_for_a_closed_stdout_is_an_error():
    done = shell(f"{' '.join(DOCTOR)} --json >&-")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("refinedet: error: --json has no stdout to go to")


def test_a_full_stdout_of_the_help_is_an_error():
    done = shell(f"{sys.executable} -m refinedet --help > /dev/full")
    assert (done.returncode, "No space left" in done.stderr) == (2, True)


def test_a_closed_stderr_leaves_the_json_alone():
    done = shell(f"{' '.join(DOCTOR)} --json 2>&-")
    assert json.loads(done.stdout)["refinedet"]
