"""``--protocol`` of `detect` and `evaluate`, and a protocol in a recipe that is trained."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from support.commands import RECIPE, TIMEOUT
from support.paths import ROOT
from support.synthetic import FixedNetwork, make_voc, scene, tiny_checkpoint
from support.videos import make_video

import refinedet
from refinedet.commands import main as cli
from refinedet.evaluation.evaluate import evaluate_checkpoint
from refinedet.inference.detector import Detector

OWN = 'merge = "vote"\nscore_threshold = 0.3\n[[scales]]\n[[scales]]\nsize = 128\nflipped = true\nmin_side_below = 90\n'


@pytest.fixture
def own(tmp_path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    return file


@pytest.fixture
def picture(tmp_path) -> Path:
    cv2.imwrite(str(tmp_path / "picture.png"), scene(1)[0])
    return tmp_path / "picture.png"


@pytest.fixture
def fixed(monkeypatch) -> FixedNetwork:
    network = FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.9])
    monkeypatch.setattr(refinedet, "load", lambda path, device="cpu": Detector(network), raising=False)
    return network


def test_detect_draws_and_tells_what_the_protocol_finds(picture, own, tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.safetensors")
    arguments = ["detect", str(checkpoint), str(picture), "--out", str(tmp_path / "out"), "--protocol", str(own)]
    assert cli.main([*arguments, "--score-threshold", "0.31", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["protocol"] == "mine"
    (image,) = document["images"]
    (expected,) = refinedet.load(checkpoint).detect(picture, protocol=own, score_threshold=0.31)
    assert len(image["detections"]) == len(expected.scores) > 0
    for row, score, box in zip(image["detections"], expected.scores.tolist(), expected.boxes.tolist(), strict=True):
        assert (row["score"], row["box"]) == (round(score, 6), [round(value, 3) for value in box])
    assert (tmp_path / "out" / "picture.png").is_file()


@pytest.mark.parametrize(("given", "count"), [([], 0), (["--score-threshold", "0.5"], 1)])
def test_a_higher_threshold_of_the_protocol_stays_unless_another_is_asked_for(
    fixed, picture, tmp_path, capsys, given, count
):
    protocol = tmp_path / "sure.toml"
    protocol.write_text("score_threshold = 0.95\n[[scales]]\n")
    arguments = ["detect", "any", str(picture), "--out", str(tmp_path / "out"), "--json", "--protocol", str(protocol)]
    assert cli.main([*arguments, *given]) == 0
    (found,) = json.loads(capsys.readouterr().out)["images"]
    assert len(found["detections"]) == count


def test_frames_of_videos_are_tested_by_it_too(fixed, tmp_path, capsys):
    """The mirror image of a box in the middle is one pixel to the right: W - x."""
    source = make_video(tmp_path / "clip.avi", frames=3)
    protocol = tmp_path / "mirrored.toml"
    protocol.write_text("[[scales]]\noriginal = false\nflipped = true\n")
    arguments = ["detect", "any", str(source), "--out", str(tmp_path / "out"), "--json", "--protocol", str(protocol)]
    assert cli.main(arguments) == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    assert [frame["detections"][0]["box"] for frame in video["frames"]] == [[32, 18, 96, 54]] * 3
    assert [len(inputs) for inputs in fixed.inputs] == [3]


def test_evaluate_measures_and_names_it(own, tmp_path, capsys):
    voc, checkpoint = make_voc(tmp_path / "voc"), tiny_checkpoint(tmp_path / "tiny.safetensors")
    arguments = ["evaluate", str(checkpoint), "--data", str(voc), "--protocol", str(own)]
    assert cli.main([*arguments, "--json", str(tmp_path / "numbers.json")]) == 0
    document = json.loads((tmp_path / "numbers.json").read_text())
    expected = evaluate_checkpoint(checkpoint, voc, protocol=own, progress=False)
    assert document["protocol"] == expected.protocol == "mine"
    assert [row["detections"] for row in document["rows"]] == [row.detections for row in expected.rows]
    assert sum(row["detections"] for row in document["rows"]) > 0
    assert "2 images, protocol mine, " in capsys.readouterr().out
    assert evaluate_checkpoint(checkpoint, voc, progress=False).protocol is None
    like_coco = own.rename(own.with_name("coco.toml"))  # no shipped protocol, and not called as one
    assert evaluate_checkpoint(checkpoint, voc, protocol=like_coco, progress=False).protocol == "coco.toml"


BAD = {
    "voc_multi_320": "there is no protocol 'voc_multi_320'; did you mean 'voc_multiscale_320'?",
    "[[scales]]\nsize = 300": "sides must be multiples of 64",
    'merge = "nms"\n[[scales]]': "merge is 'nms'; did you mean 'soft_nms'?",
    "[[scales]]\nmin_side_below = 1": "min_side_below is 1; give a number above 1: no box has a side",
    "[[scales]]\nscore_threshold = 1": "scale 1: score_threshold is 1; give a value from 0 to below 1",
    'merge = "vote"': "it has no scales; give at least one",
}


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("verb", ["detect", "evaluate"])
def test_a_mistake_is_told_before_anything_is_read(verb, text, tmp_path, capsys):
    protocol = text
    if "\n" in text or "=" in text:
        (tmp_path / "mine.toml").write_text(text)
        protocol = str(tmp_path / "mine.toml")
    absent = str(tmp_path / "absent")
    data = [absent] if verb == "detect" else ["--data", absent]
    assert cli.main([verb, absent, *data, "--protocol", protocol]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert BAD[text] in line
    assert absent not in line


def test_a_mistake_is_told_before_torch_is_loaded():
    script = (
        "import sys\nfrom refinedet.commands.main import main\n"
        "for verb in (['detect', 'm', 'x.jpg'], ['evaluate', 'm', '--data', 'd']):\n"
        "    assert main([*verb, '--protocol', 'vok']) == 2\n"
        "assert not {'torch', 'cv2', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("did you mean 'voc'?") == 2


def test_a_recipe_evaluates_by_its_own(tmp_path):
    """And its run goes on, whose recipe holds the protocol of the file."""
    voc = make_voc(tmp_path / "voc")
    (tmp_path / "mine.toml").write_text(OWN)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(steps=1) + 'every = 1\nprotocol = "mine.toml"\n')
    out = tmp_path / "run"
    assert cli.main(["train", str(recipe), "--data", str(voc), "--out", str(out), "--device", "cpu", "--quiet"]) == 0
    result = json.loads((out / "result.json").read_text())
    expected = evaluate_checkpoint(out / "model.safetensors", voc, protocol=tmp_path / "mine.toml", progress=False)
    assert result["evaluation"]["mean_ap"] == expected.mean_ap
    assert result["evaluation"]["protocol"] == "mine"
    (tmp_path / "mine.toml").unlink()
    again = ["train", str(out / "recipe.toml"), "--data", str(voc), "--out", str(out), "--resume", "--quiet"]
    assert cli.main(again) == 0
