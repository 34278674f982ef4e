"""`refinedet export` from the shell, and the other verbs with what it writes."""

import json

import cv2
import pytest
from support.synthetic import scene, tiny_checkpoint

import refinedet
from refinedet.commands import main as cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a photograph, and the model as a program of torch with all that was told about it."""
    folder = tmp_path_factory.mktemp("export")
    cv2.imwrite(str(folder / "photo.png"), scene(0)[0])
    tiny_checkpoint(folder / "tiny.safetensors")
    arguments = ["export", str(folder / "tiny.safetensors"), "--format", "torch", "--batch", "dynamic"]
    options = ["--images", str(folder / "photo.png"), "--json", str(folder / "told.json"), "--quiet"]
    assert cli.main([*arguments, "--out", str(folder / "tiny.pt2"), *options]) == 0
    return folder


def test_what_was_measured_lies_beside_the_file(folder):
    told = json.loads((folder / "told.json").read_text())
    kept = json.loads((folder / "tiny.pt2.json").read_text())
    assert kept == told
    assert told["path"] == str(folder / "tiny.pt2")
    assert told["bytes"] == (folder / "tiny.pt2").stat().st_size
    assert told["images"] == "1 of 1 own, 128x96"
    assert told["largest_output_difference_of_rms"] < 1e-4
    assert told["own_rows_differ"] == 0
    assert told["unmatched"] == 0
    assert 0 < told["seconds_per_image"] < 60
    assert sorted(path.name for path in folder.iterdir()) == [
        "photo.png", "tiny.pt2", "tiny.pt2.json", "tiny.safetensors", "told.json",
    ]  # fmt: skip


def test_detect_finds_the_same(folder, tmp_path, capsys):
    found = []
    for model in ("tiny.safetensors", "tiny.pt2"):
        arguments = ["detect", str(folder / model), str(folder / "photo.png"), "--out", str(tmp_path / model)]
        assert cli.main([*arguments, "--score-threshold", "0.1", "--json"]) == 0
        (image,) = json.loads(capsys.readouterr().out)["images"]
        found.append(image["detections"])
    checkpoint, exported = found
    assert [row["class"] for row in exported] == [row["class"] for row in checkpoint]
    for ours, theirs in zip(exported, checkpoint, strict=True):
        assert ours["box"] == pytest.approx(theirs["box"], abs=0.05)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)


def test_benchmark_takes_it_as_one_stage(folder, tmp_path, capsys):
    result, html = tmp_path / "found.json", tmp_path / "page.html"
    arguments = ["benchmark", str(folder / "tiny.pt2"), "--seconds", "1", "--images", str(folder / "photo.png")]
    assert cli.main([*arguments, "--batch", "1", "--json", str(result), "--html", str(html)]) == 0
    document = json.loads(result.read_text())
    assert document["model"]["parameters"] == sum(
        each.numel() for each in refinedet.load(folder / "tiny.safetensors").network.parameters()
    )
    split = document["batches"][0]["split_ms_per_image"]
    assert split["network"] > 0
    assert not {"backbone", "TCB and heads"} & split.keys()
    assert "network" in capsys.readouterr().out
    assert html.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", "tiny.pt2"], "the model is an exported file (torch), whose layers are not to be seen; give the"),
        (["export", "tiny.pt2", "--format", "onnx"], "the model is an exported file (torch), whose layers are not"),
        (["detect", "tiny.pt2", "photo.png", "--dtype", "float16"], "dtype is torch.float16, and this file was"),
        (["export", "tiny.safetensors", "--format", "onyx"], "argument --format: 'onyx' is unknown; did you"),
        (["export", "tiny.safetensors", "--format", "onnx", "--out", "a.pt2"], "out is a.pt2, and files of onnx end"),
        (["export", "tiny.safetensors", "--format", "mnn", "--batch", "dynamic"], "batch is dynamic, and mnn holds"),
        (["export", "tiny.safetensors", "--format", "onnx", "--size", "100"], "input size (height, width) is (100"),
        (["export", "tiny.safetensors", "--format", "torch", "--dtype", "int8"], "dtype is 'int8'; torch holds"),
        (["export", "tiny.safetensors", "--format", "onnx", "--calibrate", "photo.png"], "int8 needs calibration"),
        (["export", "tiny.safetensors", "--format", "onnx", "--data", "none"], "none: no such data folder; check"),
    ],
)
def test_one_sentence_for_a_mistake(folder, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"refinedet: error: {message}"), lines
    assert not (folder / "tiny.onnx").exists()
