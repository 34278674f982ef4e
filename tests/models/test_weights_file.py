"""Weights of other programs: what is around them, before their names and in their types is read, or refused."""

import argparse
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from refinedet.errors import CheckpointError
from refinedet.models import build, load_pretrained
from refinedet.models.backbones.squeezenet import SqueezeNet
from refinedet.models.backbones.timm import TimmBackbone
from refinedet.models.pretrained import reduce_vgg, rename_efficientnet, rename_resnet
from refinedet.models.weights_file import read_state_dict
from refinedet.preprocessing import Preprocessing

STATE = {"features.0.weight": torch.arange(6.0).view(2, 3), "features.0.bias": torch.ones(2)}
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


def prefixed(prefix, state=STATE):
    return {prefix + name: value for name, value in state.items()}


def save(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE},
        {"state_dict": STATE, "epoch": 3, "best_acc1": 0.7, "arch": "squeezenet", "optimizer": OPTIMIZER},
        {"model": STATE, "optimizer": OPTIMIZER, "lr_scheduler": {"last_epoch": 3}},
        {"model_state_dict": STATE, "epoch": 3},
        {"model": {"state_dict": STATE}},
        {"net": STATE, "optimizer": OPTIMIZER},
        {"checkpoint": {"weights": {"params": STATE}}},
        {"state_dict": prefixed("x."), "state_dict_ema": STATE},  # timm keeps both
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod.module."),
        prefixed("model."),
        prefixed("backbone."),
        prefixed("model.backbone."),
        {"state_dict": prefixed("model.module.encoder.")},
        {name.replace("features.", "features.module."): value for name, value in STATE.items()},  # PyTorch's example
        {"n_averaged": torch.tensor(3), **prefixed("module.")},
        {"n_averaged": torch.tensor(3), **prefixed("module.module.model.")},
        {name: nn.Parameter(value) for name, value in STATE.items()},
        {name: value.double() for name, value in STATE.items()},
        {name: value.half() for name, value in STATE.items()},
        {name: value.bfloat16() for name, value in STATE.items()},
        {**STATE, "features.0.weight": torch.arange(12.0).view(2, 6)[:, ::2] / 2},  # not contiguous
    ],
)
def test_what_is_around_a_state_dict(content, tmp_path):
    assert_same(read_state_dict(save(tmp_path / "weights.pth", content)), STATE)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_of_wrapped_networks(prefix, dtype, tmp_path):
    state = {name: value.to(dtype) for name, value in prefixed(prefix).items()}
    assert_same(read_state_dict(save(tmp_path / "weights.safetensors", state)), STATE)


def test_tensors_that_share_their_memory(tmp_path):
    whole = torch.arange(12.0)
    state = {"a": whole[:6].view(2, 3), "b": whole[4:8], "c": whole[:1].expand(3)}
    assert_same(read_state_dict(save(tmp_path / "weights.pth", state)), state)


def test_prefixes_are_taken_off_where_all_names_have_them(tmp_path):
    mixed = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert_same(read_state_dict(save(tmp_path / "mixed.pth", mixed)), mixed)
    own = {"encoder.weight": torch.ones(1)}  # timm has models all of whose names begin so
    assert_same(read_state_dict(save(tmp_path / "own.pth", prefixed("module.", own)), own), own)


