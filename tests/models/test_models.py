"""The networks: sizes, counts, initialisation, layers, weights files, errors, compilation and export."""

import io
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from support.paths import GOLDEN, ROOT
from torch import Tensor, nn
from torch.utils import _pytree

import refinedet
from refinedet import OFFICIAL, PAPER, LevelOutput, RawOutput, Targets, ops
from refinedet.errors import CheckpointError, InputError
from refinedet.models import ModelConfig, RefineDet, build, caffe_multipliers, from_config
from refinedet.models.backbones.resnet import ResNet101
from refinedet.models.backbones.squeezenet import SqueezeNet
from refinedet.models.backbones.timm import TimmBackbone
from refinedet.models.backbones.vgg import VGG16, conv_names
from refinedet.models.layers import CaffeBatchNorm2d, L2Norm
from refinedet.models.pretrained import VGG_CONVS, fold_rgb_input, load_pretrained, reduce_vgg, rename_resnet
from refinedet.preprocessing import Preprocessing
from refinedet.training.loss import MultiBoxLosses
from refinedet.weights.caffe_names import caffe_names, load_caffe_arrays

NORMALIZE = GOLDEN / "net" / "normalize_backward.npz"
TINY_TIMM = "test_efficientnet"


def build_unallocated(backbone: str, num_classes: int, **options: object) -> RefineDet:
    """A network without memory or values, for what only needs shapes."""
    with torch.device("meta"):
        return build(backbone, 320, num_classes, **options)


@pytest.fixture(scope="module")
def light() -> RefineDet:
    """The lightest network, at a non-square size."""
    return build("squeezenet", (64, 128), 4, tcb_channels=16)


def count(tensors: object) -> int:
    return sum(tensor.numel() for tensor in tensors)


# --- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "num_classes", "trainable", "stored"),
    [
        ("vgg16", 21, 34_440_884, 34_440_884),
        ("vgg16", 81, 36_100_484, 36_100_484),
        ("resnet101", 21, 75_815_348, 75_972_047),
        ("resnet101", 81, 82_451_588, 82_608_287),
    ],
)
def test_number_of_values(backbone: str, num_classes: int, trainable: int, stored: int) -> None:
    model = build_unallocated(backbone, num_classes)
    assert count(model.parameters()) == trainable
    assert count(model.state_dict().values()) == stored


