"""Networks inside others: whatever is around one or its parts, its file is that of the network alone."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.synthetic import tiny_checkpoint, tiny_model
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel

import refinedet
from refinedet.errors import CheckpointError, InputError
from refinedet.models import unwrap_names
from refinedet.training.average import ModelEMA
from refinedet.weights.checkpoint import (
    TrainingState,
    is_checkpoint,
    load_training_state,
    load_weights,
    read_metadata,
    save_model,
    save_training_state,
)


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    """Of one process, which DistributedDataParallel asks for."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever networks there are
    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def network():
    return tiny_model()


def average(network):
    return ModelEMA(network, 0.9)


WRAPPERS = {
    "compile": [torch.compile],
    "DataParallel": [nn.DataParallel],
    "DistributedDataParallel": [DistributedDataParallel],
    "AveragedModel": [AveragedModel],
    "ModelEMA": [average],
    "compile in DataParallel": [torch.compile, nn.DataParallel],
    "DataParallel in compile": [nn.DataParallel, torch.compile],
    "DistributedDataParallel in AveragedModel": [DistributedDataParallel, AveragedModel],
    "all": [torch.compile, nn.DataParallel, torch.compile, AveragedModel],
}


def wrap(network, wrappers):
    for wrapper in wrappers:
        network = wrapper(network)
    return network


def wrapped_parts():
    """A network whose backbone is compiled, and one of whose heads is inside DataParallel."""
    network = tiny_model()
    network.backbone = torch.compile(network.backbone)
    network.odm.conf[1] = nn.DataParallel(network.odm.conf[1])
    return network