def test_whole_numbers_stay(tmp_path):
    found = read_state_dict(save(tmp_path / "weights.pth", {"num_batches_tracked": torch.tensor(7)}))
    assert found["num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, "more than plain tensors (argparse.Namespace)"),
        ({"state_dict": STATE, "path": Path("x")}, "more than plain tensors (pathlib."),
        ({"state_dict": STATE, "accuracy": np.float64(0.7)}, "more than plain tensors (numpy."),
        (nn.Linear(2, 2), "more than plain tensors (torch.nn.modules.linear.Linear)"),
        ({"a": {"b": {"c": {"d": {"e": STATE}}}}}, "not a state dict"),
        ({"one": STATE, "two": STATE}, "not a state dict"),
        ({0: torch.ones(1)}, "not a state dict"),
        ({"state_dict": {}}, "not a state dict"),
        ({**STATE, "epoch": 3}, "not a state dict"),
        (torch.ones(3), "not a state dict"),
        (None, "not a state dict"),
        ({"a": torch.ones(2, dtype=torch.float8_e4m3fn)}, "a is torch.float8_e4m3fn"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a is torch.complex64"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "a is torch.qint8"),
        ({"a": torch.eye(2).to_sparse()}, "a is torch.float32, torch.sparse_coo"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a holds values that are not finite"),
        ({"a": torch.tensor([1e300], dtype=torch.float64)}, "a holds values that are not finite in float32"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "holds a twice"),
    ],
)
def test_what_is_no_state_dict(content, part, tmp_path):
    path = save(tmp_path / "weights.pth", content)
    with pytest.raises(CheckpointError, match=re.escape(part)) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dictionary_that_holds_itself(tmp_path):
    content = {"epoch": 3}
    content["model"] = content["state_dict"] = content
    with pytest.raises(CheckpointError, match="not a state dict"):
        read_state_dict(save(tmp_path / "weights.pth", content))


@pytest.mark.parametrize("write", [lambda p: p.write_bytes(pickle.dumps(STATE)), lambda p: p.write_bytes(b"\x80\x02.")])
def test_pickles_that_torch_does_not_read(write, tmp_path):
    write(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth: "):
        read_state_dict(tmp_path / "weights.pth")


def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "traced.pt")
    with pytest.raises(CheckpointError, match=r"traced\.pt: ") as caught:
        read_state_dict(tmp_path / "traced.pt")
    assert "\n" not in str(caught.value)


# into a backbone ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squeezenet():
    """Torchvision's network, without training: its classifier responds to no input, as one made for Caffe's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.squeezenet1_1()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_squeezenet_in_other_precisions(squeezenet, dtype, suffix, tmp_path):
    state = {name: value.to(dtype) for name, value in squeezenet.state_dict().items()}
    found = SqueezeNet()
    load_pretrained(found, save(tmp_path / f"weights{suffix}", state), "caffe")
    for name, value in found.features.state_dict().items():
        assert torch.equal(value, state[f"features.{name}"].float())


def test_a_trained_average_of_squeezenet(squeezenet, tmp_path):
    content = {"epoch": 3, "model": AveragedModel(nn.DataParallel(squeezenet)).state_dict(), "optimizer": OPTIMIZER}
    model = build("squeezenet", 64, 3, tcb_channels=8, weights=save(tmp_path / "w.pth", content), weights_input="caffe")
    assert torch.equal(model.backbone.features[3].squeeze.weight, squeezenet.features[3].squeeze.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update({"classifier.1.weight": torch.randn(1000, 512, 1, 1) * 30}),  # for another input
        lambda state: state.update({"features.0.weight": torch.full((64, 3, 3, 3), float("nan"))}),
        lambda state: state.update({"features.0.weight": torch.ones(64, 3, 3, 3, dtype=torch.int64)}),
        lambda state: state.update({"features.0.weight": torch.ones(64, 1, 3, 3)}),
        lambda state: state.update({"features.0.bias": torch.ones(1)}),
        lambda state: state.update({"features.13.weight": torch.ones(1)}),
        lambda state: state.pop("features.12.expand3x3.weight"),
    ],
)
def test_a_backbone_is_as_it_was_after_a_refusal(squeezenet, change, tmp_path):
    state = squeezenet.state_dict()
    change(state)
    backbone = SqueezeNet()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_pretrained(backbone, save(tmp_path / "weights.pth", state), "caffe")
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("shape", [(10, 512), (1, 512, 1, 1), (10, 256, 1, 1)])
def test_a_classifier_that_tells_nothing(squeezenet, shape, tmp_path):
    state = {**squeezenet.state_dict(), "classifier.1.weight": torch.ones(shape)}
    load_pretrained(SqueezeNet(), save(tmp_path / "weights.pth", state), "torchvision")


def test_a_first_convolution_of_grey_images_is_not_spread_over_the_colours():
    with torch.device("meta"):
        state = torchvision.models.resnet101().state_dict()
    state["conv1.weight"], state["bn1.running_mean"] = torch.randn(64, 1, 7, 7), torch.randn(64)
    with pytest.raises(CheckpointError, match=r"conv1\.weight is \[64, 1, 7, 7\] instead of \[64, 3, 7, 7\]"):
        rename_resnet(state, Preprocessing(), "file")
    state["conv1.weight"], state["bn1.running_mean"] = torch.randn(64, 3, 7, 7), torch.randn(1)
    with pytest.raises(CheckpointError, match=r"bn1\.running_mean is \[1\] instead of \[64\]"):
        rename_resnet(state, Preprocessing(), "file")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("features.0.weight", (64, 1, 3, 3)), ("features.0.bias", (1,)), ("classifier.0.bias", (4093,))],
)
def test_vgg_weights_of_other_shapes(name, shape):
    with torch.device("meta"):
        state = torchvision.models.vgg16().state_dict()
        state[name] = torch.empty(shape)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is {re.escape(str(list(shape)))} instead of"):
        reduce_vgg(state, Preprocessing(), "file")


# EfficientNet ---------------------------------------------------------------------------------------------------------

PARTS = {
    "conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc",
    "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv",
    "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand",
}  # fmt: skip


def efficientnet_pytorch(whole):
    """timm's weights by the names of efficientnet-pytorch, written down block by block, in its order."""
    renamed, blocks = {}, []
    for name, value in whole.items():
        *path, part, kind = name.split(".")
        part = ".".join([*path[3:], part])
        if path[:1] == ["blocks"]:
            if path[1:3] not in blocks:
                blocks.append(path[1:3])
            first = path[1] == "0"  # without expansion: conv_dw bn1 [se] conv_pw bn2
            number = int(part[2:]) if part.startswith("bn") else 0
            here = {"conv_pw": "_project_conv" if first else "_expand_conv"}
            own = f"_bn{number if first else number - 1}" if number else {**PARTS, **here}[part]
            renamed[f"_blocks.{len(blocks) - 1}.{own}.{kind}"] = value
        else:
            renamed[f"{PARTS[part]}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("variant", ["tf_efficientnet_lite0", "efficientnet_b0"])
def test_efficientnet_names(variant):
    with torch.device("meta"):
        whole = timm.create_model(variant).state_dict()
    foreign = efficientnet_pytorch(whole)
    assert "_blocks.1._expand_conv.weight" in foreign
    assert rename_efficientnet(foreign, whole, "file") == whole
    shuffled = dict(sorted(foreign.items()))  # as safetensors gives them
    assert list(shuffled) != list(foreign)
    assert rename_efficientnet(shuffled, whole, "file") == whole
    without = {name: value for name, value in shuffled.items() if "num_batches_tracked" not in name}
    assert rename_efficientnet(without, whole, "file").keys() <= whole.keys()


def test_efficientnet_of_another_variant():
    with torch.device("meta"):
        whole, other = (timm.create_model(name).state_dict() for name in ("tf_efficientnet_lite0", "efficientnet_b1"))
    with pytest.raises(CheckpointError, match=r"file: .*another variant .*tf_efficientnet_lite0"):
        rename_efficientnet(efficientnet_pytorch(other), whole, "file")
    missing = efficientnet_pytorch(whole)
    del missing["_blocks.3._bn1.weight"]
    with pytest.raises(CheckpointError, match=r"another variant"):
        rename_efficientnet(missing, whole, "file")


def test_efficientnet_from_safetensors(tmp_path):
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    backbone = TimmBackbone("tf_efficientnet_lite0")
    load_pretrained(backbone, save(tmp_path / "lite0.safetensors", efficientnet_pytorch(whole)))
    for name, value in backbone.body.model.state_dict().items():
        assert torch.equal(value, whole[name])