@pytest.mark.parametrize("backbone", ["squeezenet", "vgg16", "resnet101", f"timm:{TINY_TIMM}"])
def test_maps_have_exactly_the_strides(backbone: str) -> None:
    model = build(backbone, (64, 128), 3, tcb_channels=8, preset=PAPER).eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 64, 192))
        raw = model(torch.randn(1, 3, 64, 128))
    expected = [
        (1, width, 64 // s, 192 // s) for width, s in zip(model.backbone.channels, (8, 16, 32, 64), strict=True)
    ]
    assert [tuple(map_.shape) for map_ in features] == expected
    anchors = len(model.anchors)
    assert anchors == 3 * (8 * 16 + 4 * 8 + 2 * 4 + 1 * 2)
    assert [tuple(x.shape) for x in raw] == [(1, anchors, k) for k in (4, 2, 4, 3)]


def test_input_of_another_size_than_configured(light: RefineDet) -> None:
    raw = light(torch.randn(2, 3, 192, 64))
    anchors = light.anchors_for((192, 64))
    assert raw.odm_loc.shape == (2, len(anchors), 4)
    torch.testing.assert_close(anchors, refinedet.generate_anchors((192, 64)))
    assert light.anchors_for((64, 128)) is light.anchors


def test_order_of_the_outputs(light: RefineDet) -> None:
    """Channel anchor * k + value of cell (y, x) becomes row (y * width + x) * 3 + anchor of its level."""
    heads = light.odm
    maps = [torch.randn(1, 16, 8 // s, 16 // s) for s in (1, 2, 4, 8)]
    conf = torch.cat(heads(maps)[1], dim=1)
    level = heads.conf[1](maps[1])[0]
    base = 3 * 8 * 16
    for y, x, anchor in [(0, 0, 0), (3, 7, 2), (1, 5, 1)]:
        row = conf[0, base + (y * 8 + x) * 3 + anchor]
        torch.testing.assert_close(row, level[anchor * 4 : anchor * 4 + 4, y, x])


def test_without_tcb_the_network_is_single_step() -> None:
    model = build("squeezenet", 64, 4, preset=replace(OFFICIAL, tcb=False))
    raw = model.eval()(torch.randn(1, 3, 64, 64))
    assert raw.arm_loc is None
    assert raw.arm_conf is None
    assert raw.odm_conf.shape == (1, len(model.anchors), 4)
    assert [conv.in_channels for conv in model.odm.loc] == list(model.backbone.channels)


def test_head_bottlenecks_are_the_official_resnets_alone() -> None:
    official, paper = build_unallocated("resnet101", 21), build_unallocated("resnet101", 21, preset="paper")
    assert (len(official.arm.blocks), len(official.odm.blocks)) == (4, 4)
    assert [conv.in_channels for conv in official.odm.loc] == [1024] * 4
    assert (len(paper.arm.blocks), len(paper.odm.blocks)) == (0, 0)
    assert [conv.in_channels for conv in paper.arm.loc] == [512, 1024, 2048, 512]
    assert len(build_unallocated("vgg16", 21).arm.blocks) == 0


def test_every_parameter_learns() -> None:
    model = build("squeezenet", 64, 4, tcb_channels=16)
    raw = model(50 * torch.randn(4, 3, 64, 64))
    sum(output.square().sum() for output in raw).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_convolutions_are_channels_last(light: RefineDet) -> None:
    weight = light.tcb.lateral1[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


# --- initialisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fan_in"),
    [("backbone.conv6_1", 1024), ("tcb.lateral2.0.conv", 16 * 9), ("odm.conf.3", 16 * 9), ("tcb.up.1.conv", 16 * 4)],
)
def test_caffe_xavier(path: str, fan_in: int) -> None:
    module = build("vgg16", 64, 21, tcb_channels=16).get_submodule(path)
    bound = math.sqrt(3 / fan_in)
    weight = module.weight.detach()
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not module.bias.any()


def test_convolutions_before_a_normalisation_start_gaussian() -> None:
    model = build("resnet101", 64, 3, tcb_channels=16)
    for path in ("backbone.res6.branch2b", "tcb.up.0", "arm.blocks.2.branch1", "backbone.conv1"):
        block = model.get_submodule(path)
        assert block.conv.bias is None
        assert block.conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert (block.norm.weight == 1).all()
        assert not block.norm.bias.any()


def test_norm_scales_start_at_10_and_8() -> None:
    model = build_unallocated("vgg16", 21).to_empty(device="cpu")
    assert model.backbone.conv4_3_norm.weight.shape == (512,)
    backbone = SqueezeNet()
    assert (backbone.norm8.weight == 10).all()
    assert (backbone.norm16.weight == 8).all()


def test_multipliers() -> None:
    model = build_unallocated("resnet101", 21)
    multipliers = caffe_multipliers(model)
    assert multipliers.keys() == dict(model.named_parameters()).keys()
    biases = {name for name, value in multipliers.items() if value == (2.0, 0.0)}
    assert biases == {f"{m}.{kind}.{k}.bias" for m in ("arm", "odm") for kind in ("loc", "conf") for k in range(4)}
    assert {value for name, value in multipliers.items() if name not in biases} == {(1.0, 1.0)}
    assert caffe_multipliers(build_unallocated("vgg16", 21))["tcb.up.0.conv.bias"] == (2.0, 0.0)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "nonuniform"])
def test_l2norm_has_the_exact_gradient(kind: str) -> None:
    with np.load(NORMALIZE) as file:
        golden = {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}
    layer = L2Norm(16, 1.0)
    layer.weight.data.copy_(golden[f"{kind}__scale"])
    x = golden["x"].requires_grad_()
    y = layer(x)
    y.backward(golden["dy"])
    torch.testing.assert_close(y.detach(), golden[f"{kind}__y"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.weight.grad, golden[f"{kind}__dscale"], rtol=1e-5, atol=1e-5)
    exact = golden[f"{kind}__dx_exact_float64"].float()
    torch.testing.assert_close(x.grad, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


def test_l2norm_of_a_zero_vector() -> None:
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    y = L2Norm(4, 10.0)(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad.isfinite().all()


def test_l2norm_in_half_precision() -> None:
    x = torch.full((1, 4, 1, 1), 300.0, dtype=torch.float16)  # 300 squared is infinite in float16
    assert L2Norm(4, 10.0)(x).flatten().tolist() == [5.0] * 4


def test_caffe_batch_norm_keeps_caffes_statistics() -> None:
    layer = CaffeBatchNorm2d(3).train()
    batches = [torch.randn(2, 3, 4, 4) * scale + scale for scale in (1.0, 3.0, 2.0)]
    mean_sum, var_sum, factor = torch.zeros(3), torch.zeros(3), 0.0
    for batch in batches:
        y = layer(batch)
        mean_sum = 0.999 * mean_sum + batch.mean((0, 2, 3))
        var_sum = 0.999 * var_sum + batch.var((0, 2, 3), unbiased=True)
        factor = 0.999 * factor + 1
        expected = nn.functional.batch_norm(batch, None, None, training=True, eps=1e-5)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(layer.running_mean, mean_sum / factor)
        torch.testing.assert_close(layer.running_var, var_sum / factor)
        assert layer.factor.item() == pytest.approx(factor)
    layer.eval()
    expected = (batches[0] - layer.running_mean.view(3, 1, 1)) / (layer.running_var.view(3, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(layer(batches[0]), expected)


def test_caffe_batch_norm_takes_other_statistics_as_long_history() -> None:
    layer, plain = CaffeBatchNorm2d(3), nn.BatchNorm2d(3)
    plain(torch.randn(2, 3, 4, 4))
    layer.load_state_dict(plain.state_dict())
    assert layer.factor.item() == pytest.approx(1000)
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    copy = CaffeBatchNorm2d(3)
    layer(torch.randn(2, 3, 4, 4))
    copy.load_state_dict(layer.state_dict())
    assert copy.factor == layer.factor


# --- configuration and bad arguments ----------------------------------------------------------------------------------


def test_config_survives_json() -> None:
    model = build("squeezenet", (64, 128), classes=["cat", "dög"], preset="paper", tcb_channels=8)
    config = ModelConfig.from_json(model.config.to_json())
    assert config == model.config
    assert config.num_classes == 3
    assert config.preprocessing == Preprocessing(mean=(103.939, 116.779, 123.68))
    assert from_config(config).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("text", ["", "[]", "null", '{"backbone": "vgg16"}'])
def test_json_that_is_no_config(text: str) -> None:
    with pytest.raises(CheckpointError, match="not a model configuration"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: build("vgg16", 300, 21), ["(300, 300)", "multiples of 64", "nearest (320, 320)"]),
        (lambda: build("vgg16", (320, 500), 21), ["(320, 500)", "nearest (320, 512)"]),
        (lambda: build("vgg16", (320,), 21), ["(320,)", "(height, width)"]),
        (lambda: build("vgg16", 320.0, 21), ["320.0", "(height, width)"]),
        (lambda: build("vgg16", "320", 21), ["'320'", "(height, width)"]),
        (lambda: build("vgg16", (320, 320.0), 21), ["(320, 320.0)", "whole pixels"]),
        (lambda: build("vgg16", 320, "21"), ["num_classes is '21'", "at least 2"]),
        (lambda: build("vgg19", 320, 21), ["'vgg19'", "vgg16, resnet101, squeezenet"]),
        (lambda: build(16, 320, 21), ["backbone is 16", "vgg16, resnet101, squeezenet"]),
        (lambda: build("vgg16", 320, 1), ["num_classes is 1", "at least 2"]),
        (lambda: build("vgg16", 320), ["num_classes is None"]),
        (lambda: build("vgg16", 320, 5, classes=["a", "b"]), ["num_classes is 5", "2 classes", "give 3"]),
        (lambda: build("vgg16", 320, classes=["a", "a"]), ["['a', 'a']", "different names"]),
        (lambda: build("vgg16", 320, classes="cat"), ["'cat'", "sequence"]),
        (lambda: build("vgg16", 320, 21, preset="papyrus"), ["'papyrus'", "official, paper"]),
        (lambda: build("vgg16", 320, 21, tcb_channels=0), ["tcb_channels is 0"]),
        (lambda: build("timm:nothing", 320, 21), ["'nothing'", "list_models"]),
        (lambda: build("timm:vit_tiny_patch16_224", 320, 21), ["vit_tiny_patch16_224", "[16]", "8, 16 and 32"]),
        (lambda: build("timm:swin_tiny_patch4_window7_224", 320, 21), ["swin_tiny", "one input size"]),
    ],
)
def test_bad_arguments_name_the_value_and_the_fix(call: Callable[[], object], parts: list[str]) -> None:
    with torch.device("meta"), pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("shape", "part"), [((1, 3, 64, 100), "(64, 100)"), ((3, 64, 64), "[B,3,H,W]"), ((1, 1, 64, 64), "[1, 1, 64, 64]")]
)
def test_bad_input(light: RefineDet, shape: tuple[int, ...], part: str) -> None:
    with pytest.raises(InputError) as error:
        light(torch.zeros(shape))
    assert part in str(error.value)


def test_timm_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'refinedet\[timm\]'"):
        build(f"timm:{TINY_TIMM}", 64, 2)


# --- weights files ----------------------------------------------------------------------------------------------------


def squeezenet_file_state() -> dict[str, Tensor]:
    """What torchvision's SqueezeNet file holds."""
    state = torchvision.models.squeezenet1_1().state_dict()
    return {name: torch.randn_like(value) for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_squeezenet_weights(tmp_path: Path, suffix: str) -> None:
    state, path = squeezenet_file_state(), tmp_path / f"squeezenet{suffix}"
    state["classifier.1.weight"].zero_()  # tells nothing
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = build("squeezenet", 64, 4, tcb_channels=8, weights=path, weights_input="caffe")
    for name, value in model.backbone.features.state_dict().items():
        torch.testing.assert_close(value, state[f"features.{name}"])
    assert (model.backbone.norm8.weight == 10).all()


def test_squeezenet_values_are_torchvisions() -> None:
    """Padding conv1 by 1 shifts the grid by one pixel: the image moved down and right by 1 meets torchvision's grid."""
    original = torchvision.models.squeezenet1_1().eval().features[0]
    backbone = SqueezeNet()
    backbone.features[0].load_state_dict(original.state_dict())
    image = torch.randn(1, 3, 64, 64)
    shifted = nn.functional.pad(image, (1, -1, 1, -1))
    with torch.no_grad():
        torch.testing.assert_close(backbone.features[0](shifted)[..., 1:, 1:], original(image))


def trained_squeezenet_state() -> dict[str, Tensor]:
    """SqueezeNet with a classifier that responds to torchvision's input as a trained one does, by a few units."""
    network = torchvision.models.squeezenet1_1().eval()
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.classifier[1].weight.mul_(4.0 / network.classifier[1](network.features(image)).mean((2, 3)).std())
    return network.state_dict()


def squeezenet_file(path: Path, made_for: str) -> dict[str, Tensor]:
    """Write a SqueezeNet file for that input; returns the same network's weights for torchvision's."""
    original = trained_squeezenet_state()
    state = dict(original)
    if made_for == "caffe":
        kernel, shift = fold_rgb_input(state["features.0.weight"], SqueezeNet.preprocessing)
        state |= {"features.0.weight": kernel, "features.0.bias": state["features.0.bias"] + shift}
    torch.save(state, path)
    return original


@pytest.mark.parametrize("made_for", ["torchvision", "caffe"])
def test_squeezenet_reads_bgr_whatever_its_file_was_made_for(tmp_path: Path, made_for: str) -> None:
    state = squeezenet_file(tmp_path / "squeezenet.pth", made_for)
    model = build("squeezenet", 64, 2, tcb_channels=8, weights=tmp_path / "squeezenet.pth", weights_input=made_for)
    first, mean = model.backbone.features[0], torch.tensor(SqueezeNet.preprocessing.mean).view(3, 1, 1)
    bgr = torch.randint(256, (1, 3, 32, 32)).float()
    convolve = nn.functional.conv2d
    expected = convolve(torchvision_input(bgr), state["features.0.weight"], state["features.0.bias"])
    torch.testing.assert_close(convolve(bgr - mean, first.weight, first.bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("made_for", "given"), [("torchvision", "caffe"), ("caffe", "torchvision")])
def test_squeezenet_file_for_another_input(tmp_path: Path, made_for: str, given: str) -> None:
    path = tmp_path / "squeezenet.pth"
    squeezenet_file(path, made_for)
    message = rf"squeezenet.pth: its weights are for {made_for}'s input, not {given}'s .*--weights-input {made_for}"
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(SqueezeNet(), path, given)
    torch.save({name: value for name, value in torch.load(path).items() if "classifier" not in name}, path)
    load_pretrained(SqueezeNet(), path, given)  # without the classifier nothing tells


def test_other_backbones_take_caffe_files_as_they_are() -> None:
    state = vgg_file_state()
    reduced = reduce_vgg(state, VGG16.preprocessing, "file", "caffe")
    for kind in ("weight", "bias"):
        assert torch.equal(reduced[f"conv1_1.{kind}"], state[f"features.0.{kind}"])
    with torch.device("meta"):
        theirs = torchvision.models.resnet101().state_dict()
    theirs["conv1.weight"], theirs["bn1.running_mean"] = torch.randn(64, 3, 7, 7), torch.randn(64)
    renamed = rename_resnet(theirs, ResNet101.preprocessing, "file", "caffe")
    assert torch.equal(renamed["conv1.conv.weight"], theirs["conv1.weight"])
    assert torch.equal(renamed["conv1.norm.running_mean"], theirs["bn1.running_mean"])


def test_an_input_that_there_is_not(tmp_path: Path) -> None:
    squeezenet_file(tmp_path / "squeezenet.pth", "caffe")
    with pytest.raises(InputError, match=r"weights_input is 'bgr'; choose one of torchvision, caffe"):
        load_pretrained(SqueezeNet(), tmp_path / "squeezenet.pth", "bgr")
    with pytest.raises(InputError, match=r"weights_input is 'caffe', but a timm model has its own input"):
        load_pretrained(TimmBackbone(TINY_TIMM), tmp_path / "any.pth", "caffe")


def vgg_file_state() -> dict[str, Tensor]:
    """A torchvision VGG-16 file with small convolutions' real shapes and classifiers that take no memory."""
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    inputs, outputs = torch.arange(25088.0), torch.arange(4096.0)
    state["classifier.0.weight"] = inputs.expand(4096, 25088)
    state["classifier.0.bias"] = outputs
    state["classifier.3.weight"] = outputs[:, None] + outputs / 4096
    state["classifier.3.bias"] = -outputs
    state["classifier.6.weight"] = torch.zeros(1000, 1)
    return state


def test_vgg_from_torchvision() -> None:
    state = vgg_file_state()
    reduced = reduce_vgg(state, VGG16.preprocessing, "file")
    for name, position in zip(conv_names()[1:], VGG_CONVS[1:], strict=True):
        assert reduced[f"{name}.weight"] is state[f"features.{position}.weight"]
        assert reduced[f"{name}.bias"] is state[f"features.{position}.bias"]
    channel, row, column = 300, 1, 2  # taps 3 and 6
    assert reduced["fc6.weight"].shape == (1024, 512, 3, 3)
    assert (reduced["fc6.weight"][:, channel, row, column] == channel * 49 + 3 * 7 + 6).all()
    assert reduced["fc6.bias"].tolist() == list(range(0, 4096, 4))
    assert reduced["fc7.weight"].shape == (1024, 1024, 1, 1)
    assert reduced["fc7.weight"][5, 9, 0, 0] == 20 + 36 / 4096
    assert reduced["fc7.bias"][7] == -28
    with torch.device("meta"):
        backbone = VGG16()
    new = {name for name in backbone.state_dict() if name.startswith(("conv6_", "conv4_3_norm", "conv5_3_norm"))}
    assert reduced.keys() == backbone.state_dict().keys() - new


def torchvision_input(bgr: Tensor) -> Tensor:
    """Images [B,3,H,W] BGR 0..255 as torchvision's networks read them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (bgr.flip(1) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def caffe_input(bgr: Tensor) -> Tensor:
    return bgr - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)


def test_vgg_first_layer_takes_bgr() -> None:
    state = vgg_file_state()
    reduced = reduce_vgg(state, VGG16.preprocessing, "file")
    bgr = torch.randint(256, (1, 3, 16, 16)).float()
    convolve = nn.functional.conv2d
    ours = convolve(caffe_input(bgr), reduced["conv1_1.weight"], reduced["conv1_1.bias"], padding=1)
    theirs = convolve(torchvision_input(bgr), state["features.0.weight"], state["features.0.bias"], padding=1)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(ours[inner], theirs[inner], rtol=1e-4, atol=1e-4)
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()  # the border: padding stands for another grey


def test_vgg_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    torch.save(squeezenet_file_state(), path)
    with pytest.raises(CheckpointError, match=r"vgg.pth: not torchvision's VGG-16 .*features.2.weight"):
        build("vgg16", 64, 2, tcb_channels=8, weights=path)


def test_resnet_from_torchvision() -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.resnet101().state_dict(), ResNet101().state_dict()
    theirs["conv1.weight"], theirs["bn1.running_mean"] = torch.randn(64, 3, 7, 7), torch.randn(64)
    renamed = rename_resnet(theirs, ResNet101.preprocessing, "file")
    shapes = {name: value.shape for name, value in renamed.items() if "num_batches" not in name and name[:3] != "fc."}
    assert shapes == {
        name: value.shape for name, value in ours.items() if not name.startswith("res6.") and ".factor" not in name
    }
    assert renamed["res4b22.branch2b.norm.running_var"] is theirs["layer3.22.bn2.running_var"]
    assert renamed["res3a.branch1.conv.weight"] is theirs["layer2.0.downsample.0.weight"]
    bgr = torch.randint(256, (1, 3, 16, 16)).float()
    convolve = nn.functional.conv2d
    difference = (
        convolve(caffe_input(bgr), renamed["conv1.conv.weight"]) - renamed["conv1.norm.running_mean"].view(-1, 1, 1)
    ) - (convolve(torchvision_input(bgr), theirs["conv1.weight"]) - theirs["bn1.running_mean"].view(-1, 1, 1))
    assert difference.abs().max() < 1e-3


def test_resnet_loads_torchvisions_file(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet101().state_dict(), tmp_path / "resnet.pth")
    backbone = ResNet101()
    load_pretrained(backbone, tmp_path / "resnet.pth")
    assert backbone.res5c.branch2c.norm.factor.item() == pytest.approx(1000)
    assert backbone.res6.branch2c.norm.factor.item() == 0  # new, without statistics, as in Caffe (spec section 3)


def test_timm_weights(tmp_path: Path) -> None:
    whole = timm.create_model(TINY_TIMM)
    torch.save(whole.state_dict(), tmp_path / "timm.pth")
    backbone = TimmBackbone(TINY_TIMM)
    load_pretrained(backbone, tmp_path / "timm.pth")
    for name, value in backbone.body.model.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name])
    mean, std = whole.pretrained_cfg["mean"], whole.pretrained_cfg["std"]
    assert backbone.preprocessing.order == "rgb"
    assert backbone.preprocessing.mean == tuple(255 * value for value in reversed(mean))
    assert backbone.preprocessing.std == tuple(255 * value for value in reversed(std))


class Trap:
    """Unpickling this runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "trap.pth", tmp_path / "was_run"
    torch.save({"features.0.weight": Trap(trace)}, path)
    with pytest.raises(CheckpointError, match=r"trap.pth: .*could run code"):
        build("squeezenet", 64, 2, tcb_channels=8, weights=path)
    assert not trace.exists()


def write_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def write_state(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = squeezenet_file_state()
        change(state)
        torch.save(state, path)

    return write


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (lambda path: None, "no such weights file"),
        (write_bytes(b""), "damaged"),
        (write_bytes(b"<html>404</html>"), "damaged"),
        (lambda path: torch.save([1, 2], path), "not a state dict"),
        (lambda path: torch.save({}, path), "not a state dict"),
        (write_state(lambda state: state.pop("features.12.squeeze.bias")), "missing: features.12.squeeze.bias"),
        (write_state(lambda state: state.update(head=torch.zeros(1))), "unexpected: head"),
        (
            write_state(lambda state: state.update({"features.0.bias": torch.zeros(3)})),
            "of wrong shape: features.0.bias [3] instead of [64]",
        ),
    ],
)
def test_bad_weights_file(tmp_path: Path, write: Callable[[Path], object], part: str) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(SqueezeNet(), path)
    assert str(path) in str(error.value)
    assert part in str(error.value)


def test_truncated_weights_file(tmp_path: Path) -> None:
    for suffix, write in ((".pth", torch.save), (".safetensors", save_file)):
        path = tmp_path / f"weights{suffix}"
        write(squeezenet_file_state(), path)
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(CheckpointError, match="damaged"):
            load_pretrained(SqueezeNet(), path)


# --- Caffe arrays -----------------------------------------------------------------------------------------------------


@pytest.fixture
def caffe() -> tuple[RefineDet, dict[tuple[str, int], np.ndarray]]:
    """A network and zeros for its blobs."""
    model = build("vgg16", 64, 3, tcb_channels=8)
    state = model.state_dict()
    return model, {blob: np.zeros(tuple(state[name].shape), np.float32) for name, blob in caffe_names(model).items()}


def test_caffe_layers_that_are_not_ours_are_ignored(caffe: tuple) -> None:
    model, arrays = caffe
    arrays["fc8", 0] = np.zeros((1000, 1024), np.float32)
    load_caffe_arrays(model, arrays)
    assert not any(value.any() for value in model.state_dict().values())


def test_caffe_blob_missing(caffe: tuple) -> None:
    model, arrays = caffe
    del arrays["TL4_1", 1]
    with pytest.raises(CheckpointError, match="lacks TL4_1:1; it is not RefineDet with vgg16"):
        load_caffe_arrays(model, arrays)


def test_caffe_model_of_another_class_count(caffe: tuple) -> None:
    model, arrays = caffe
    arrays["P3_mbox_conf", 0] = np.zeros((63, 8, 3, 3), np.float32)
    with pytest.raises(CheckpointError) as error:
        load_caffe_arrays(model, arrays)
    assert "P3_mbox_conf:0 [63, 8, 3, 3] instead of [9, 8, 3, 3]; it is not RefineDet with vgg16 and 3 cl" in str(
        error.value
    )
    assert model.backbone.conv1_1.weight.any()  # nothing was assigned


def test_caffe_has_no_squeezenet(light: RefineDet) -> None:
    with pytest.raises(InputError, match=r"'squeezenet' has no official Caffe model"):
        caffe_names(light)


# --- compilation and export -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(light: RefineDet, training: bool) -> None:
    images = torch.randn(2, 3, 64, 128)
    light.train(training)
    compiled = torch.compile(light, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(images), light(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_caffe_batch_norm_compiles() -> None:
    layer = CaffeBatchNorm2d(3)
    torch.compile(layer, fullgraph=True, backend="eager")(torch.randn(2, 3, 4, 4))
    assert layer.factor == 1


def test_exports_with_any_batch_size(light: RefineDet) -> None:
    light.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(light, (torch.randn(2, 3, 64, 128),), dynamic_shapes=({0: batch},))
    images = torch.randn(3, 3, 64, 128)
    with torch.no_grad():
        for ours, theirs in zip(program.module()(images), light(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Whole(nn.Module):
    """From images to detections in one graph."""

    def __init__(self, network: RefineDet, *, by_level: bool) -> None:
        super().__init__()
        self.network, self.by_level = network, by_level

    def forward(self, images: Tensor) -> ops.Detected:
        return ops.detect(*self.network(images, by_level=self.by_level), self.network.anchors, keep_top_k=50)


def test_levels_are_the_whole_output(light: RefineDet) -> None:
    light.eval()
    images = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        levels, whole = light(images, by_level=True), light(images)
        assert [level.shape[1] for level in levels.arm_loc] == [3 * 8 * 16, 3 * 4 * 8, 3 * 2 * 4, 3 * 1 * 2]
        for ours, theirs in zip(levels, whole, strict=True):
            assert all(level.is_contiguous() for level in ours)
            assert torch.equal(torch.cat(ours, dim=1), theirs)
        for ours, theirs in zip(*(Whole(light, by_level=flag)(images) for flag in (True, False)), strict=True):
            assert torch.equal(ours, theirs)


def test_levels_of_a_network_without_arm() -> None:
    network = build("squeezenet", 64, 4, preset=replace(OFFICIAL, tcb=False)).eval()
    levels = network(torch.randn(1, 3, 64, 64), by_level=True)
    assert levels.arm_loc is None
    assert levels.arm_conf is None
    assert len(levels.odm_conf) == 4


def test_images_to_detections_compile_and_export(light: RefineDet) -> None:
    images = torch.randn(2, 3, 64, 128)
    whole = Whole(light.eval(), by_level=True)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
        exported = torch.export.export(whole, (images,), dynamic_shapes=({0: batch},)).module()
        for ours, theirs, expected in zip(compiled(images), exported(images), whole(images), strict=True):
            torch.testing.assert_close(ours, expected)
            torch.testing.assert_close(theirs, expected)


def variants() -> list[Any]:
    """Networks with and without an anchor refinement module, of our backbones and of timm's."""
    return [
        pytest.param(backbone, tcb, id=f"{backbone}-{'cascade' if tcb else 'single'}")
        for backbone in ("squeezenet", "timm:resnet18")
        for tcb in (True, False)
    ]


def variant(backbone: str, tcb: bool) -> RefineDet:
    torch.manual_seed(0)
    return build(backbone, 64, 4, tcb_channels=8, preset=replace(OFFICIAL, tcb=tcb)).eval()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:FutureWarning")
@pytest.mark.parametrize(("backbone", "tcb"), variants())
@pytest.mark.parametrize("by_level", [False, True])
@torch.no_grad()
def test_is_traced_for_any_size(backbone: str, tcb: bool, by_level: bool) -> None:
    """A trace knows no keywords and no None."""
    network = variant(backbone, tcb)
    traced = torch.jit.trace(network if not by_level else ByLevel(network), (torch.randn(1, 3, 64, 64),))
    other = torch.randn(2, 3, 128, 64)
    expected = [part for part in network(other, by_level) if part is not None]
    assert len(expected) == (4 if tcb else 2)
    torch.testing.assert_close([*traced(other)], expected)


class ByLevel(nn.Module):
    def __init__(self, network: RefineDet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return tuple(self.network(images, True))


@pytest.mark.filterwarnings("ignore")  # of an exporter that torch will remove
@pytest.mark.parametrize(("backbone", "tcb"), variants())
def test_exports_to_onnx(backbone: str, tcb: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the exporter that traces. Its last step, which looks for functions of onnxscript, needs the package onnx."""
    onnx = SimpleNamespace(load_model_from_string=lambda _: SimpleNamespace(graph=SimpleNamespace(node=[])))
    monkeypatch.setitem(sys.modules, "onnx", onnx)
    file = io.BytesIO()
    names = ["arm_loc", "arm_conf", "odm_loc", "odm_conf"][0 if tcb else 2 :]
    images = torch.randn(1, 3, 64, 64)
    torch.onnx.export(variant(backbone, tcb), (images,), file, dynamo=False, input_names=["images"], output_names=names)
    for name in ("images", *names):
        assert name.encode() in file.getvalue()


LOAD = """
import sys, torch
import refinedet.ops
folder, *names = sys.argv[1:]
images = torch.load(f"{folder}/images.pt")
found = {name: torch.export.load(f"{folder}/{name}.pt2").module()(images) for name in names}
torch.save({name: [type(output).__name__, [*output]] for name, output in found.items()}, f"{folder}/found.pt")
"""


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")  # anchors that are a view
@torch.no_grad()
def test_exported_programs_are_saved_and_loaded_by_another_process(tmp_path: Path) -> None:
    """Their outputs are the records of the network and of the operator."""
    network = variant("squeezenet", True)
    modules = {"single": variant("squeezenet", False), "detections": Whole(network, by_level=True)}
    batch = torch.export.Dim("batch", min=1, max=64)
    for name, module in modules.items():
        program = torch.export.export(module, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
        torch.export.save(program, tmp_path / f"{name}.pt2")
    images = torch.randn(3, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-c", LOAD, tmp_path, *modules], check=True, cwd=ROOT)
    found = torch.load(tmp_path / "found.pt")
    for name, module in modules.items():
        expected = module(images)
        assert found[name][0] == type(expected).__name__
        torch.testing.assert_close(found[name][1], [*expected])


@pytest.mark.parametrize("record", [RawOutput, LevelOutput, Targets, ops.Detected, ops.Match, MultiBoxLosses])
def test_records_are_known_to_programs_that_are_saved(record: type[tuple]) -> None:
    structure = _pytree.tree_structure(record(*range(len(record._fields))))
    assert _pytree.treespec_loads(_pytree.treespec_dumps(structure)) == structure


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backbone", ["vgg16", "resnet101", "squeezenet"])
def test_an_empty_batch(backbone: str, training: bool) -> None:
    network = build(backbone, 64, 4, tcb_channels=8).train(training)
    for by_level in (False, True):
        output = network(torch.empty(0, 3, 64, 64), by_level)
        whole = output.concatenate() if by_level else output
        assert [tuple(part.shape) for part in whole] == [(0, 255, width) for width in (4, 2, 4, 4)]
    found = ops.detect(*output, network.anchors)
    assert found.boxes.shape == (0, 500, 4)