def assert_same_weights(found, network):
    expected = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("wrappers", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_network_is_saved_as_it_is_alone(network, wrappers, tmp_path):
    save_model(wrap(network, wrappers), tmp_path / "wrapped.safetensors")
    assert_same_weights(load_file(tmp_path / "wrapped.safetensors"), network)
    assert refinedet.load(tmp_path / "wrapped.safetensors").network.config == network.config


def test_wrapped_parts_are_saved_as_the_network_alone(network, tmp_path):
    save_model(wrapped_parts(), tmp_path / "m.safetensors")
    assert_same_weights(load_file(tmp_path / "m.safetensors"), network)


def test_the_state_of_a_run_has_the_names_of_the_network_alone(network, tmp_path):
    model, path = torch.compile(network), tmp_path / "last.safetensors"
    momentum = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    state = TrainingState(3, model.state_dict(), momentum, nn.DataParallel(network).state_dict(), {}, {})
    save_training_state(path, model, state)
    found = load_training_state(path)
    assert_same_weights(found.model, network)
    assert_same_weights(found.average, network)
    assert found.momentum.keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize("wrappers", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_weights_are_loaded_into_a_wrapped_network(wrappers, tmp_path):
    source = tiny_model(seed=1)
    save_model(source, tmp_path / "m.safetensors")
    model = wrap(tiny_model(), wrappers)
    load_weights(model, tmp_path / "m.safetensors")
    save_model(model, tmp_path / "again.safetensors")
    assert_same_weights(load_file(tmp_path / "again.safetensors"), source)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.module."])
def test_files_with_the_names_of_wrappers_are_loaded(network, prefix, tmp_path):
    """As they were written before wrappers were taken off."""
    path = tiny_checkpoint(tmp_path / "m.safetensors")
    tensors = {prefix + name: value for name, value in load_file(path).items()}
    save_file(tensors, path, {"refinedet": json.dumps(read_metadata(path))})
    assert_same_weights(refinedet.load(path).network.state_dict(), network)
    other = tiny_model(seed=1)
    load_weights(other, path)
    assert_same_weights(other.state_dict(), network)


def test_a_file_that_holds_a_tensor_twice(tmp_path):
    path = tiny_checkpoint(tmp_path / "m.safetensors")
    tensors = load_file(path)
    tensors["module.odm.loc.0.bias"] = tensors["odm.loc.0.bias"] + 1
    save_file(tensors, path, {"refinedet": json.dumps(read_metadata(path))})
    with pytest.raises(CheckpointError, match=r"m\.safetensors: holds odm\.loc\.0\.bias twice, once inside a wrapper"):
        refinedet.load(path)


def test_names_that_look_like_a_wrappers_stay():
    """timm's iFormer has parts that are called module."""
    own = ["mixer.module.0.weight", "head.weight"]
    for names in (own, ["module.mixer.module.0.weight", "module._orig_mod.head.weight"]):
        assert list(unwrap_names(dict.fromkeys(names), own, "file")) == own


@pytest.mark.parametrize("model", [nn.Linear(1, 1), nn.DataParallel(nn.Linear(1, 1)), None, "bccd"])
def test_what_holds_no_network(model, tmp_path):
    with pytest.raises(InputError, match=rf"{type(model).__name__} is no RefineDet and wraps none; give the network"):
        save_model(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_detector_is_no_network(network, tmp_path):
    """Its thresholds may be others than those the file would hold."""
    with pytest.raises(InputError, match=r"Detector is no RefineDet .*detector\.network"):
        save_model(refinedet.Detector(network), tmp_path / "m.safetensors")


# what could not be loaded again ---------------------------------------------------------------------------------------


def test_a_network_that_was_changed_is_not_saved(tmp_path):
    network = tiny_model()
    weight_norm(network.odm.loc[0])
    with pytest.raises(CheckpointError, match=r"not written: the network was changed since it was built; (.|\n)*odm"):
        save_model(network, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="not written: the network was changed"):
        save_training_state(
            tmp_path / "last.safetensors", network, TrainingState(0, network.state_dict(), {}, {}, {}, {})
        )
    assert not list(tmp_path.iterdir())


def test_a_network_without_values_is_not_saved(tmp_path):
    with torch.device("meta"):
        network = refinedet.build("squeezenet", 64, 3, tcb_channels=16)
    with pytest.raises(CheckpointError, match=r"not written: backbone\..* has no values \(device meta\)"):
        save_model(network, tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_weights_of_a_type_that_is_not_loaded_are_not_saved(dtype, tmp_path):
    network = tiny_model()
    network.odm.loc[0].bias = nn.Parameter(network.odm.loc[0].bias.detach().to(dtype), requires_grad=False)
    with pytest.raises(CheckpointError, match=rf"not written: odm\.loc\.0\.bias is {dtype}"):
        save_model(network, tmp_path / "m.safetensors")


def test_tied_and_scattered_weights_are_saved(tmp_path):
    network = tiny_model()
    network.odm.loc[1].weight = network.odm.loc[0].weight
    network.odm.loc[1].bias = network.odm.loc[0].bias  # vectors need no copy, so that the file's would share memory
    network.odm.loc[2].weight = nn.Parameter(torch.rand(3, 3, 16, 12).permute(3, 2, 0, 1))
    network.odm.loc[3].bias = nn.Parameter(torch.rand(24)[::2])
    save_model(network, tmp_path / "m.safetensors")
    assert_same_weights(refinedet.load(tmp_path / "m.safetensors").network.state_dict(), network)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_networks_in_other_precisions_are_loaded_in_float32(cast, tmp_path):
    network = getattr(tiny_model(), cast)()
    save_model(network, tmp_path / "m.safetensors")
    assert_same_weights(refinedet.load(tmp_path / "m.safetensors").network.state_dict(), network.float())


@pytest.mark.parametrize("metadata", [{"path": Path("x")}, {"names": {"cat"}}, {(1, 2): 3}])
def test_metadata_that_is_no_json(network, metadata, tmp_path):
    with pytest.raises(InputError, match=r"m\.safetensors not written: its metadata is no JSON"):
        save_model(network, tmp_path / "m.safetensors", metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_a_class_name_that_no_file_holds():
    with pytest.raises(InputError, match="holds half of a surrogate pair"):
        refinedet.build("squeezenet", 64, classes=("cat", "\ud83d"), tcb_channels=8)


def test_a_shipped_name_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("refinedet.weights.checkpoint.CHECKPOINTS", tmp_path)
    path = tiny_checkpoint(tmp_path / "cells.safetensors", seed=2)
    assert is_checkpoint("cells")
    assert is_checkpoint(path)
    assert not is_checkpoint("sells")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert not is_checkpoint(tmp_path / "text.safetensors")
