"""Bad input at the command line: one clear error that names the file, no traceback, nothing lost."""

import errno
import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.commands import RECIPE, TIMEOUT
from support.paths import ROOT
from support.synthetic import FixedNetwork, make_coco, make_voc, scene, tiny_checkpoint

import refinedet
from refinedet.commands import main as cli
from refinedet.inference.detector import Detector


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def voc(tmp_path) -> Path:
    return make_voc(tmp_path / "voc")


@pytest.fixture
def fixed(monkeypatch) -> FixedNetwork:
    network = FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.9])
    monkeypatch.setattr(refinedet, "load", lambda path, device="cpu": Detector(network), raising=False)
    return network


@pytest.fixture
def refuse(capsys):
    """Run the command, which must end with status 2 and one line that holds all the words."""

    def check(*arguments, words: tuple[str, ...]) -> None:
        status = cli.main([str(argument) for argument in arguments])
        errors = [line for line in capsys.readouterr().err.splitlines() if "refinedet: error: " in line]
        assert status == 2
        assert len(errors) == 1
        for word in words:
            assert str(word) in errors[0]

    return check


# images --------------------------------------------------------------------------------------------------------------


def _image_files(folder: Path) -> dict[str, Path]:
    """One picture in every kind of file that must be read; the name tells the kind."""
    bgr = scene(0, 60, 100)[0]
    rgb = Image.fromarray(bgr[..., ::-1])
    grey = rgb.convert("L")
    writers = {
        "grey.png": grey.save,
        "grey.jpg": grey.save,
        "grey_alpha.png": rgb.convert("LA").save,
        "alpha.png": rgb.convert("RGBA").save,
        "palette.png": rgb.convert("P").save,
        "cmyk.jpg": rgb.convert("CMYK").save,
        "bilevel.png": rgb.convert("1").save,
        "colour.bmp": rgb.save,
        "colour.webp": rgb.save,
        "deep.png": lambda path: cv2.imwrite(str(path), bgr.astype(np.uint16) * 257),
        "deep_grey.png": lambda path: cv2.imwrite(str(path), bgr[..., 0].astype(np.uint16) * 257),
        "deep.tiff": lambda path: cv2.imwrite(str(path), bgr.astype(np.uint16) * 257),
        "ünïcode name.png": rgb.save,
        "no_suffix": lambda path: rgb.save(path, format="PNG"),
    }
    for name, write in writers.items():
        write(folder / name)
    return {name: folder / name for name in writers}


