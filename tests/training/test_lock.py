"""One run at a time in a folder."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.runs import PATIENCE

from refinedet.errors import InputError
from refinedet.training.lock import LOCK_FILE, refuse_running, run_lock

HOLDER = (
    "import sys\nfrom pathlib import Path\nfrom refinedet.training.lock import run_lock\n"
    "with run_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.communicate(timeout=PATIENCE)


def test_second_run_is_refused_and_told_of_the_first(holder, tmp_path):
    message = rf"a run is going on in .* \(process {holder.pid} on {socket.gethostname()}\); wait for its end"
    with pytest.raises(InputError, match=message), run_lock(tmp_path):
        pass
    with pytest.raises(InputError, match=message):
        refuse_running(tmp_path)
    holder.communicate("", timeout=PATIENCE)
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path):
        pass


def test_lock_ends_with_its_process(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=PATIENCE)
    assert (tmp_path / LOCK_FILE).exists()
    refuse_running(tmp_path)
    with run_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert list(tmp_path.iterdir()) == []


def test_lock_holds_in_one_process(tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), run_lock(tmp_path):
            pass
        with pytest.raises(InputError, match=f"process {os.getpid()}"), run_lock(tmp_path):  # still
            pass


def test_lock_is_not_inherited(tmp_path):
    """Loading processes outlive a killed run by seconds."""
    context = multiprocessing.get_context("fork")
    started, done = context.Event(), context.Event()

    def wait():
        started.set()
        done.wait()

    with run_lock(tmp_path):
        child = context.Process(target=wait)
        child.start()
        assert started.wait(PATIENCE)
    with run_lock(tmp_path):
        done.set()
        child.join()
        with pytest.raises(InputError), run_lock(tmp_path):
            pass


def test_folder_made_for_the_lock_does_not_stay_empty(tmp_path):
    with run_lock(tmp_path / "new" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "log").touch()
    assert (tmp_path / "new" / "run" / "log").exists()


def test_lock_removed_by_its_holder_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it."""
    flock, calls = fcntl.flock, []

    def late(*arguments):
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(1)
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with run_lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(InputError), run_lock(tmp_path):
            pass


def test_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="on a file system without locks .*no other run uses it"), run_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
