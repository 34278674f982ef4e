"""examples/serve: the endpoint is started, asked and stopped as a user does it."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.commands import TIMEOUT, mortal
from support.paths import ROOT

import refinedet

SERVER = ROOT / "examples" / "serve" / "server.py"
PHOTOGRAPH = ROOT / "examples" / "bccd" / "BloodImage_00031.jpg"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes_of(group: int) -> list[int]:
    """Those of a process group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group_of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(group_of) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def answer(url: str, body: bytes | None = None, content_type: str = "image/jpeg") -> tuple[int, str]:
    """Status and text of the answer to a GET or, with a body, a POST."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type} if body is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:  # nobody listens yet
        return 0, ""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The running example: its address and its process, the leader of a group of its own."""
    folder = tmp_path_factory.mktemp("serve")
    url = f"http://127.0.0.1:{(port := free_port())}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            mortal(str(SERVER), "bccd", "--port", str(port)),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
    try:
        wait_for(lambda: answer(f"{url}/health")[0] == 200 or process.poll() is not None, "the server does not start")
        assert process.poll() is None, (folder / "log").read_text()
        yield url, process
    finally:
        if processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert [path.name for path in folder.iterdir()] == ["log"]  # LitServe writes a client by default


def test_finds_what_the_detector_finds(server):
    status, text = answer(f"{server[0]}/detect", PHOTOGRAPH.read_bytes())
    (found,) = refinedet.load("bccd").detect(PHOTOGRAPH, score_threshold=0.5)
    objects = json.loads(text)
    assert status == 200
    assert [row["class"] for row in objects] == found.names
    assert len(objects) > 10
    assert [row["score"] for row in objects] == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert [value for row in objects for value in row["box"]] == pytest.approx(found.boxes.flatten().tolist(), abs=1e-3)


@pytest.mark.parametrize("content_type", ["image/png", "application/x-www-form-urlencoded"])  # the second is curl's own
def test_a_body_that_is_no_image_is_the_clients_fault(server, content_type):
    status, text = answer(f"{server[0]}/detect", b"no image", content_type)
    assert status == 400
    assert json.loads(text)["detail"].startswith("image 0: not an image that OpenCV can decode (8 bytes")


def test_a_body_that_is_too_large_is_refused(server):
    assert answer(f"{server[0]}/detect", bytes((32 << 20) + 1))[0] == 413
    assert answer(f"{server[0]}/detect", PHOTOGRAPH.read_bytes())[0] == 200  # it goes on


def test_sigterm_leaves_no_process(server):
    """What `docker stop` sends. The last test of this file: it ends the server."""
    process = server[1]
    assert len(processes_of(process.pid)) > 2
    process.terminate()
    assert process.wait(TIMEOUT) == 0
    wait_for(lambda: not processes_of(process.pid), "processes are left")
