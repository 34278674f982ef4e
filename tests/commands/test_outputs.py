"""Outputs of `detect` that fail, names that few expect, errors of the machine: one line, and nothing is lost."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from support.commands import TIMEOUT
from support.paths import ROOT
from support.synthetic import FixedNetwork, scene, tiny_checkpoint
from support.videos import make_video

import refinedet
from refinedet.commands import doctor
from refinedet.commands import main as cli
from refinedet.errors import InputError
from refinedet.inference.detector import Detector
from refinedet.training.folder import check_folder

NOT_UTF8 = os.fsdecode(b"bad\xff.png")


@pytest.fixture
def fixed(monkeypatch) -> FixedNetwork:
    network = FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.9])
    monkeypatch.setattr(refinedet, "load", lambda path, device="cpu": Detector(network), raising=False)
    return network


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 0.png, 1.png and 2.png."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        write(folder / f"{index}.png")
    return folder


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", scene(0, 60, 100)[0])[1].tobytes())
    return path


def detect(*arguments) -> int:
    return cli.main(["detect", "any", *map(str, arguments)])


def test_names_that_are_not_utf8_with_a_strict_ascii_stdout(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.safetensors")
    write(tmp_path / "in" / NOT_UTF8)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-m", "refinedet", "detect", checkpoint, tmp_path / "in", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--json", str(tmp_path / "found.json"), "--score-threshold", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'in'}/bad\\xff.png" in done.stdout
    (image,) = json.loads((tmp_path / "found.json").read_bytes().decode("utf-8"))["images"]
    assert image["path"] == f"{tmp_path / 'in'}/bad\\xff.png"  # no half of a surrogate pair
    assert (tmp_path / "out" / NOT_UTF8).stat().st_size > 0


def test_no_terminal_obeys_a_name(fixed, photos, capsys):
    write(photos / "a\nb\x1b[31m\u202egnp.png")
    (photos / "broken\r.png").write_bytes(b"")
    assert detect(photos, "--out", photos / "out") == 1
    captured = capsys.readouterr()
    assert f"{photos}/a\\nb\\x1b[31m\\u202egnp.png  disc" in captured.out
    assert f"{photos}/broken\\r.png: " in captured.err
    assert not {"\x1b", "\u202e", "\r"} & set(captured.out + captured.err)


def test_names_of_255_bytes(fixed, photos, tmp_path):
    names = [f"{'x' * 251}.png", f"{'ü' * 125}.png", f"{'y' * 251}.bmp"]
    for name in names:
        write(photos / name)
    assert detect(photos, "--out", tmp_path / "out") == 0
    assert {f"{'x' * 251}.png", f"{'ü' * 125}.png", f"{'y' * 251}.png"} < set(os.listdir(tmp_path / "out"))


def test_a_copy_whose_name_is_too_long_loses_no_other(fixed, photos, tmp_path, capsys):
    long = write(photos / "x" / f"{'z' * 251}.png")
    again = write(photos / "y" / long.name)  # its copy is numbered: two bytes more
    assert detect(photos, long, again, "--out", tmp_path / "out", "--json", tmp_path / "found.json") == 1
    document = json.loads((tmp_path / "found.json").read_text())
    assert [failure["path"] for failure in document["failed"]] == [str(again)]
    assert document["failed"][0]["error"].endswith("_2.png: File name too long; choose a shorter name")
    assert len(document["images"]) == 4
    assert len(os.listdir(tmp_path / "out")) == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_an_output_that_fails_is_one_failed_input(fixed, photos, tmp_path, capsys, monkeypatch, number):
    write_bytes = Path.write_bytes

    def failing(path, data):
        if path.name.startswith(".1."):
            raise OSError(number, os.strerror(number))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    assert detect(photos, "--out", tmp_path / "out", "--batch-size", "2", "--json") == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [Path(image["path"]).name for image in document["images"]] == ["0.png", "2.png"]
    assert [Path(failure["path"]).name for failure in document["failed"]] == ["1.png"]
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    assert os.strerror(number) in line
    assert str(tmp_path / "out" / "1.png") in line
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "2.png"]


def test_the_folder_of_copies_goes_and_a_file_takes_its_place(fixed, photos, tmp_path, capsys, monkeypatch):
    out, forward = tmp_path / "out", fixed.forward

    def removing(images, by_level):
        if len(fixed.inputs) == 1:
            (out / "0.png").unlink()
            out.rmdir()
            out.write_text("in the way")
        return forward(images, by_level=by_level)

    monkeypatch.setattr(fixed, "forward", removing)
    assert detect(photos, "--out", out, "--batch-size", "1", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [Path(failure["path"]).name for failure in document["failed"]] == ["1.png", "2.png"]


def test_a_video_that_cannot_be_written_loses_no_other(fixed, tmp_path, capsys):
    clips = [make_video(tmp_path / f"{name}.avi", frames=2) for name in "ab"]
    (tmp_path / "out" / "a.mp4").mkdir(parents=True)
    assert detect(*clips, "--out", tmp_path / "out", "--json") == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [video["path"] for video in document["videos"]] == [str(clips[1])]
    assert f"{tmp_path / 'out' / 'a.mp4'}: Is a directory" in document["failed"][0]["error"]


def test_json_that_cannot_be_written_hides_no_other_error(fixed, photos, tmp_path, capsys):
    (photos / "1.png").write_bytes(b"")
    (tmp_path / "found.json").mkdir()
    assert detect(photos, "--out", tmp_path / "out", "--json", tmp_path / "found.json") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 2
    assert "1.png" in errors[0]
    assert "found.json: Is a directory" in errors[1]


MEMORY = {
    "Python": MemoryError(),
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore lines"),
    "torch on the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you"
    ),
    "OpenCV": cv2.error(
        "OpenCV(5.0.0) error: (-4:Insufficient memory) Failed to allocate in function 'OutOfMemoryError'"
    ),
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY.keys())
def test_the_end_of_memory_is_one_line_and_keeps_what_was_found(fixed, photos, tmp_path, capsys, monkeypatch, error):
    forward = fixed.forward

    def exhausting(images, by_level):
        if len(fixed.inputs) == 1:
            raise error
        return forward(images, by_level=by_level)

    monkeypatch.setattr(fixed, "forward", exhausting)
    assert detect(photos, "--out", tmp_path / "out", "--batch-size", "1", "--json") == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [Path(image["path"]).name for image in document["images"]] == ["0.png"]
    assert [Path(path).name for path in document["remaining"]] == ["1.png", "2.png"]
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    assert line.startswith("refinedet: error: out of memory")
    assert line.endswith("lower the batch size, or free memory")


def test_a_fault_of_the_package_shows_where_and_asks_for_a_report(fixed, photos, tmp_path, capsys, monkeypatch):
    def faulty(images, by_level):
        raise KeyError("no such layer")

    monkeypatch.setattr(fixed, "forward", faulty)
    assert detect(photos, "--out", tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "in faulty" in error
    assert error.splitlines()[-1].startswith(f"refinedet: error: this is a fault of refinedet {refinedet.__version__}")


def test_a_library_that_takes_utf8_only_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "report", lambda: NOT_UTF8.encode())
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == (
        "refinedet: error: bad\\xff.png cannot be written in utf-8; rename the file or folder\n"
    )


def test_videos_whose_names_are_not_utf8(fixed, tmp_path, capsys):
    """OpenCV ends the process for such a name, of the video or of the folder of its copy."""
    folder = tmp_path / os.fsdecode(b"clips\xfe")
    folder.mkdir()
    clip = make_video(tmp_path / "clip.avi", frames=2).rename(folder / os.fsdecode(b"clip\xff.avi"))
    assert detect(clip, "--out", folder / "out", "--json") == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    assert video["path"].endswith("/clips\\xfe/clip\\xff.avi")
    assert len(video["frames"]) == 2
    assert (folder / "out" / os.fsdecode(b"clip\xff.mp4")).stat().st_size > 0


def test_a_checkpoint_whose_name_is_not_utf8(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.safetensors").rename(tmp_path / os.fsdecode(b"tiny\xff.safetensors"))
    image = write(tmp_path / "0.png")
    assert cli.main(["detect", str(checkpoint), str(image), "--out", str(tmp_path / "out")]) == 0


def test_a_run_in_a_folder_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"run\\udcff' is not UTF-8, which TensorBoard"):
        check_folder(tmp_path / os.fsdecode(b"run\xff"), resume=False)
