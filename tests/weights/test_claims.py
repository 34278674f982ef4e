"""What a checkpoint claims is checked before its network is built: types, lengths, ranges, shapes and values."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.synthetic import tiny_model

import refinedet
from refinedet.errors import CheckpointError, InputError
from refinedet.models import ModelConfig
from refinedet.preprocessing import Preprocessing
from refinedet.presets import OFFICIAL, Preset
from refinedet.weights import checkpoint
from refinedet.weights.checkpoint import (
    TrainingState,
    load_training_state,
    load_weights,
    read_metadata,
    save_model,
    save_training_state,
)

HUGE = 10**400  # a whole number that no float holds
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def network():
    return tiny_model()


@pytest.fixture
def saved(network, tmp_path):
    save_model(network, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def state_file(network, tmp_path):
    save_training_state(
        tmp_path / "last.safetensors", network, TrainingState(7, network.state_dict(), {}, {}, {}, {"window": {}})
    )
    return tmp_path / "last.safetensors"


@pytest.fixture
def unbuilt(monkeypatch):
    """Building a network fails the test: the file has to be refused before."""

    def build(config):
        raise AssertionError("a network was built")

    monkeypatch.setattr(checkpoint, "allocate", build)


def rewrite(path, tensors=None, **header):
    """Save the file again with other tensors or header fields; a field that is Ellipsis is left out."""
    header = {**read_metadata(path), **header}
    text = json.dumps({name: value for name, value in header.items() if value is not ...})
    save_file(load_file(path) if tensors is None else tensors, path, {"refinedet": text})


def claim(path, section, **values):
    """Other values in the configuration, or in a section of it."""
    config = json.loads(read_metadata(path)["config"])
    (config if section is None else config[section]).update(values)
    rewrite(path, config=json.dumps(config))


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        refinedet.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize(
    ("section", "name", "value", "part"),
    [
        ("preprocessing", "mean", [104.0, 117.0], "mean is (104.0, 117.0); give three numbers"),
        ("preprocessing", "mean", "104", "mean is '104'; give three numbers"),
        ("preprocessing", "mean", 104, "mean is 104; give three numbers"),
        ("preprocessing", "mean", ["1", 2, 3], "give three numbers"),
        ("preprocessing", "mean", [NAN, 1, 1], "mean is (nan, 1, 1)"),
        ("preprocessing", "mean", [HUGE, 1, 1], "give three numbers, at most a million"),
        ("preprocessing", "mean", [True, 1, 1], "mean is (True, 1, 1)"),
        ("preprocessing", "std", [1, 0, 1], "std is (1, 0, 1); give three numbers above 0"),
        ("preprocessing", "std", [1, -58, 1], "std is (1, -58, 1)"),
        ("preprocessing", "std", [1, 1e-30, 1], "from a millionth"),
        ("preprocessing", "std", [1, INFINITE, 1], "std is (1, inf, 1)"),
        ("preprocessing", "std", [], "std is ()"),
        ("preprocessing", "std", None, "std is None"),
        ("preprocessing", "order", "gbr", "order is 'gbr'; give one of bgr, rgb"),
        ("preprocessing", "order", ["bgr"], "order is ('bgr',)"),
        ("preprocessing", "scale", 2, "scale"),
        ("preset", "top_k", 10.5, "top_k is 10.5; give a whole number"),
        ("preset", "top_k", 2**63, "top_k is 9223372036854775808; give at most 1000000"),
        ("preset", "keep_top_k", 10**9, "keep_top_k is 1000000000; give at most 1000000"),
        ("preset", "keep_top_k", True, "keep_top_k is True"),
        ("preset", "variances", [0.1, 0.1, 0.2], "variances is (0.1, 0.1, 0.2); give four values"),
        ("preset", "variances", "0.1 ", "variances is 0.1 ; give four values"),
        ("preset", "variances", [1e-300, 1, 1, 1], "give values from 1e-6 to 1e6"),
        ("preset", "variances", [0.1, 0.1, 0.2, 1e300], "give values from 1e-6 to 1e6"),
        ("preset", "variances", [0.1, 0.1, 0.2, HUGE], "give four values above 0"),
        ("preset", "negative_ratio", HUGE, "negative_ratio is 1000"),
        ("preset", "nms_iou", "0.45", "nms_iou is 0.45; give a value from 0 to 1"),
        ("preset", "score_threshold", NAN, "score_threshold is nan"),
        ("preset", "tcb", 1, "tcb is 1; give True or False"),
        ("preset", "name", 5, "name is 5; give a text"),
        ("preset", "soft", 1, "soft"),
        (None, "preset", [], "not a model configuration"),
        (None, "preprocessing", "bgr", "not a model configuration"),
        (None, "size", [64], "input size is (64,); give (height, width)"),
        (None, "size", [64, 64, 64], "give (height, width)"),
        (None, "size", [True, 64], "size is [True, 64], not a list of int"),
        (None, "size", [100, 64], "multiples of 64"),
        (None, "size", [-64, 64], "multiples of 64"),
        (None, "size", [2**20, 2**20], "give at most 16777216 pixels (4096 x 4096)"),
        (None, "size", [64 * 10**4000, 64], "give at most 16777216 pixels"),
        (None, "tcb_channels", 10**12, "tcb_channels is 1000000000000; give a whole number from 1 to 8192"),
        (None, "tcb_channels", 16.0, "tcb_channels is 16.0; give a whole number"),
        (None, "tcb_channels", [16], "tcb_channels is [16]"),
        (None, "anchor_ratio", 0.5, "anchor_ratio is 0.5; give a number from 1 to 16 (2 in the paper)"),
        (None, "anchor_ratio", NAN, "anchor_ratio is nan; give a number"),
        (None, "anchor_ratio", True, "anchor_ratio is True; give a number"),
        (None, "anchor_ratio", [2], "anchor_ratio is [2]; give a number"),
        (None, "backbone", 3, "backbone is 3; give a name"),
        (None, "backbone", ["squeezenet"], "backbone is ['squeezenet']"),
        (None, "backbone", "timm:", "backbone is 'timm:'; choose vgg16"),
        (None, "classes", ["disc", "disc"], "give a sequence of different names"),
        (None, "classes", ["disc", ""], "give a sequence of names"),
    ],
)
@pytest.mark.usefixtures("unbuilt")
def test_values_of_the_configuration(saved, section, name, value, part):
    claim(saved, section, **{name: value})
    message = refusal(saved)
    assert ": its model cannot be built: " in message
    assert part in message
    assert len(message) < 600


@pytest.mark.parametrize(
    "change",
    [
        {"tcb_channels": 8192},
        {"classes": [f"class{number}" for number in range(5000)]},
        {"backbone": "resnet101"},
        {"backbone": "vgg16"},
        {"backbone": "timm:test_convnext"},
    ],
)
@pytest.mark.usefixtures("unbuilt")
def test_a_larger_network_than_the_tensors_are_of(saved, change):
    claim(saved, None, **change)
    assert "does not fit the network" in refusal(saved)


@pytest.mark.parametrize("config", ["[" * 100_000, '{"a": ' * 100_000, "9" * 10_000, '"\\ud800"', "\x00", ""])
@pytest.mark.usefixtures("unbuilt")
def test_a_configuration_that_no_reader_takes(saved, config):
    rewrite(saved, config=config)
    assert "its model cannot be built: not a model configuration" in refusal(saved)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, '{"kind": "\\ud800"}', "[]", "null", '"text"', "{}", ""])
def test_metadata_that_no_reader_takes(saved, text):
    save_file(load_file(saved), saved, {"refinedet": text})
    for load in (refinedet.load, read_metadata, load_training_state):
        with pytest.raises(CheckpointError, match=r"m\.safetensors: its refinedet metadata is damaged") as caught:
            load(saved)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("format_version", 0, "format version 0"),
        ("format_version", -1, "format version -1"),
        ("format_version", True, "format version True"),
        ("format_version", 1.0, "format version 1.0"),
        ("format_version", ..., "format version None"),
        ("format_version", 10**4000, "update the package"),
        ("kind", None, "holds a None"),
        ("kind", ["model"], "holds a ['model']"),
        ("config", {"backbone": "squeezenet"}, "config {'backbone': 'squeezenet'}"),
        ("config", ..., "config None"),
        ("facts", [], "facts []"),
        ("facts", ..., "facts None"),
    ],
)
@pytest.mark.usefixtures("unbuilt")
def test_fields_of_the_header(saved, field, value, part):
    rewrite(saved, **{field: value})
    assert part in refusal(saved)


@pytest.mark.parametrize("step", [-1, "7", INFINITE, NAN, 7.0, True, None, [7], 2**64, HUGE, ...])
@pytest.mark.usefixtures("unbuilt")
def test_step_of_a_run(state_file, step):
    rewrite(state_file, step=step)
    assert "damaged (step" in refusal(state_file)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: .* damaged \(step .*a whole number from 0"):
        load_training_state(state_file)


# tensors --------------------------------------------------------------------------------------------------------------

WEIGHT = "odm.loc.0.weight"
VARIANCE = "backbone.extra32.0.norm.running_var"
COUNTER = "backbone.extra32.0.norm.num_batches_tracked"


def change_tensor(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def fill(name, value):
    return change_tensor(name, lambda tensor: torch.full_like(tensor, value))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_tensor(WEIGHT, lambda t: t.to(torch.float8_e4m3fn)), f"{WEIGHT} is stored as F8_E4M3"),
        (change_tensor(WEIGHT, lambda t: t.to(torch.complex64)), f"{WEIGHT} is stored as C64"),
        (change_tensor(WEIGHT, lambda t: t > 0), f"{WEIGHT} is stored as BOOL"),
        (change_tensor(WEIGHT, lambda t: t.to(torch.int64)), f"{WEIGHT} is torch.int64 instead of torch.float32"),
        (change_tensor(COUNTER, lambda t: t.float()), f"{COUNTER} is torch.float32 instead of torch.int64"),
        (change_tensor(WEIGHT, lambda t: t.flatten(1)), f"{WEIGHT}: file has (12, 144), network needs (12, 16, 3, 3)"),
        (change_tensor(WEIGHT, lambda t: t[:0]), f"{WEIGHT}: file has (0, 16, 3, 3)"),
        (fill(WEIGHT, NAN), f"{WEIGHT} holds values that are not finite"),
        (fill(VARIANCE, -INFINITE), f"{VARIANCE} holds values that are not finite"),
        (fill(VARIANCE, -1e-3), f"{VARIANCE} holds variances below 0"),
        (change_tensor(WEIGHT, lambda t: torch.full_like(t, 1e300, dtype=torch.float64)), "values that are not finite"),
        (lambda tensors: tensors.clear(), "198 of 198 tensors differ"),
    ],
)
def test_tensors(saved, change, part):
    tensors = load_file(saved)
    change(tensors)
    rewrite(saved, tensors)
    assert part in refusal(saved)
    other = tiny_model(seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=re.escape(part)):
        load_weights(other, saved)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_only_the_weights_to_detect_with_are_read(state_file):
    """The momentum of a run is no business of those who detect with it."""
    tensors = load_file(state_file)
    tensors["momentum.odm.loc.0.weight"] = torch.full((12, 16, 3, 3), NAN)
    rewrite(state_file, tensors)
    refinedet.load(state_file)


def test_a_run_without_weights(state_file):
    rewrite(state_file, {"random.cpu": torch.get_rng_state()})
    assert "198 of 198 tensors differ" in refusal(state_file)


def test_the_state_of_a_run_in_types_of_no_weights(state_file):
    tensors = load_file(state_file)
    tensors["momentum.odm.loc.0.weight"] = torch.zeros(12, 16, 3, 3, dtype=torch.float8_e5m2)
    rewrite(state_file, tensors)
    with pytest.raises(CheckpointError, match=r"momentum\.odm\.loc\.0\.weight is stored as F8_E5M2"):
        load_training_state(state_file)


# the same values, in Python -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Preset(top_k=2_000_000),
        lambda: Preset(variances=(1e-9, 1, 1, 1)),
        lambda: Preset(negative_ratio=HUGE),
        lambda: Preset(negative_ratio=10**5000),
        lambda: Preprocessing(mean=(1.0, 2.0)),
        lambda: Preprocessing(std=(0.0, 1.0, 1.0)),
        lambda: Preprocessing(order="bgra"),
        lambda: ModelConfig("squeezenet", (64, 100), ("cat",)),
        lambda: ModelConfig("squeezenet", (64, 64), ("cat",), preset="official"),
        lambda: ModelConfig("squeezenet", (64, 64), ("cat",), OFFICIAL, None),
        lambda: ModelConfig("squeezenet", (64, 64), ("cat", 2)),
        lambda: refinedet.build("squeezenet", 64, 3, tcb_channels=8.0),
        lambda: refinedet.build("squeezenet", (8192, 8192), 3),
        lambda: refinedet.generate_anchors((64, 2**40)),
    ],
)
def test_what_no_checkpoint_may_hold_cannot_be_made(make):
    with pytest.raises(InputError):
        make()


def test_the_largest_input():
    assert len(refinedet.generate_anchors((64, 4096 * 64))) == 3 * 4096 * 4096 * 85 // 4096
