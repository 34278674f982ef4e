"""``refinedet convert`` at the command line: what it says, its JSON, and bad input."""

import json
import re

import pytest
import torch
from support.caffe_files import caffemodel, narrow_blobs, narrow_outline, use_narrow_networks, write
from support.paths import GOLDEN
from support.synthetic import CLASSES, tiny_checkpoint

from refinedet.classes import COCO_CLASSES, VOC_CLASSES
from refinedet.commands import main as cli
from refinedet.models import ModelConfig
from refinedet.models.pretrained import NEW_PARTS
from refinedet.training.read import read_recipe
from refinedet.weights.caffe_names import caffe_names
from refinedet.weights.checkpoint import read_model


@pytest.fixture
def narrow(monkeypatch):
    use_narrow_networks(monkeypatch.setattr)


@pytest.fixture
def coco(narrow, tmp_path):
    content = caffemodel(narrow_blobs("vgg16", COCO_CLASSES))
    return write(tmp_path / "coco_refinedet_vgg16_512x512_final.caffemodel", content)


def convert(*arguments) -> int:
    return cli.main(["convert", *map(str, arguments)])


def test_what_it_says(coco, tmp_path, capsys):
    out = tmp_path / "coco.safetensors"
    assert convert(coco, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{coco}: a model of Caffe, {sum(t.numel() for t in read_model(out)[1].values())} values, vgg16",
        "Input 512 x 512 pixels, told by the file's name; preset coco",
        "80 classes: person, bicycle, car, motorcycle and 76 more",
        f"Written: {out}",
    ]
    assert captured.err == ""


def test_json_and_options(coco, tmp_path, capsys):
    out = tmp_path / "voc.safetensors"
    assert convert(coco, "--out", out, "--select", "voc", "--size", "320", "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document.pop("values") > 1000
    assert document == {
        "input": str(coco),
        "output": str(out),
        "format": "caffemodel",
        "kind": "detector",
        "backbone": "vgg16",
        "size": [320, 320],
        "size_from": "--size",
        "classes": list(VOC_CLASSES),
        "preset": "official",
        "ignored_layers": [],
    }
    assert "20 classes: aeroplane" in captured.err
    assert convert(out, "--out", tmp_path / "back.caffemodel", "--json", tmp_path / "found.json") == 0
    assert json.loads((tmp_path / "found.json").read_text())["format"] == "refinedet"


def test_classes_from_a_file(narrow, tmp_path, capsys):
    source = write(tmp_path / "cells.caffemodel", caffemodel(narrow_blobs("vgg16", CLASSES)))
    names = tmp_path / "names.txt"
    names.write_text("RBC\nWBC\n")
    assert convert(source, "--out", tmp_path / "a.safetensors", "--classes", names, "--size", "320x512") == 0
    config, _ = read_model(tmp_path / "a.safetensors")
    assert (config.classes, config.size) == (("RBC", "WBC"), (320, 512))
    assert "Input 320 x 512 pixels" in capsys.readouterr().out


@pytest.mark.parametrize("backbone", ["vgg16", "resnet101"])
def test_a_backbone_tells_a_recipe_that_starts_from_it(narrow, backbone, tmp_path, capsys):
    names = caffe_names(narrow_outline(ModelConfig(backbone, (64, 64), VOC_CLASSES)))
    new = tuple(f"backbone.{part}" for part in NEW_PARTS[backbone])
    known = {blob for name, blob in names.items() if name.startswith("backbone.") and not name.startswith(new)}
    blobs = {blob: values for blob, values in narrow_blobs(backbone, VOC_CLASSES).items() if blob in known}
    out = tmp_path / "my backbone.safetensors"
    assert convert(write(tmp_path / "a.caffemodel", caffemodel(blobs)), "--out", out) == 0
    shown = capsys.readouterr().out
    (recipe,) = re.findall(r"refinedet train (\S+) --data (?:VOCdevkit|COCO) --weights ", shown)
    assert f" --weights '{out}' --weights-input caffe" in shown
    assert read_recipe(recipe).model.backbone == backbone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "321"], "both must be multiples of 64"),
        (["--size", "0"], "'0' is no size; give 320"),
        (["--size", "320x"], "'320x' is no size"),
        (["--classes", "voc"], "has 80 classes, and 20 names are given"),
        (["--classes", "absent.txt"], "there is no file"),
        (["--select", "absent.txt"], "--select is 'absent.txt', and there is no file"),
        (["--subset", "voc"], "there is no option '--subset'"),
    ],
)
def test_options_that_do_not_fit(coco, tmp_path, capsys, options, words):
    assert convert(coco, "--out", tmp_path / "a.safetensors", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err
    assert not (tmp_path / "a.safetensors").exists()


def test_another_network(tmp_path, capsys):
    """A file of Caffe itself."""
    assert convert(GOLDEN / "model" / "toy.caffemodel", "--out", tmp_path / "a.safetensors") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("refinedet: error: ")
    for words in ("toy.caffemodel is a model of another network", "lacks conv1_1, conv1_2", "it has conv1, bn_conv1"):
        assert words in line


def test_a_pickle_with_more_than_tensors(tmp_path, capsys):
    source = tmp_path / "RefineDet320_VOC_final.pth"
    torch.save({"vgg.0.weight": torch.zeros(2), "optimizer": torch.nn.Linear(1, 1)}, source)
    assert convert(source, "--out", tmp_path / "a.safetensors") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds more than plain tensors (torch.nn.modules.linear.Linear)" in line


def test_files_that_are_not_there(tmp_path, capsys):
    assert convert(tmp_path / "absent.caffemodel", "--out", tmp_path / "a.safetensors") == 2
    assert "absent.caffemodel does not exist; check the path" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to(coco, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert convert(coco, "--out", tmp_path / "taken" / "a.safetensors") == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_way_back_needs_a_network_that_caffe_has(tmp_path, capsys):
    assert convert(tiny_checkpoint(tmp_path / "tiny.safetensors"), "--out", tmp_path / "a.caffemodel") == 2
    assert "'squeezenet' has no official Caffe model; use one of vgg16, resnet101" in capsys.readouterr().err
