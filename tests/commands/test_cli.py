"""The ``refinedet`` command: outputs, exit statuses, JSON. Most tests call main() to spare the start of a process."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.commands import RECIPE, TIMEOUT, mortal
from support.paths import ROOT
from support.synthetic import CLASSES, FixedNetwork, make_voc, scene, tiny_checkpoint
from support.videos import make_video

import refinedet
from refinedet.commands import annotate
from refinedet.commands import main as cli
from refinedet.commands.messages import say_error
from refinedet.commands.train import resume_command
from refinedet.inference import detector
from refinedet.inference.detector import Detector
from refinedet.inference.draw import draw

BOX = [0.25, 0.25, 0.75, 0.75]


def run(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "refinedet", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    return make_voc(tmp_path_factory.mktemp("data") / "voc")


@pytest.fixture
def fixed(monkeypatch) -> FixedNetwork:
    """The network of the detector that the command loads in this test: it finds a disc (0.9) and a square (0.4) in
    every image."""
    network = FixedNetwork([BOX, [0.0, 0.0, 0.2, 0.3]], [1, 2], [0.9, 0.4])
    monkeypatch.setattr(refinedet, "load", lambda path, device="cpu": Detector(network), raising=False)
    return network


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with five images of different sizes, a text and an image in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for index in range(5):
        cv2.imwrite(str(folder / f"{index}.png"), scene(index, 60 + 10 * index, 100)[0])
    (folder / "notes.txt").write_text("no image")
    cv2.imwrite(str(folder / "deeper" / "below.png"), scene(9)[0])
    return folder


def test_help_and_version_are_quick_and_need_no_torch():
    script = (
        "import sys, time\nstarted = time.process_time()\nfrom refinedet.commands.main import main\n"
        "try:\n    main(['{}'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {{'torch', 'cv2', 'numpy'}} & sys.modules.keys()\nprint(time.process_time() - started)"
    )
    for option, text in (("--help", "detect"), ("--version", f"refinedet {refinedet.__version__}")):
        done = subprocess.run(
            [sys.executable, "-c", script.format(option)], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
        )
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
        assert float(done.stdout.splitlines()[-1]) < 0.5


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "detect", "convert", "benchmark", "doctor"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert f"refinedet {command}" in out
    assert ("vgg16_voc07_320" in out) == (command == "train")


def test_from_the_shell_train_evaluate_detect(tmp_path, voc):
    (tmp_path / "tiny.toml").write_text(RECIPE.format(steps=2))
    trained = run("train", tmp_path / "tiny.toml", "--data", voc, "--out", tmp_path / "run", "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["steps"] == 2
    assert result["checkpoint"] == str(tmp_path / "run" / "model.safetensors")
    assert "Model: " in trained.stderr

    measured = run("evaluate", result["checkpoint"], "--data", voc, "--out", tmp_path / "numbers")
    assert measured.returncode == 0, measured.stderr
    assert all(name in measured.stdout for name in CLASSES)
    assert (tmp_path / "numbers" / "precision_recall.png").stat().st_size > 0

    found = run("detect", result["checkpoint"], voc / "JPEGImages", "--out", tmp_path / "drawn", "--score-threshold", 0)
    assert found.returncode == 0, found.stderr
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 8
    assert "8 images, all in the first call" in found.stdout


def test_a_folder_is_detected_in_batches_and_drawn(fixed, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["detect", "any", str(photos), "--out", str(out), "--batch-size", "2"]) == 0
    assert [len(blob) for blob in fixed.inputs] == [2, 2, 1]
    assert sorted(path.name for path in out.iterdir()) == [f"{index}.png" for index in range(5)]
    image = cv2.imread(str(photos / "3.png"))
    expected = draw(image, Detector(fixed).detect(image)[0])
    assert np.array_equal(cv2.imread(str(out / "3.png")), expected)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "class", "score", "x1", "y1", "x2", "y2"]
    height, width = image.shape[:2]
    corners = [f"{value:.1f}" for value in (0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height)]
    assert lines[4].split() == [str(photos / "3.png"), "disc", "0.900", *corners]
    stages = ", ".join(rf"{stage} \d+\.\d" for stage in annotate.TIMED)
    assert re.fullmatch(rf"5 images in \d+\.\d\d s; ms per image, the first call of 2 left out: {stages}", lines[6])
    assert lines[7] == f"Annotated copies: {out}"


@pytest.mark.parametrize("images", [1, 2])
def test_a_first_call_alone_is_no_speed(fixed, photos, tmp_path, capsys, images):
    paths = [str(photos / f"{index}.png") for index in range(images)]
    assert cli.main(["detect", "any", *paths, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (told,) = [line for line in lines if line.startswith(f"{images} image")]
    assert told.endswith(", all in the first call, which warms up; refinedet benchmark tells speed")
    assert not any(" ms " in line for line in lines)


def test_the_speed_leaves_out_the_first_call(fixed, photos, tmp_path, capsys, monkeypatch):
    forward = fixed.forward

    def slow_at_first(images, by_level):
        raw = forward(images, by_level=by_level)
        if len(fixed.inputs) == 1:
            time.sleep(2.0)
        return raw

    monkeypatch.setattr(fixed, "forward", slow_at_first)
    assert cli.main(["detect", "any", str(photos), "--out", str(tmp_path / "out"), "--batch-size", "1"]) == 0
    (milliseconds,) = re.findall(r"network (\d+\.\d)", capsys.readouterr().out)
    assert float(milliseconds) < 400


@pytest.fixture
def many(photos) -> list[str]:
    """Nine images."""
    for index in range(5, 9):
        (photos / f"{index}.png").write_bytes((photos / "0.png").read_bytes())
    return [str(photos / f"{index}.png") for index in range(9)]


def test_many_images_have_a_line_each_and_totals(fixed, many, tmp_path, capsys, monkeypatch):
    merge = detector.merge

    def nothing_in_the_last(*arguments):
        found = merge(*arguments)
        if len(fixed.inputs) == 5:
            found.counts[-1] = 0
        return found

    monkeypatch.setattr(detector, "merge", nothing_in_the_last)
    options = ["--out", str(tmp_path / "out"), "--batch-size", "2", "--score-threshold", "0.3"]
    assert cli.main(["detect", "any", *many, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines[:8]] == [[path, "disc 1, square 1"] for path in many[:8]]
    assert lines[8].split(maxsplit=1) == [many[8], "nothing found"]
    assert lines[9] == "16 objects in all images: disc 8, square 8"
    assert lines[10].startswith("9 images in ")
    assert len(lines) == 12


def test_verbose_shows_each_object_of_many_images(fixed, many, tmp_path, capsys):
    options = ["--out", str(tmp_path / "out"), "--verbose", "--score-threshold", "0.3"]
    assert cli.main(["detect", "any", *many, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["image", "class", "score"]
    assert [line.split()[:2] for line in lines[1:19:2]] == [[path, "disc"] for path in many]
    assert len(lines) == 1 + 18 + 2


def test_quiet_leaves_results_and_errors(fixed, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(annotate, "SHORT", 0.0)
    (photos / "1.png").write_bytes(b"")
    arguments = ["detect", "any", str(photos), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    loud = capsys.readouterr()
    assert cli.main([*arguments, "--quiet"]) == 1
    quiet = capsys.readouterr()
    assert quiet.out.splitlines() == loud.out.splitlines()[:5]
    assert len(loud.err.splitlines()) == 2  # progress and the error
    assert quiet.err.splitlines() == [line for line in loud.err.splitlines() if "error" in line]


def test_every_verb_is_quiet(capsys):
    for verb in ("prepare", "train", "evaluate", "detect", "convert", "benchmark", "doctor"):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        assert "--quiet" in capsys.readouterr().out


def test_folders_below_a_pattern_and_a_list_are_detected(fixed, photos, tmp_path, monkeypatch):
    out = photos / "copies"
    for _ in range(2):  # the copies of the first run are no inputs of the second
        assert cli.main(["detect", "any", str(photos), "--recursive", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [*(f"{index}.png" for index in range(5)), "below.png"]
    assert cli.main(["detect", "any", f"{photos}/[0-2].png", "--out", str(tmp_path / "three")]) == 0
    assert len(list((tmp_path / "three").iterdir())) == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(f"{photos / '4.png'}\n"))))
    assert cli.main(["detect", "any", "-", "--out", str(tmp_path / "one")]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["4.png"]


def test_json_alone_on_stdout(fixed, photos, tmp_path, capsys):
    arguments = ["detect", "any", str(photos / "0.png"), "--out", str(tmp_path / "out"), "--score-threshold", "0.3"]
    assert cli.main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert "disc" in captured.err
    assert document == {
        "refinedet": refinedet.__version__,
        "checkpoint": "any",
        "classes": ["disc", "square"],
        "protocol": None,
        "score_threshold": 0.3,
        "images": [
            {
                "path": str(photos / "0.png"),
                "output": str(tmp_path / "out" / "0.png"),
                "width": 100,
                "height": 60,
                "detections": [
                    {"class": "disc", "label": 1, "score": pytest.approx(0.9, abs=1e-5), "box": [25, 15, 75, 45]},
                    {"class": "square", "label": 2, "score": pytest.approx(0.4, abs=1e-5), "box": [0, 0, 20, 18]},
                ],
            }
        ],
        "videos": [],
        "failed": [],
        "remaining": [],
    }
    target = tmp_path / "deep" / "result.json"
    assert cli.main([*arguments, "--json", str(target)]) == 0
    assert json.loads(target.read_text()) == document
    assert "disc" in capsys.readouterr().out


def test_a_video_with_json_of_every_frame(fixed, tmp_path, capsys):
    source = make_video(tmp_path / "clip.avi", frames=5)
    assert cli.main(["detect", "any", str(source), "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    (video,) = json.loads(captured.out)["videos"]
    assert video["output"] == str(tmp_path / "out" / "clip.mp4")
    assert (video["width"], video["height"], video["fps"], video["damaged"]) == (128, 72, 10.0, False)
    assert [frame["frame"] for frame in video["frames"]] == list(range(5))
    assert all(frame["detections"][0]["box"] == [32, 18, 96, 54] for frame in video["frames"])
    assert "5 frames; objects" in captured.err  # all in the first call, which is no speed
    assert "disc 5" in captured.err
    assert cli.main(["detect", "any", str(source), "--out", str(tmp_path / "out"), "--batch-size", "2"]) == 0
    assert re.search(r"5 frames \(\d+\.\d per second after the first call\); objects", capsys.readouterr().out)


def test_unreadable_inputs_are_told_at_the_end_and_lose_no_other(fixed, photos, tmp_path, capsys):
    (photos / "1.png").write_bytes(b"")
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:500])
    (photos / "clip.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    assert cli.main(["detect", "any", str(photos), "--out", str(out), "--batch-size", "3", "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [Path(image["path"]).name for image in document["images"]] == ["0.png", "2.png", "4.png"]
    assert [Path(failure["path"]).name for failure in document["failed"]] == ["1.png", "3.png", "clip.mp4"]
    errors = [line for line in captured.err.splitlines() if line.startswith("refinedet: error: ")]
    assert [failure["error"] in line for failure, line in zip(document["failed"], errors, strict=True)] == [True] * 3
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "2.png", "4.png"]
    assert [len(blob) for blob in fixed.inputs] == [3]


def test_a_picture_too_wide_for_its_format_loses_no_other(fixed, photos, tmp_path, capsys):
    _, data = cv2.imencode(".png", np.zeros((1, 65501, 3), np.uint8))
    (photos / "wide.jpg").write_bytes(data.tobytes())  # OpenCV reads by content, not by name
    out = tmp_path / "out"
    assert cli.main(["detect", "any", str(photos), "--out", str(out)]) == 1
    assert "65501x1" in capsys.readouterr().err
    assert len(list(out.iterdir())) == 5


def test_a_damaged_video_is_kept_as_far_as_it_goes_and_told(fixed, tmp_path, capsys):
    source = make_video(tmp_path / "clip.avi", frames=40)
    content = source.read_bytes()
    middle, end = len(content) // 2, content.rindex(b"idx1")
    source.write_bytes(content[:middle] + bytes(end - middle) + content[end:])
    assert cli.main(["detect", "any", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "breaks off after" in capsys.readouterr().err
    assert (tmp_path / "out" / "clip.mp4").stat().st_size > 0


def test_nothing_readable_is_an_error(fixed, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    assert cli.main(["detect", "any", str(tmp_path / "bad.jpg"), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "bad.jpg" in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_from_different_folders_do_not_collide(fixed, tmp_path):
    paths = []
    for folder, name in (("a", "x.png"), ("b", "x.png"), ("c", "X.png"), ("d", "x.jpg"), ("e", "x.bmp")):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / name)
        cv2.imwrite(str(paths[-1]), scene(len(paths))[0])
    out = tmp_path / "out"
    assert cli.main(["detect", "any", *map(str, paths), str(paths[0]), "--out", str(out)]) == 0
    names = ["x.png", "x_2.png", "X_3.png", "x.jpg", "x_4.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for path, name in zip(paths[:3], names, strict=False):
        image = cv2.imread(str(path))
        assert np.array_equal(cv2.imread(str(out / name)), draw(image, Detector(fixed).detect(image)[0]))


@pytest.mark.parametrize("spelling", ["photos", "photos/../photos", "link"])
def test_inputs_are_never_overwritten(fixed, photos, tmp_path, capsys, spelling):
    (tmp_path / "link").symlink_to(photos)
    before = {path: path.read_bytes() for path in photos.glob("*.png")}
    assert cli.main(["detect", "any", str(photos), "--out", str(tmp_path / spelling)]) == 2
    assert "overwrite the input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in photos.glob("*.png")} == before
    assert fixed.inputs == []


def test_a_second_run_replaces_its_own_results(fixed, photos, tmp_path):
    arguments = ["detect", "any", str(photos), "--out", str(photos / "out")]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0
    assert len(list((photos / "out").iterdir())) == 5


USAGE = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["detekt"], "detekt"),
    "unknown option": (["detect", "m", "x.jpg", "--scale", "2"], "--scale"),
    "no input": (["detect", "m"], "IMAGE"),
    "no data": (["evaluate", "m"], "--data"),
    "batch size of 31 digits": (
        ["detect", "m", "x.jpg", "--batch-size", "1" + "0" * 30],
        "not a whole number from 1 to",
    ),
    "batch size 0": (["detect", "m", "x.jpg", "--batch-size", "0"], "'0' is not a whole number"),
    "threshold": (["detect", "m", "x.jpg", "--score-threshold", "1.5"], "'1.5' is not a number from 0 to 1"),
    "threshold text": (["detect", "m", "x.jpg", "--score-threshold", "high"], "'high' is not a number"),
    "JSON over an input": (["detect", "--json", "m.safetensors", "x.jpg"], "'m.safetensors' does not end in .json"),
    "metric": (["evaluate", "m", "--data", "d", "--metric", "map"], "'map'"),
    "nearly a command": (["detct", "m", "x.jpg"], "did you mean 'detect'?"),
    "nearly an option": (
        ["detect", "m", "x.jpg", "--treshold", "0.2"],
        "'--treshold'; did you mean '--score-threshold'?",
    ),
    "option of another verb": (["doctor", "--devise", "cpu"], "there is no option '--devise'"),
    "nearly a metric": (["evaluate", "m", "--data", "d", "--metric", "VOC7"], "did you mean 'voc07'?"),
    "device": (["detect", "m", "x.jpg", "--device", "gpu"], "'gpu' is none; give auto, cpu, cuda or cuda:N"),
    "device number": (["evaluate", "m", "--data", "d", "--device", "cuda:-1"], "give auto, cpu, cuda or cuda:N"),
    "input apart": (["detect", "m", "x.jpg", "--batch-size", "2", "y.jpg"], "'y.jpg' stands alone after an option"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_is_one_line(arguments, message, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("refinedet: error: ")
    assert message in line
    assert line.endswith("--help")


def test_wrong_usage_points_to_the_help_of_the_verb(capsys):
    for arguments in (["detect", "m", "x.jpg", "--scale", "2"], ["detect", "m"], ["train", "--steps"], ["doctor", "x"]):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.endswith(f" see refinedet {arguments[0]} --help\n")


def test_a_file_that_looks_like_an_option(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-x.jpg").write_bytes(b"")
    assert cli.main(["detect", "m", "x.jpg", "-x.jpg"]) == 2
    assert "./-x.jpg" in capsys.readouterr().err


def test_a_wrong_device_is_told_before_torch_is_loaded():
    script = (
        "import sys\nfrom refinedet.commands.main import main\n"
        "for verb in (['detect', 'm', 'x.jpg'], ['evaluate', 'm', '--data', 'd'], ['train', 'bccd']):\n"
        "    assert main([*verb, '--device', 'gpu']) == 2\n"
        "assert not {'torch', 'cv2', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "hint"), [("bcdd", "did you mean 'bccd'?"), ("BCCD", "did you mean 'bccd'?"), ("xyz", "shipped: bccd")]
)
def test_the_name_of_a_checkpoint_that_is_nearly_right(photos, name, hint, capsys):
    assert cli.main(["detect", name, str(photos)]) == 2
    assert hint in capsys.readouterr().err


def test_the_file_of_a_checkpoint_that_is_nearly_right(checkpoint, photos, capsys):
    assert cli.main(["detect", str(checkpoint.with_name("tinny.safetensors")), str(photos)]) == 2
    assert f"did you mean '{checkpoint}'?" in capsys.readouterr().err


def test_the_checkpoint_after_the_image(checkpoint, photos, capsys):
    image = photos / "0.png"
    for given in ("bccd", str(checkpoint)):
        assert cli.main(["detect", str(image), given]) == 2
        assert f"the checkpoint comes first: refinedet detect {given} {image}" in capsys.readouterr().err


def test_weights_of_a_backbone_name_the_command_that_takes_them(photos, tmp_path, capsys):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "vgg16 weights.pth")
    assert cli.main(["detect", str(tmp_path / "vgg16 weights.pth"), str(photos)]) == 2
    assert f"refinedet train RECIPE --weights '{tmp_path}/vgg16 weights.pth'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "auto, cpu, cuda or cuda:N"), ("cuda:x", "cuda:N"), ("cuda:99", "torch sees")]
)
def test_a_device_that_is_not_there(checkpoint, photos, device, message, capsys):
    assert cli.main(["detect", str(checkpoint), str(photos), "--device", device]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_json_in_a_file(checkpoint, voc, tmp_path, capsys):
    target = tmp_path / "evaluation.json"
    arguments = ["evaluate", str(checkpoint), "--data", str(voc), "--split", "val", "--metric", "coco"]
    assert cli.main([*arguments, "--format", "voc", "--batch-size", "2", "--json", str(target)]) == 0
    document = json.loads(target.read_text())
    assert document["metric"] == "coco"
    assert document["images"] == 2
    assert [row["name"] for row in document["rows"]] == list(CLASSES)
    assert "disc" in capsys.readouterr().out


def test_doctor(capsys):
    status = cli.main(["doctor", "--json"])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["refinedet"] == refinedet.__version__
    assert captured.err.startswith(f"refinedet {refinedet.__version__}, Python 3.")
    assert status == (1 if report["problems"] else 0)


def test_doctor_json_in_a_file(tmp_path, capsys):
    status = cli.main(["doctor", "--json", str(tmp_path / "doctor.json")])
    report = json.loads((tmp_path / "doctor.json").read_text())
    shown = capsys.readouterr().out
    assert shown.startswith(f"refinedet {report['refinedet']}, Python {report['python']}")
    assert status == (1 if report["problems"] else 0)


def test_train_resumes_and_says_what_is_where(tmp_path, voc, capsys):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(steps=1))
    arguments = ["train", str(recipe), "--data", str(voc), "--out", str(out)]
    assert cli.main(arguments) == 0
    assert f"Model: {out / 'model.safetensors'}" in capsys.readouterr().out
    assert cli.main(arguments) == 2  # a run is not overwritten
    assert "--resume" in capsys.readouterr().err
    recipe.write_text(RECIPE.format(steps=3))
    assert cli.main([*arguments, "--resume"]) == 0
    assert "Trained to step 3" in capsys.readouterr().out


def test_the_command_to_resume_repeats_the_options():
    options = ["--data", "d", "--weights", "w.pth", "--weights-input", "caffe", "--out", "a run"]
    arguments = cli.build_parser().parse_args(["train", "bccd", *options])
    assert resume_command(arguments) == (
        "refinedet train bccd --data d --weights w.pth --weights-input caffe --out 'a run' --resume"
    )


def test_the_command_to_resume_repeats_settings_in_their_order_and_the_device():
    options = ["--set", "train.lr=1e-3", "--data", "d", "--set", "model.size=[64, 64]", "--device", "cuda:1"]
    arguments = cli.build_parser().parse_args(["train", "bccd", *options, "--json"])
    assert resume_command(arguments) == (
        "refinedet train bccd --set train.lr=1e-3 --data d --set 'model.size=[64, 64]' --device cuda:1 --out runs/bccd "
        "--resume"
    )


def test_settings_and_device_reach_the_run(tmp_path, voc, capsys):
    recipe, out, document = tmp_path / "tiny.toml", tmp_path / "run", tmp_path / "deep" / "result.json"
    recipe.write_text(RECIPE.format(steps=5))
    settings = ["--data", "nowhere", "--set", "train.steps=1", "--set", f"data.root={voc}", "--set", "train.lr=1e-5"]
    arguments = ["train", str(recipe), *settings, "--out", str(out), "--device", "cpu", "--json", str(document)]
    assert cli.main(arguments) == 0
    assert "Trained to step 1" in capsys.readouterr().out
    assert json.loads(document.read_text())["steps"] == 1
    assert {"steps = 1", f'root = "{voc}"', "lr = 1e-05"} <= set((out / "recipe.toml").read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "train.lr"], ("--set is 'train.lr'", "SECTION.KEY=VALUE")),
        (["--set", "train.lr=fast"], ("--set: train.lr is 'fast'",)),
        (["--set", "train.learning_rat=1"], ("--set: train.learning_rat is unknown",)),
        (["--weights-input", "bgr"], ("--weights-input: model.weights_input is 'bgr'", "torchvision, caffe")),
        (["--device", "gpu"], ("'gpu'", "auto, cpu, cuda or cuda:N")),
        (["--json", "result.txt"], ("'result.txt' does not end in .json",)),
    ],
)
def test_wrong_options_of_training_are_one_line(options, words, tmp_path, voc, capsys):
    assert cli.main(["train", "bccd", "--data", str(voc), "--out", str(tmp_path / "run"), *options]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("refinedet: error: ")
    assert all(word in line for word in words)
    assert (captured.out, (tmp_path / "run").exists()) == ("", False)


def test_training_ends_well_where_the_test_split_has_no_object(tmp_path, capsys):
    root = make_voc(tmp_path / "voc")
    for path in (root / "Annotations").glob("00000[67].xml"):  # the test split
        path.write_text("<annotation></annotation>")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(steps=1) + "every = 1\n")
    arguments = ["train", str(recipe), "--data", str(root), "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    assert "on the test split: - (it has no object)" in capsys.readouterr().out


def test_ctrl_c_stops_training_with_the_command_to_go_on(tmp_path, voc):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "a run"
    recipe.write_text(RECIPE.format(steps=100000))
    command = mortal("-m", "refinedet", "train", str(recipe), "--data", str(voc), "--out", str(out))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + TIMEOUT
        log = out / "log.jsonl"
        while not (log.is_file() and log.read_text().count("\n") >= 2):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=TIMEOUT)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert f"refinedet train {recipe} --data {voc} --out '{out}' --resume" in stderr
    assert (out / "last.safetensors").stat().st_size > 0


@pytest.fixture
def ctrl_c(fixed, monkeypatch):
    """Ctrl-C while the network runs on the n-th batch."""

    def press_at(batch, signum=signal.SIGINT):
        forward = fixed.forward

        def interrupted(images, by_level):
            raw = forward(images, by_level=by_level)
            if len(fixed.inputs) == batch:
                os.kill(os.getpid(), signum)
            return raw

        monkeypatch.setattr(fixed, "forward", interrupted)

    return press_at


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("hears_signals")
def test_ctrl_c_keeps_what_is_detected_already(signum, ctrl_c, fixed, photos, tmp_path, capsys):
    ctrl_c(2, signum)
    out, results = tmp_path / "out", tmp_path / "found.json"
    arguments = ["detect", "any", str(photos), "--out", str(out), "--batch-size", "2", "--json", str(results)]
    assert cli.main(arguments) == 128 + signum
    captured = capsys.readouterr()
    rows = [line.split()[0] for line in captured.out.splitlines() if line.startswith(str(photos))]
    assert list(dict.fromkeys(rows)) == [str(photos / f"{index}.png") for index in range(4)]
    assert captured.err.splitlines()[-1] == "refinedet: interrupted, 1 of 5 inputs remain"
    document = json.loads(results.read_text())
    assert [image["path"] for image in document["images"]] == [str(photos / f"{index}.png") for index in range(4)]
    assert document["remaining"] == [str(photos / "4.png")]
    assert sorted(path.name for path in out.iterdir()) == [f"{index}.png" for index in range(4)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("hears_signals")
def test_ctrl_c_keeps_the_video_so_far(ctrl_c, fixed, tmp_path, capsys):
    ctrl_c(2)
    sources = [make_video(tmp_path / f"{name}.mp4", frames=40) for name in "ab"]
    out = tmp_path / "out"
    arguments = ["detect", "any", *map(str, sources), "--out", str(out), "--batch-size", "2", "--json"]
    assert cli.main(arguments) == 130
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    (video,) = document["videos"]
    assert (video["damaged"], [frame["frame"] for frame in video["frames"]]) == (True, [0, 1, 2, 3])
    assert "interrupted after 4 of 40 frames" in document["failed"][0]["error"]
    assert document["remaining"] == [str(sources[1])]
    assert [path.name for path in out.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("hears_signals")
def test_a_signal_in_evaluate_says_so(signum, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        signal.raise_signal(signum)
        raise AssertionError("still at work")

    monkeypatch.setattr("refinedet.evaluation.evaluate.evaluate_checkpoint", interrupt)
    handler = signal.getsignal(signum)
    assert cli.main(["evaluate", "any", "--data", str(tmp_path)]) == 128 + signum
    assert capsys.readouterr().err == "refinedet: interrupted\n"
    assert signal.getsignal(signum) is handler


def test_ctrl_c_elsewhere_says_so(fixed, photos, tmp_path, capsys, monkeypatch):
    def interrupt(images, by_level):
        raise KeyboardInterrupt

    monkeypatch.setattr(fixed, "forward", interrupt)
    assert cli.main(["detect", "any", str(photos), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "refinedet: interrupted"


def test_output_into_a_closed_pipe_is_no_traceback(checkpoint, photos, tmp_path):
    command = f"{sys.executable} -m refinedet detect {checkpoint} {photos} --out {tmp_path / 'out'} --score-threshold 0"
    done = subprocess.run(f"{command} | head -1", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.stdout.startswith("image")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_system_errors_name_file_and_fix(capsys):
    say_error(OSError(errno.ENOSPC, "No space left on device", "found.json"))
    message = "refinedet: error: found.json: No space left on device; free space or choose another folder\n"
    assert capsys.readouterr().err == message