def test_every_kind_of_image_is_read_and_drawn(fixed, tmp_path, capsys):
    files = _image_files(tmp_path)
    assert cli.main(["detect", "any", *map(str, files.values()), "--out", str(tmp_path / "out"), "--json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [(image["width"], image["height"]) for image in images] == [(100, 60)] * len(files)
    assert all(image["detections"][0]["box"] == [25, 15, 75, 45] for image in images)
    for image in images:
        assert cv2.imread(image["output"]).shape == (60, 100, 3)
    inputs = dict(zip(files, torch.cat(fixed.inputs), strict=True))
    assert torch.equal(inputs["deep.png"], inputs["ünïcode name.png"])  # 16 bit: the full range, not the low byte
    assert torch.equal(inputs["deep.tiff"], inputs["ünïcode name.png"])
    assert torch.equal(inputs["alpha.png"], inputs["ünïcode name.png"])
    assert torch.equal(inputs["grey.png"], inputs["grey_alpha.png"])
    assert (inputs["cmyk.jpg"] - inputs["ünïcode name.png"]).abs().mean() < 12  # neither inverted nor swapped


def _unreadable_files(folder: Path) -> dict[str, Path]:
    whole = {suffix: cv2.imencode(suffix, scene(0)[0])[1].tobytes() for suffix in (".jpg", ".png")}
    contents = {
        "zero.jpg": b"",
        "junk.jpg": b"\x00junk" * 50,
        "text.png": b"<html>404 Not Found</html>",
        "cut.jpg": whole[".jpg"][: len(whole[".jpg"]) // 2],
        "cut.png": whole[".png"][: len(whole[".png"]) // 2],
        "header.jpg": whole[".jpg"][:20],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


@pytest.mark.parametrize("name", ["zero.jpg", "junk.jpg", "text.png", "cut.jpg", "cut.png", "header.jpg"])
def test_an_unreadable_image(fixed, tmp_path, refuse, name):
    path = _unreadable_files(tmp_path)[name]
    refuse("detect", "any", path, "--out", tmp_path / "out", words=(path,))
    assert fixed.inputs == []


def test_a_missing_image_is_told_before_any_work(fixed, tmp_path, refuse):
    cv2.imwrite(str(tmp_path / "good.png"), scene(0)[0])
    words = (tmp_path / "absent.jpg", "no such file", "check the path")
    refuse("detect", "any", tmp_path / "good.png", tmp_path / "absent.jpg", "--out", tmp_path / "out", words=words)
    assert fixed.inputs == []


def test_a_folder_without_images(fixed, tmp_path, refuse):
    (tmp_path / "empty").mkdir()
    refuse("detect", "any", tmp_path / "empty", words=(tmp_path / "empty", "no image or video"))


def test_an_output_folder_that_is_a_file(fixed, tmp_path, refuse):
    cv2.imwrite(str(tmp_path / "good.png"), scene(0)[0])
    (tmp_path / "out").write_text("a file")
    refuse("detect", "any", tmp_path / "good.png", "--out", tmp_path / "out", words=(tmp_path / "out", "give a folder"))
    assert (tmp_path / "out").read_text() == "a file"


def test_a_full_disk_keeps_the_previous_result(fixed, tmp_path, refuse, monkeypatch):
    cv2.imwrite(str(tmp_path / "good.png"), scene(0)[0])
    out = tmp_path / "out"
    assert cli.main(["detect", "any", str(tmp_path / "good.png"), "--out", str(out)]) == 0
    before = (out / "good.png").read_bytes()

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    refuse("detect", "any", tmp_path / "good.png", "--out", out, words=("No space left on device", out))
    assert (out / "good.png").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["good.png"]


def test_a_full_disk_names_the_file_and_the_fix(fixed, tmp_path, refuse):
    """The system's own error for a failing write names no file."""
    cv2.imwrite(str(tmp_path / "good.png"), scene(0)[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    words = (tmp_path / "out" / "good.png", "File too large; free space or choose another folder")
    try:
        refuse("detect", "any", tmp_path / "good.png", "--out", tmp_path / "out", words=words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# checkpoints ---------------------------------------------------------------------------------------------------------


class _Malicious:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def _write_malicious(path: Path, marker: Path, kind: str) -> Path:
    if kind == "torch":
        torch.save({"model": _Malicious(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(_Malicious(marker), protocol=2))
    return path


def test_the_malicious_pickle_works_when_unpickled(tmp_path):
    path = _write_malicious(tmp_path / "bad.pth", tmp_path / "executed", "torch")
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
@pytest.mark.parametrize("command", ["detect", "evaluate"])
def test_a_malicious_checkpoint_is_refused_and_not_executed(voc, tmp_path, refuse, command, name, kind):
    marker = tmp_path / "executed"
    path = _write_malicious(tmp_path / name, marker, kind)
    arguments = [voc / "JPEGImages"] if command == "detect" else ["--data", voc]
    refuse(command, path, *arguments, words=(path,))
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
def test_malicious_backbone_weights_are_refused_and_not_executed(voc, tmp_path, refuse, name, kind):
    marker = tmp_path / "executed"
    path = _write_malicious(tmp_path / name, marker, kind)
    (tmp_path / "tiny.toml").write_text(RECIPE.format(steps=1))
    arguments = ("--data", voc, "--out", tmp_path / "run", "--weights", path)
    refuse("train", tmp_path / "tiny.toml", *arguments, words=(path,))
    assert not marker.exists()


def _wrong_checkpoints(folder: Path, checkpoint: Path) -> dict[str, Path]:
    whole = checkpoint.read_bytes()
    for name, content in {
        "zero.safetensors": b"",
        "cut.safetensors": whole[: len(whole) // 2],
        "header.safetensors": whole[:100],
        "photo.jpg": cv2.imencode(".jpg", scene(0)[0])[1].tobytes(),
        "text.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }.items():
        (folder / name).write_bytes(content)
    save_file({"weight": torch.zeros(3)}, str(folder / "foreign.safetensors"))
    torch.save({"weight": torch.zeros(3)}, folder / "weights.pth")
    return {path.name: path for path in folder.iterdir()}


WRONG_CHECKPOINTS = [
    "zero.safetensors",
    "cut.safetensors",
    "header.safetensors",
    "photo.jpg",
    "text.safetensors",
    "foreign.safetensors",
    "weights.pth",
]


@pytest.mark.parametrize("name", WRONG_CHECKPOINTS)
def test_a_wrong_file_for_a_checkpoint(checkpoint, voc, tmp_path, refuse, name):
    (tmp_path / "files").mkdir()
    path = _wrong_checkpoints(tmp_path / "files", checkpoint)[name]
    refuse("detect", path, voc / "JPEGImages", "--out", tmp_path / "out", words=(path,))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_absent_or_a_folder(voc, tmp_path, refuse):
    refuse("detect", tmp_path / "absent.safetensors", voc / "JPEGImages", words=(tmp_path / "absent.safetensors",))
    refuse("detect", "no-such-name", voc / "JPEGImages", words=("no-such-name",))
    refuse("detect", tmp_path, voc / "JPEGImages", words=(tmp_path, "folder"))


# data sets and recipes -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_other_classes(tmp_path, voc, refuse):
    other = tiny_checkpoint(tmp_path / "other.safetensors", classes=("cat", "dog", "bird"))
    refuse("evaluate", other, "--data", voc, words=("cat", "bird"))


def test_a_data_set_that_is_absent_empty_or_damaged(checkpoint, tmp_path, voc, refuse):
    refuse("evaluate", checkpoint, "--data", tmp_path / "absent", words=(tmp_path / "absent",))
    refuse("evaluate", checkpoint, "--data", voc, "--split", "testing", words=("testing",))
    (voc / "ImageSets" / "Main" / "test.txt").write_text("")
    refuse("evaluate", checkpoint, "--data", voc, words=("test.txt",))
    (voc / "ImageSets" / "Main" / "test.txt").write_text("999999\n")
    refuse("evaluate", checkpoint, "--data", voc, words=("999999",))


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [("</annotation>", "", "000006.xml"), ("<name>disc</name>", "<name>cube</name>", "cube")],
)
def test_a_damaged_voc_annotation(checkpoint, voc, refuse, old, new, word):
    path = voc / "Annotations" / "000006.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    refuse("evaluate", checkpoint, "--data", voc, words=(path, word))


def test_an_unusable_box_is_one_line_of_warning(checkpoint, voc, capsys):
    path = voc / "Annotations" / "000006.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin>9", 1))
    assert cli.main(["evaluate", str(checkpoint), "--data", str(voc)]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "000006.xml" in line]
    assert line.startswith("refinedet: warning: ")
    assert "inverted boxes, dropped: 1" in line


def test_a_damaged_coco_annotation(checkpoint, tmp_path, refuse):
    root = make_coco(tmp_path / "coco")
    path = root / "annotations" / "instances_val.json"
    path.write_text(path.read_text()[:-40])
    refuse("evaluate", checkpoint, "--data", root, "--split", "val", words=(path,))


def test_an_image_of_the_data_set_that_is_absent_or_damaged(checkpoint, voc, refuse):
    path = voc / "JPEGImages" / "000007.jpg"
    path.write_bytes(path.read_bytes()[:300])
    refuse("evaluate", checkpoint, "--data", voc, words=("000007.jpg",))
    path.unlink()
    refuse("evaluate", checkpoint, "--data", voc, words=("000007",))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("size = 64", "size = 100", ("model.size", "100", "multiples of 64")),
        ("size = 64", "size = [64, 130]", ("model.size", "130", "multiples of 64")),
        ("lr = ", "learning_rate = ", ("learning_rate",)),
        ("steps = 1", "steps = 0", ("steps", "0")),
        ("batch_size = 2", 'batch_size = "two"', ("batch_size", "two")),
        ('"squeezenet"', '"squeezenet11"', ("squeezenet11",)),
        ("[model]", "[model", ("tiny.toml",)),
    ],
)
def test_a_wrong_recipe(tmp_path, voc, refuse, old, new, words):
    text = RECIPE.format(steps=1)
    assert old in text
    (tmp_path / "tiny.toml").write_text(text.replace(old, new, 1))
    refuse("train", tmp_path / "tiny.toml", "--data", voc, "--out", tmp_path / "run", words=words)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_a_recipe_that_is_absent(tmp_path, voc, refuse):
    refuse("train", tmp_path / "absent.toml", "--data", voc, words=("absent",))


def test_nothing_to_resume(tmp_path, voc, refuse):
    (tmp_path / "tiny.toml").write_text(RECIPE.format(steps=1))
    refuse(
        "train", tmp_path / "tiny.toml", "--data", voc, "--out", tmp_path / "run", "--resume", words=(tmp_path / "run",)
    )


def test_at_the_shell_there_is_no_traceback(tmp_path, voc):
    path = _write_malicious(tmp_path / "bad.pth", tmp_path / "executed", "torch")
    done = subprocess.run(
        [sys.executable, "-m", "refinedet", "detect", str(path), str(voc / "JPEGImages")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("refinedet: error: ")
    assert str(path) in line
    assert not (tmp_path / "executed").exists()
