"""Checkpoint files: exact round trips, and one clear error for everything that is no checkpoint."""

import json
import pickle
import re
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.synthetic import tiny_model

import refinedet
from refinedet.errors import CheckpointError
from refinedet.models import ModelConfig
from refinedet.presets import COCO
from refinedet.weights import checkpoint
from refinedet.weights.checkpoint import (
    TrainingState,
    load_training_state,
    load_weights,
    read_metadata,
    save_model,
    save_training_state,
    shipped_names,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    return path


@contextmanager
def largest_file(size):
    """No file can grow beyond ``size`` bytes, as on a full disk; the write fails in the operating system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rewrite(path, *, tensors=None, **header):
    """Save the file again with other tensors or header fields."""
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, {"refinedet": json.dumps({**read_metadata(path), **header})})


def training_state(model, **changes):
    fields = {"step": 7, "model": model.state_dict(), "momentum": {}, "average": {}, "random": {}, "facts": {}}
    return TrainingState(**{**fields, **changes})


def test_round_trip_is_exact(model, saved):
    loaded = refinedet.load(saved).network
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_every_preset_and_shape_comes_back(tmp_path):
    preset = replace(refinedet.PAPER, tcb=False, cascade=False, objectness_threshold=0.0)
    shape = {"tcb_channels": 8, "anchor_ratio": 3.5}
    built = refinedet.build("squeezenet", size=(64, 128), classes=("cat", "Köter"), preset=preset, **shape)
    save_model(built, tmp_path / "m.safetensors")
    loaded = refinedet.load(tmp_path / "m.safetensors").network
    assert loaded.config == built.config
    assert torch.equal(loaded.anchors, refinedet.generate_anchors((64, 128), ratio=3.5))
    assert torch.equal(loaded.anchors_for((64, 64)), refinedet.generate_anchors((64, 64), ratio=3.5))


def test_a_checkpoint_written_before_there_were_anchor_ratios_loads(model):
    old = json.loads(model.config.to_json())
    assert old.pop("anchor_ratio") == 2
    assert ModelConfig.from_json(json.dumps(old)) == model.config


def test_a_checkpoint_written_before_there_was_soft_nms_loads(model):
    text = model.config.to_json()
    old = json.loads(text)
    assert old["preset"].pop("soft_nms_iou") is None
    assert ModelConfig.from_json(json.dumps(old)) == model.config
    coco = replace(model.config, preset=COCO)
    assert ModelConfig.from_json(coco.to_json()) == coco


def test_metadata_comes_back(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path, metadata={"mean_ap": 0.9, "recipe": {"train": {"steps": 3}}})
    facts = read_metadata(path)["facts"]
    assert facts == {"mean_ap": 0.9, "recipe": {"train": {"steps": 3}}}


def test_half_stores_float16_and_loads_float32(model, saved, tmp_path):
    half = tmp_path / "half.safetensors"
    save_model(model, half, half=True)
    assert half.stat().st_size < 0.52 * saved.stat().st_size
    stored = load_file(half)
    assert {t.dtype for t in stored.values() if t.dim() > 1} == {torch.float16}
    assert all(t.dtype == model.state_dict()[name].dtype for name, t in stored.items() if t.dim() <= 1)
    loaded = refinedet.load(half).network.state_dict()
    assert {name: t.dtype for name, t in loaded.items()} == {name: t.dtype for name, t in model.state_dict().items()}
    assert all(torch.equal(loaded[name], t.to(loaded[name])) for name, t in stored.items())


def test_half_refuses_a_weight_beyond_float16(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"not written: backbone\..* not finite as torch\.float16"):
        save_model(model, tmp_path / "m.safetensors", half=True)


def test_weights_that_are_not_finite_are_never_saved(saved):
    before = saved.read_bytes()
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        save_model(model, saved)
    assert saved.read_bytes() == before


def test_training_state_round_trip(model, tmp_path):
    path = tmp_path / "last.safetensors"
    momentum = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    random = {"cpu": torch.get_rng_state()}
    facts = {"window": {"sums": {"total": 0.1 + 0.2}, "count": 3}}
    save_training_state(path, model, training_state(model, momentum=momentum, random=random, facts=facts))
    state = load_training_state(path)
    assert (state.step, state.facts, state.average) == (7, facts, {})
    assert all(torch.equal(state.momentum[name], value) for name, value in momentum.items())
    assert torch.equal(state.random["cpu"], random["cpu"])


def test_training_state_loads_as_a_model(model, tmp_path):
    path = tmp_path / "last.safetensors"
    save_training_state(path, model, training_state(model))
    loaded = refinedet.load(path).network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_training_state_with_average_loads_the_average(model, tmp_path):
    path = tmp_path / "last.safetensors"
    average = tiny_model(seed=1).state_dict()
    save_training_state(path, model, training_state(model, average=average))
    loaded = refinedet.load(path).network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in average.items())


def test_model_is_no_training_state(saved):
    with pytest.raises(
        CheckpointError, match=r"finished model, not the state of a run; resume needs last\.safetensors"
    ):
        load_training_state(saved)


def test_load_weights_starts_another_model(model, saved):
    other = tiny_model(seed=5)
    load_weights(other, saved)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_load_weights_turns_the_first_kernel_of_another_order_of_colours(model, tmp_path):
    """As those of the luuuyi port, which reads RGB: an image gives the same outputs."""
    network = tiny_model()
    network.config = replace(network.config, preprocessing=replace(network.config.preprocessing, order="rgb"))
    save_model(network, tmp_path / "rgb.safetensors")
    other = tiny_model(seed=5)
    load_weights(other, tmp_path / "rgb.safetensors")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(other(image.flip(1)), network(image), strict=True):
            torch.testing.assert_close(found, expected)


# files that are no checkpoint ----------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        refinedet.load(tmp_path / "none.safetensors")


def test_folder(saved):
    with pytest.raises(CheckpointError, match=r"is a folder; give a checkpoint file, such as .*model\.safetensors"):
        refinedet.load(saved.parent)


def test_unknown_shipped_name_lists_the_known_ones(model, tmp_path, monkeypatch):
    save_model(model, tmp_path / "cells.safetensors")
    monkeypatch.setattr(checkpoint, "CHECKPOINTS", tmp_path)
    assert shipped_names() == ["cells"]
    assert refinedet.load("cells").network.config == model.config
    with pytest.raises(CheckpointError, match=r"called 'sells'; did you mean 'cells'\? shipped: cells"):
        refinedet.load("sells")


class Trap:
    """Creates the file ``path`` when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_folder_of_the_same_name_does_not_hide_a_shipped_checkpoint(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINTS", saved.parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / saved.stem).mkdir()
    assert checkpoint.resolve(saved.stem) == saved


@pytest.mark.parametrize("writer", ["torch", "legacy torch", "pickle", "old pickle"])
def test_pickle_is_never_opened(writer, tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "evil.safetensors"
    content = {"weight": torch.zeros(2), "trap": Trap(sprung)}
    if "torch" in writer:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    else:
        path.write_bytes(pickle.dumps(content, protocol=4 if writer == "pickle" else 0))
    for load in (refinedet.load, load_training_state, read_metadata):
        with pytest.raises(CheckpointError, match=r"evil\.safetensors is not a safetensors file") as caught:
            load(path)
        assert not sprung.exists()
    if writer != "old pickle":  # protocol 0 is plain text, which nothing tells from other text
        assert "save_model" in str(caught.value)


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1])
def test_truncated_file(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is truncated or damaged \({saved.stat().st_size} "):
        refinedet.load(saved)


def test_other_file(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 some picture")
    with pytest.raises(CheckpointError, match=r"photo\.jpg is not a safetensors file; give a checkpoint"):
        refinedet.load(path)


def test_safetensors_of_another_program(tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"without refinedet's metadata"):
        refinedet.load(path)


def test_newer_format_version(saved):
    rewrite(saved, format_version=99)
    with pytest.raises(CheckpointError, match=r"format version 99, this refinedet reads up to 1: update"):
        refinedet.load(saved)


def test_damaged_metadata(saved):
    save_file(load_file(saved), saved, {"refinedet": "{"})
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        refinedet.load(saved)


@pytest.mark.parametrize("config", ["no json", "{}", '{"backbone": "vgg17"}', "[1]"])
def test_configuration_that_cannot_be_built(saved, config):
    rewrite(saved, config=config)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its model cannot be built"):
        refinedet.load(saved)


def test_unknown_backbone_in_the_configuration(model, saved):
    rewrite(saved, config=model.config.to_json().replace("squeezenet", "vgg17"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its model cannot be built: backbone is 'vgg17'"):
        refinedet.load(saved)


def test_wrong_class_count_names_tensors_and_shapes(saved):
    other = tiny_model(classes=("a", "b", "c", "d"))
    with pytest.raises(CheckpointError) as caught:
        load_weights(other, saved)
    message = str(caught.value)
    assert "model.safetensors does not fit the network" in message
    assert "file has (9, 16, 3, 3), network needs (15, 16, 3, 3)" in message
    assert "odm." in message


def test_missing_and_strange_tensors_are_named(saved):
    tensors = load_file(saved)
    first = next(iter(tiny_model().state_dict()))
    tensors["strange"] = tensors.pop(first)
    rewrite(saved, tensors=tensors)
    with pytest.raises(CheckpointError, match=rf"{first}: file has none(.|\n)*strange: file has .*network needs none"):
        refinedet.load(saved)


# full disk -----------------------------------------------------------------------------------------------------------


def test_full_disk_leaves_the_previous_checkpoint(model, saved):
    before = saved.read_bytes()
    with largest_file(100_000), pytest.raises(CheckpointError) as caught:
        save_model(tiny_model(seed=1), saved)
    assert saved.read_bytes() == before
    assert f"cannot write {saved}" in str(caught.value)
    assert "previous model.safetensors is untouched" in str(caught.value)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert refinedet.load(saved).network.config == model.config


def test_full_disk_without_a_previous_checkpoint(model, tmp_path):
    with largest_file(100_000), pytest.raises(CheckpointError, match="Free space") as caught:
        save_training_state(tmp_path / "last.safetensors", model, training_state(model))
    assert "untouched" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_place_of_the_file(model, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(
        CheckpointError, match=r"cannot write .*model\.safetensors, which is a folder; give a file in it"
    ):
        save_model(model, tmp_path / "model.safetensors")


def test_no_space_left_on_device(model, saved, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr("refinedet.files.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_model(model, saved)
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"size": [64.0, 64.0]}, {"size": "64"}, {"tcb_channels": -1}, {"tcb_channels": "wide"}, {"classes": 3}, None],
)
def test_wild_values_in_the_configuration(saved, change):
    config = None if change is None else json.dumps({**json.loads(read_metadata(saved)["config"]), **change})
    rewrite(saved, config=config)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        refinedet.load(saved)


@pytest.mark.parametrize("classes", ["ab", [], ["a", 2], [["a"], ["b"]]])
def test_class_names_that_are_no_list_of_texts(saved, classes):
    """The text "ab" has as many letters as the network has classes: every tensor would fit."""
    rewrite(saved, config=json.dumps({**json.loads(read_metadata(saved)["config"]), "classes": classes}))
    message = re.escape(f"classes is {classes!r}, not a list of str")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: its model cannot be built: .*{message}"):
        refinedet.load(saved)


def test_a_format_version_that_is_no_number(saved):
    rewrite(saved, format_version="1")
    with pytest.raises(CheckpointError, match=r"metadata is damaged \(format version '1'\)"):
        refinedet.load(saved)


def test_weights_that_are_not_finite_are_not_loaded(saved):
    tensors = load_file(saved)
    tensors["odm.loc.0.weight"][0] = float("nan")
    rewrite(saved, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"damaged: odm\.loc\.0\.weight holds values that are not finite"):
        refinedet.load(saved)


def test_loading_in_inference_mode_spoils_no_later_network(model, saved):
    """What is kept from one load to the next must not be made of inference tensors."""
    outline = checkpoint.outline(model.config)
    outline_cache = checkpoint.outline.__globals__["_outline"]
    outline_cache.cache_clear()
    with torch.inference_mode():
        refinedet.load(saved)
    assert checkpoint.outline(model.config) is not outline
    network = refinedet.load(saved).network.train()
    network(torch.rand(2, 3, 64, 64)).odm_loc.sum().backward()
    assert network.odm.loc[0].weight.grad.any()


def test_a_shipped_name_with_a_suffix_is_suggested(tmp_path):
    (tmp_path / "h.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"bcdd\.safetensors does not exist; did you mean 'bccd'\?"):
        refinedet.load(tmp_path / "bcdd.safetensors")
