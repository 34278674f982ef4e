"""A run that dies and is resumed goes through the same losses, bit for bit, as one that never stopped."""

import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.paths import TESTS
from support.runs import PATIENCE, logged_losses, tiny_recipe
from support.synthetic import make_voc

from refinedet.errors import CheckpointError, InputError, RecipeError
from refinedet.models import build
from refinedet.training import run as run_module
from refinedet.training.logs import read_log
from refinedet.training.loss import MultiBoxLosses
from refinedet.training.read import parse_recipe, read_recipe
from refinedet.training.resume import read_scale
from refinedet.training.run import train
from refinedet.training.step import Trainer
from refinedet.weights.checkpoint import load_training_state, save_training_state

CPU = torch.device("cpu")
SECTIONS = {"train": {"ema_decay": 0.9, "clip_norm": 50.0}}

# A child process that trains; MOMENT says where it dies by SIGKILL: in the middle of step STEP or of the checkpoint
# after it, having written half of the file.
CHILD = """
import os, signal, sys
import torch
from support.runs import tiny_recipe
import refinedet.weights.checkpoint as checkpoint
from refinedet.training import step as trainer
from refinedet.training.run import train

torch.set_num_threads(1)
data, out, moment, step = *sys.argv[1:4], int(sys.argv[4])
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

class Deadly(trainer.CaffeSGD):
    steps = 0
    def _step_group(self, group):
        super()._step_group(group)
        if moment == "step" and Deadly.steps == step:
            die()
    def step(self, closure=None):
        super().step(closure)
        Deadly.steps += 1

def deadly_save(tensors, path, metadata):
    save(tensors, path, metadata)
    if moment == "save" and Deadly.steps >= step:
        os.truncate(path, os.path.getsize(path) // 2)
        die()

save, checkpoint.save_file = checkpoint.save_file, deadly_save
trainer.CaffeSGD = Deadly
train(tiny_recipe(train={"ema_decay": 0.9, "clip_norm": 50.0, "workers": 1}), out, data=data, progress=False)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("voc"), {"train": 6, "test": 2})


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(tiny_recipe(**SECTIONS), out, data=data, progress=False)
    return out


@pytest.fixture
def finished(uninterrupted, tmp_path):
    """A copy of the finished run, to resume."""
    out = tmp_path / "copy"
    out.mkdir()
    for file in uninterrupted.iterdir():
        if file.is_file():
            (out / file.name).write_bytes(file.read_bytes())
    return out


def assert_same_run(out, uninterrupted):
    assert logged_losses(out) == logged_losses(uninterrupted)
    weights, expected = load_file(out / "model.safetensors"), load_file(uninterrupted / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("moment", ["step", "save"])
def test_killed_run_resumes_exactly(moment, data, uninterrupted, tmp_path):
    step = random.SystemRandom().randint(1, 10)
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-c", CHILD, str(data), str(out), moment, str(step)]
    with (tmp_path / "stderr").open("w") as stderr:  # a pipe would stay open as long as the orphaned loading worker
        child = subprocess.run(command, env=environment, stderr=stderr, timeout=PATIENCE)
    assert child.returncode == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    assert not (out / "model.safetensors").exists()
    saved = load_training_state(out / "last.safetensors").step
    assert saved == (step // 4 * 4 if moment == "step" else (step - 1) // 4 * 4)
    train(tiny_recipe(**SECTIONS), out, data=data, resume=True, progress=False)
    assert_same_run(out, uninterrupted)
    assert not list(out.glob(".*"))


def test_means_over_several_steps_resume_exactly(data, tmp_path):
    """Checkpoints in the middle of a logging interval."""
    sections = {"train": {"log_every": 5, "checkpoint_every": 3, "steps": 10}}
    train(tiny_recipe(**sections), tmp_path / "whole", data=data, progress=False)
    train(tiny_recipe(train={**sections["train"], "steps": 8}), tmp_path / "parts", data=data, progress=False)
    train(tiny_recipe(**sections), tmp_path / "parts", data=data, resume=True, progress=False)
    assert [entry[0] for entry in logged_losses(tmp_path / "parts")] == [5, 10]
    assert logged_losses(tmp_path / "parts") == logged_losses(tmp_path / "whole")


def test_resume_restores_the_random_generator(finished, data):
    torch.set_rng_state(load_training_state(finished / "last.safetensors").random["cpu"])
    expected = torch.rand(3)
    train(tiny_recipe(**SECTIONS), finished, data=data, resume=True, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_run_of_a_cpu_goes_on_where_gradients_are_scaled(finished):
    """As a GPU with train.amp does."""
    path = finished / "last.safetensors"
    trainer = Trainer(build("squeezenet", 64, num_classes=3, tcb_channels=16), tiny_recipe(**SECTIONS), CPU)
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.restore(load_training_state(path), path)
    assert trainer.steps == 12
    assert trainer.scaler.state_dict() == torch.amp.GradScaler("cpu").state_dict()


def test_finished_run_can_be_finished_again(finished, data, uninterrupted):
    result = train(tiny_recipe(**SECTIONS), finished, data=data, resume=True, progress=False)
    assert (result.steps, result.loss) == (12, logged_losses(uninterrupted)[-1][1])
    assert_same_run(finished, uninterrupted)


def test_resume_with_more_steps_continues(finished, data, uninterrupted):
    recipe = tiny_recipe(train={**SECTIONS["train"], "steps": 14, "log_every": 2}, evaluate={"every": 14})
    result = train(recipe, finished, data=data, resume=True, progress=False)
    assert result.steps == 14
    assert logged_losses(finished)[:12] == logged_losses(uninterrupted)
    assert logged_losses(finished)[12][0] == 14
    assert result.evaluation["images"] == 2


def test_run_killed_after_its_last_evaluation_logs_it_once(data, tmp_path, monkeypatch):
    recipe = tiny_recipe(train={"steps": 2}, evaluate={"every": 1})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module._Run, "_write_result", die)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", data=data, progress=False)
    monkeypatch.undo()
    for _ in range(2):
        result = train(recipe, tmp_path / "run", data=data, resume=True, progress=False)
        assert result.evaluation["images"] == 2
        entries = [(entry["step"], entry["group"]) for entry in read_log(tmp_path / "run" / "log.jsonl")]
        assert entries == [(1, "train"), (1, "test"), (2, "train"), (2, "test")]


def test_cut_off_last_line_of_the_log(finished, data, uninterrupted):
    log = finished / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 13, "tot')
    train(tiny_recipe(**SECTIONS), finished, data=data, resume=True, progress=False)
    assert_same_run(finished, uninterrupted)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"metric": "voc", "use_07_metric": True}, {"metric": "voc07"}),
        ({"metric": "voc", "use_07_metric": False}, {"metric": "voc"}),
        ({"metric": "coco", "use_07_metric": False}, {"metric": "coco"}),
        ({"use_07_metric": True}, {"metric": "voc07"}),
        ({"metric": "voc07"}, {"metric": "voc07"}),
    ],
)
def test_settings_of_older_runs_are_read_in_todays_words(old, new, tmp_path):
    """Those of its state, and those of the recipe.toml that lies beside it."""
    stored = {"model": {"backbone": "vgg16"}, "train": {"steps": 9}, "evaluate": {"every": 5, **old}}
    today = {**stored, "evaluate": {"every": 5, **new}}
    expected = parse_recipe(today, name="recipe", source="test")
    assert parse_recipe(stored, name="recipe", source="test") == expected
    assert stored["evaluate"] == {"every": 5, **old}
    sections = [
        [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())] for section, values in stored.items()
    ]
    file = tmp_path / "recipe.toml"
    file.write_text("\n".join(line for lines in sections for line in lines))
    assert read_recipe(file) == expected


def test_run_of_an_older_version_resumes(finished, data, uninterrupted):
    """Its state says use_07_metric."""
    path = finished / "last.safetensors"
    state = load_training_state(path)
    state.facts["recipe"]["evaluate"].update(metric="voc", use_07_metric=True)
    save_training_state(path, build("squeezenet", 64, num_classes=3, tcb_channels=16), state)
    assert "use_07_metric" in load_training_state(path).facts["recipe"]["evaluate"]
    recipe = tiny_recipe(train={**SECTIONS["train"], "steps": 13}, evaluate={"metric": "voc07"})
    assert train(recipe, finished, data=data, resume=True, progress=False).steps == 13
    assert logged_losses(finished)[:12] == logged_losses(uninterrupted)
    assert "use_07_metric" not in load_training_state(path).facts["recipe"]["evaluate"]


# refusals ------------------------------------------------------------------------------------------------------------


def test_folder_with_a_run_is_not_overwritten(finished, data):
    before = (finished / "last.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"copy is not empty; resume it \(--resume\) or choose another folder"):
        train(tiny_recipe(**SECTIONS), finished, data=data)
    assert (finished / "last.safetensors").read_bytes() == before


def test_folder_with_other_files_is_refused(tmp_path, data):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        train(tiny_recipe(), tmp_path, data=data)


def test_file_as_folder(tmp_path, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file; give a folder"):
        train(tiny_recipe(), tmp_path / "file", data=data)


def test_nothing_to_resume(tmp_path, data):
    with pytest.raises(CheckpointError, match=r"holds no run to resume \(no last\.safetensors\)"):
        train(tiny_recipe(), tmp_path / "absent", data=data, resume=True)
    assert not (tmp_path / "absent").exists()


def test_resume_with_another_recipe_names_the_setting(finished, data):
    recipe = tiny_recipe(train={**SECTIONS["train"], "lr": 0.5, "workers": 1})
    with pytest.raises(RecipeError, match=r"other settings: train\.lr was 0\.001, now 0\.5\. Resume it with .*toml"):
        train(recipe, finished, data=data, resume=True)


def test_resume_on_other_data_is_refused(finished, tmp_path):
    other = make_voc(tmp_path / "other", {"train": 5})
    with pytest.raises(CheckpointError, match="started on other images or annotations"):
        train(tiny_recipe(**SECTIONS), finished, data=other, resume=True)


def test_resume_from_a_damaged_state(finished, data):
    state = finished / "last.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.safetensors is truncated or damaged"):
        train(tiny_recipe(**SECTIONS), finished, data=data, resume=True)


def test_moved_data_set_can_be_resumed(finished, tmp_path, uninterrupted):
    moved = make_voc(tmp_path / "moved", {"train": 6, "test": 2})
    train(tiny_recipe(**SECTIONS), finished, data=moved, resume=True, progress=False)
    assert_same_run(finished, uninterrupted)


def change_state(out, change):
    """Write the state anew after ``change(tensors, header)``."""
    path = out / "last.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, header = load_file(path), json.loads(metadata["refinedet"])
    change(tensors, header)
    save_file(tensors, path, {**metadata, "refinedet": json.dumps(header)})


def refuses_state(out, data, message):
    before = (out / "last.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        train(tiny_recipe(**SECTIONS), out, data=data, resume=True, progress=False)
    assert "last.safetensors" in str(caught.value)
    assert (out / "last.safetensors").read_bytes() == before


WEIGHT = "backbone.features.0.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("random.cpu", None, r"random\.cpu, the state of the generator, is missing"),
        ("random.cpu", torch.zeros(7, dtype=torch.uint8), r"random\.cpu is no state of a generator"),
        ("random.cpu", torch.zeros(5056), r"random\.cpu is no state of a generator"),
        (f"momentum.{WEIGHT}", None, rf"momentum\.{WEIGHT} is missing"),
        (
            f"momentum.{WEIGHT}",
            torch.zeros(3),
            rf"momentum\.{WEIGHT} is \[3\], torch\.float32, the network needs \[64, 3",
        ),
        (f"momentum.{WEIGHT}", math.nan, rf"momentum\.{WEIGHT} holds values that are not finite"),
        (f"model.{WEIGHT}", math.inf, rf"model\.{WEIGHT} holds values that are not finite"),
        (f"average.{WEIGHT}", math.nan, rf"average\.{WEIGHT} holds values that are not finite"),
        (f"model.{WEIGHT}", torch.float64, rf"model\.{WEIGHT} is .*float64, the network needs .*float32"),
        (f"average.{WEIGHT}", None, rf"average\.{WEIGHT} is missing"),
        ("momentum.other", torch.zeros(3), r"momentum\.other belongs to no part of the network"),
    ],
)
def test_resume_from_tensors_that_are_missing_or_damaged(finished, data, name, value, message):
    def change(tensors, header):
        if value is None:
            del tensors[name]
        elif isinstance(value, float):
            tensors[name].view(-1)[5] = value
        else:
            tensors[name] = tensors[name].to(value) if isinstance(value, torch.dtype) else value

    change_state(finished, change)
    refuses_state(finished, data, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (["step"], -1, r"step -1"),
        (["step"], "12", r"step '12'"),
        (["step"], math.inf, r"step inf"),
        (["step"], True, r"step True"),
        (["step"], 10**400, r"step 1000"),
        (["facts", "recipe"], None, r"recipe is missing, it must be a JSON object"),
        (["facts", "recipe"], [], r"recipe is \[\], it must be a JSON object"),
        (["facts", "recipe", "train", "lr"], "x", r"train\.lr is 'x'"),
        (["facts", "recipe", "train", "lr"], 10**400, r"train\.lr is 1000.*whole numbers go up to"),
        (["facts", "window"], None, r"window is missing"),
        (["facts", "window", "count"], -1, r"window\.count is -1, it must be from 0 to step 12"),
        (["facts", "window", "count"], 13, r"window\.count is 13, it must be from 0 to step 12"),
        (["facts", "window", "count"], 1.0, r"window\.count is 1\.0"),
        (
            ["facts", "window", "sums"],
            {"total": 1.0},
            r"window\.sums is \{'total': 1\.0\}, it must be 0 losses by name",
        ),
        (["facts", "scaler"], None, r"scaler is missing"),
        (["facts", "scaler"], {"scale": 2.0}, r"scaler\.growth_factor is missing, it must be a number above 1"),
    ],
)
def test_resume_from_facts_that_are_missing_or_damaged(finished, data, key, value, message):
    def change(tensors, header):
        for name in key[:-1]:
            header = header[name]
        header[key[-1]] = value

    change_state(finished, change)
    refuses_state(finished, data, message)


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", math.nan), ("scale", 0.0), ("scale", 1e39), ("scale", "65536"), ("scale", True), ("growth_factor", 1.0),
     ("backoff_factor", 1.0), ("growth_interval", 0), ("_growth_tracker", -1), ("_growth_tracker", 1.5)],
)  # fmt: skip
def test_scale_that_is_none(name, value):
    facts = {"scaler": {**torch.amp.GradScaler("cpu").state_dict(), "_growth_tracker": 0}}
    assert read_scale(facts, Path("last.safetensors")) == facts["scaler"]
    facts["scaler"][name] = value
    with pytest.raises(CheckpointError, match=rf"^last\.safetensors is damaged: scaler\.{name} is "):
        read_scale(facts, Path("last.safetensors"))


@pytest.mark.parametrize("value", [math.nan, "1.5", None, True])
def test_sums_of_the_log_that_are_none(finished, data, value):
    def change(tensors, header):
        header["facts"]["window"] = {"sums": dict.fromkeys(MultiBoxLosses._fields, 1.5) | {"odm": value}, "count": 2}

    change_state(finished, change)
    refuses_state(finished, data, r"window\.sums\.odm is ")


def test_every_parameter_of_a_saved_run_has_momentum(finished):
    """So that a missing one is seen."""
    network = build("squeezenet", 64, num_classes=3, tcb_channels=16)
    assert load_training_state(finished / "last.safetensors").momentum.keys() == dict(network.named_parameters()).keys()


def test_frozen_parameters_have_no_momentum(data, tmp_path):
    recipe = tiny_recipe(train={"backbone_lr_mult": 0.0, "steps": 1})
    train(recipe, tmp_path / "run", data=data, progress=False)
    names = load_training_state(tmp_path / "run" / "last.safetensors").momentum.keys()
    assert names
    assert not [name for name in names if name.startswith("backbone.")]
    train(recipe, tmp_path / "run", data=data, resume=True, progress=False)
