"""The training loop: it learns, it logs, it stops cleanly, and it explains what it cannot do."""

import json
import os
import pty
import resource
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import mortal
from support.paths import ROOT
from support.runs import PATIENCE, PLAIN, logged_losses, recipe_content, tiny_recipe
from support.synthetic import CLASSES, make_coco, make_voc, tiny_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import refinedet
from refinedet.commands.main import main
from refinedet.data.loader import _Batches
from refinedet.errors import CheckpointError, DataError, InputError, RecipeError, RefineDetError
from refinedet.interrupt import TrainingInterrupted, stop_on_interrupt
from refinedet.models.backbones.squeezenet import SqueezeNet
from refinedet.training import datasets as datasets_module
from refinedet.training import run as train_module
from refinedet.training.average import ModelEMA
from refinedet.training.datasets import open_training_data
from refinedet.training.lock import run_lock
from refinedet.training.logs import read_log
from refinedet.training.read import read_recipe
from refinedet.training.run import RunStopped, train
from refinedet.training.step import Trainer
from refinedet.weights.checkpoint import load_network, load_training_state, read_metadata


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run with evaluation, and its result."""
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    return out, train(tiny_recipe(evaluate={"every": 6}), out, data=data, progress=False)


@pytest.fixture
def before_step(monkeypatch):
    """Calls a function with the trainer before each of its steps."""

    def install(function):
        step = Trainer.step
        monkeypatch.setattr(Trainer, "step", lambda self, batch: (function(self), step(self, batch))[1])

    return install


# learning and logging ------------------------------------------------------------------------------------------------


def test_overfits_four_images(data, tmp_path):
    recipe = tiny_recipe(
        train={"steps": 40, "lr": 5e-3, "milestones": [], "clip_norm": 20.0, "checkpoint_every": 100}, augment=PLAIN
    )
    train(recipe, tmp_path / "run", data=data, progress=False)
    totals = [entry[1] for entry in logged_losses(tmp_path / "run")]
    assert np.mean(totals[-5:]) < 0.25 * np.mean(totals[:3])


def test_run_leaves_everything_it_promises(run):
    out, result = run
    assert sorted(path.name for path in out.iterdir()) == [
        "last.safetensors",
        "log.jsonl",
        "model.safetensors",
        "recipe.toml",
        "result.json",
        "tensorboard",
    ]
    assert result.checkpoint == out / "model.safetensors"
    assert (result.steps, result.evaluation["images"]) == (12, 2)
    assert json.loads((out / "result.json").read_text()) == json.loads(result.to_json())
    assert list((out / "tensorboard").iterdir())
    detector = refinedet.load(result.checkpoint)
    assert detector.classes == CLASSES
    assert detector.size == (64, 64)
    facts = read_metadata(result.checkpoint)["facts"]
    assert facts["steps"] == 12
    assert facts["loss"] == result.loss
    assert facts["evaluation"]["mean_ap"] == result.evaluation["mean_ap"]
    assert facts["recipe"]["model"]["backbone"] == "squeezenet"


def test_model_tells_nothing_of_the_folders_it_was_trained_in(run, data, tmp_path):
    start = tiny_checkpoint(tmp_path / "start.safetensors")
    recipe = tiny_recipe(train={"steps": 1}, evaluate={"every": 1})
    result = train(recipe, tmp_path / "run", data=data, weights=start, progress=False)
    metadata = json.dumps(read_metadata(result.checkpoint))
    assert "start.safetensors" in metadata
    assert not [folder for folder in (data, tmp_path, start.parent) if str(folder) in metadata]


def test_recipe_of_the_run_repeats_it(run, data):
    out, _ = run
    recipe = read_recipe(out / "recipe.toml")
    assert recipe.data.root == str(data)
    assert recipe.train == tiny_recipe().train


def test_log_has_a_line_per_step_with_all_numbers(run):
    out, _ = run
    entries = read_log(out / "log.jsonl")
    steps = [entry for entry in entries if entry["group"] == "train"]
    assert [entry["step"] for entry in steps] == list(range(1, 13))
    for entry in steps:
        assert entry["total"] == pytest.approx(entry["arm"] + entry["odm"], rel=1e-6)
        assert entry["arm"] == pytest.approx(entry["arm_loc"] + entry["arm_conf"], rel=1e-6)
        assert entry["images_per_second"] > 0
        assert 0 <= entry["data_wait"] <= 1
    rates = [entry["lr"] for entry in steps]  # warm-up of 3 steps from 0, drop at step index 9
    assert rates == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, *[1e-3] * 6, *[1e-4] * 3], rel=1e-9)
    assert [entry["step"] for entry in entries if entry["group"] == "test"] == [6, 12]


def test_tensorboard_has_losses_and_the_precision_of_each_class(run):
    out, _ = run
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {"train/total", "train/lr", "test/mean_ap", *(f"test/ap/{name}" for name in CLASSES)} <= set(
        events.Tags()["scalars"]
    )
    logged = [entry for entry in read_log(out / "log.jsonl") if entry["group"] == "test"]
    for name in CLASSES:
        found = [(event.step, event.value) for event in events.Scalars(f"test/ap/{name}")]
        assert found == [(entry["step"], pytest.approx(entry["ap"][name])) for entry in logged]


def test_evaluation_does_not_count_as_slow_training(data, tmp_path, monkeypatch):
    evaluate = train_module.evaluate

    def slow(*arguments, **options):
        time.sleep(3)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(train_module, "evaluate", slow)
    recipe = tiny_recipe(train={"steps": 4, "log_every": 2}, evaluate={"every": 2})
    train(recipe, tmp_path / "run", data=data, progress=False)
    speeds = [e["images_per_second"] for e in read_log(tmp_path / "run" / "log.jsonl") if e["group"] == "train"]
    assert speeds[1] > 8 / 3


def test_logged_losses_are_means_over_the_interval(run, data, tmp_path):
    out, _ = run
    train(tiny_recipe(train={"log_every": 4}), tmp_path / "run", data=data, progress=False)
    every_step, means = logged_losses(out), logged_losses(tmp_path / "run")
    assert [entry[0] for entry in means] == [4, 8, 12]
    for index, entry in enumerate(means):
        part = [step[1] for step in every_step[4 * index : 4 * index + 4]]
        assert entry[1] == pytest.approx(np.mean(part), rel=1e-9)


def test_same_seed_same_run_other_seed_other_run(run, data, tmp_path):
    out, _ = run
    for seed in (0, 1):
        train(tiny_recipe(train={"seed": seed, "steps": 2}), tmp_path / str(seed), data=data, progress=False)
    assert logged_losses(tmp_path / "0") == logged_losses(out)[:2]
    assert logged_losses(tmp_path / "1")[0] != logged_losses(out)[0]


def test_progress_shows_loss_rate_and_speed(data, tmp_path, capsys):
    train(tiny_recipe(train={"steps": 2}), tmp_path / "run", data=data)
    shown = capsys.readouterr().err
    assert "training: 2 of 2 steps (100 %)" in shown
    assert "\r" not in shown
    assert "loss " in shown
    assert "lr 3.33e-04" in shown
    assert "images/s" in shown


def test_training_begins_with_the_objects_of_each_class(tmp_path, capsys):
    """A misspelt class is a class of its own unless the recipe lists them: it must be seen."""
    root = make_voc(tmp_path / "voc")
    for path in sorted((root / "Annotations").glob("*.xml"))[:2]:
        path.write_text(path.read_text().replace("<name>disc</name>", "<name>dics</name>", 1))
    dataset = open_training_data(tiny_recipe(data={"root": str(root)}))
    labels = [dataset[i].labels for i in range(4)]
    train(tiny_recipe(train={"steps": 1}), tmp_path / "run", data=root)
    shown = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["class", "images", "objects"] in shown
    for label, name in enumerate(("dics", "disc", "square"), start=1):
        images = sum(label in found for found in labels)
        assert [name, str(images), str(sum((found == label).sum() for found in labels))] in shown
    assert any("data.classes" in line for line in shown)
    with pytest.raises(DataError, match=r"class 'dics' is not among .* did you mean 'disc'"):
        train(tiny_recipe(data={"classes": CLASSES}), tmp_path / "run2", data=root, progress=False)


@pytest.mark.parametrize("device", ["meta", None])
def test_default_device_and_dtype_do_not_matter(run, data, tmp_path, device):
    torch.set_default_device(device)
    torch.set_default_dtype(torch.float64)
    try:
        train(tiny_recipe(train={"workers": 1}, evaluate={"every": 6}), tmp_path / "run", data=data, progress=False)
        assert torch.get_default_dtype() is torch.float64
        assert torch.get_default_device().type == (device or "cpu")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert logged_losses(tmp_path / "run") == logged_losses(run[0])


def test_no_word_of_the_list_of_classes_when_there_is_one(data, tmp_path, capsys):
    train(tiny_recipe(train={"steps": 1}, data={"classes": CLASSES}), tmp_path / "run", data=data)
    assert "data.classes" not in capsys.readouterr().err


def test_amp_trains_in_bfloat16_on_the_cpu(run, data, tmp_path):
    out, _ = run
    train(tiny_recipe(train={"amp": True, "steps": 2}), tmp_path / "run", data=data, progress=False)
    exact, mixed = logged_losses(out)[0], logged_losses(tmp_path / "run")[0]
    assert mixed[1] != exact[1]
    assert mixed[1] == pytest.approx(exact[1], rel=0.05)
    assert {p.dtype for p in load_network(tmp_path / "run" / "model.safetensors").parameters()} == {torch.float32}


def test_moving_average_is_what_is_shipped(data, tmp_path):
    out = tmp_path / "run"
    train(tiny_recipe(train={"ema_decay": 0.99, "steps": 4}), out, data=data, progress=False)
    state = load_training_state(out / "last.safetensors")
    shipped = load_network(out / "model.safetensors").state_dict()
    assert all(torch.equal(shipped[name], value) for name, value in state.average.items())
    assert any(not torch.equal(shipped[name], value) for name, value in state.model.items())


def test_moving_average_follows_weights_and_statistics():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average = ModelEMA(model, decay=0.5)
    start = model[0].weight.item()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.fill_(2.0)
        model[1].num_batches_tracked.fill_(7)
    average.update(model, step=1)  # decay 2/11, below 0.5
    assert average.model[0].weight.item() == pytest.approx(start + 9 / 11, rel=1e-6)
    assert average.model[1].running_mean.item() == pytest.approx(18 / 11, rel=1e-6)
    assert average.model[1].num_batches_tracked.item() == 7
    average.update(model, step=1000)  # decay 0.5
    assert average.model[0].weight.item() == pytest.approx(start + 1 - 1 / 11, rel=1e-6)


def test_frozen_backbone(data, tmp_path):
    out = tmp_path / "run"
    train(tiny_recipe(train={"backbone_lr_mult": 0.0, "steps": 2, "warmup_steps": 0}), out, data=data, progress=False)
    torch.manual_seed(0)
    start = refinedet.build("squeezenet", 64, classes=CLASSES, tcb_channels=16)
    trained = dict(load_network(out / "model.safetensors").named_parameters())
    moved = {name for name, value in start.named_parameters() if not torch.equal(value, trained[name])}
    assert moved
    assert not [name for name in moved if name.startswith("backbone.")]


def test_half_checkpoint(data, tmp_path):
    result = train(tiny_recipe(train={"half_checkpoint": True, "steps": 1}), tmp_path / "r", data=data, progress=False)
    assert result.checkpoint.stat().st_size < 0.4 * (tmp_path / "r" / "last.safetensors").stat().st_size
    assert refinedet.load(result.checkpoint).classes == CLASSES


def test_fine_tuning_from_a_checkpoint(data, tmp_path):
    start = tiny_checkpoint(tmp_path / "start.safetensors", seed=9)
    recipe = tiny_recipe(train={"steps": 1, "warmup_steps": 1})  # a first step at rate 0
    train(recipe, tmp_path / "run", data=data, weights=start, progress=False)
    trained = dict(load_network(tmp_path / "run" / "model.safetensors").named_parameters())
    assert all(torch.equal(trained[name], p) for name, p in load_network(start).named_parameters())


def test_splits_of_several_folders_are_joined(tmp_path):
    make_voc(tmp_path / "VOC2007", {"trainval": 2})
    make_voc(tmp_path / "VOC2012", {"trainval": 3}, seed=7)
    recipe = tiny_recipe(
        data={
            "root": str(tmp_path),
            "train_split": ["VOC2007/trainval", "VOC2012/trainval"],
            "classes": list(CLASSES),
        }
    )
    joined = open_training_data(recipe)
    assert len(joined) == 5
    assert joined.classes == CLASSES
    assert [Path(joined[i].path).parts[-3] for i in range(5)] == ["VOC2007"] * 2 + ["VOC2012"] * 3


def test_trains_on_coco(tmp_path):
    root = make_coco(tmp_path / "coco")
    recipe = tiny_recipe(train={"steps": 1}, data={"test_split": "val"}, evaluate={"every": 1, "metric": "coco"})
    result = train(recipe, tmp_path / "run", data=root, progress=False)
    assert result.evaluation["metric"] == "coco"


def test_folders_whose_names_are_not_utf8(tmp_path, capsys):
    """They come from other machines. Nothing that is told or stored about them fails, and the run can go on; but
    TensorBoard cannot write in one."""
    data = make_voc(tmp_path / "cafe").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    out, recipe = tmp_path / "run", tmp_path / "tiny.toml"
    recipe.write_text("\n".join(_toml(recipe_content(train={"steps": 2}, evaluate={"every": 2}))))
    command = ["train", str(recipe), "--data", str(data), "--out", str(out)]
    assert main(command) == 0
    assert read_recipe(out / "recipe.toml").data.root is None
    capsys.readouterr()
    assert main([*command, "--set", "train.steps=3", "--resume", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["train", str(out / "recipe.toml"), "--out", str(out), "--resume"]) == 2
    assert "has no data.root" in capsys.readouterr().err
    assert load_training_state(out / "last.safetensors").step == 3
    assert main([*command[:-1], os.fsdecode(b"r\xe9n")]) == 2
    assert capsys.readouterr().err == (
        "refinedet: error: 'r\\udce9n' is not UTF-8, which TensorBoard's files need; choose another folder\n"
    )


def test_classes_of_a_file_go_with_the_run(data, tmp_path):
    """The folder of the run needs no other file."""
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    content = recipe_content(train={"steps": 1}, data={"classes": "names.txt", "root": str(data)})
    (tmp_path / "tiny.toml").write_text("\n".join(_toml(content)))
    result = train(tmp_path / "tiny.toml", tmp_path / "run", device="cpu", progress=False)
    (tmp_path / "names.txt").unlink()
    assert refinedet.load(result.checkpoint).classes == CLASSES
    assert read_recipe(tmp_path / "run" / "recipe.toml").data.classes == CLASSES
    assert train(tmp_path / "run" / "recipe.toml", tmp_path / "run", resume=True, progress=False).steps == 1


# stopping ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("hears_signals")
def test_interrupt_finishes_the_step_and_saves(signum, data, tmp_path, before_step):
    before_step(lambda trainer: signal.raise_signal(signum) if trainer.steps == 5 else None)
    handler = signal.getsignal(signum)
    with pytest.raises(TrainingInterrupted, match=r"stopped after step 6; the run is saved in .*run") as caught:
        train(tiny_recipe(), tmp_path / "run", data=data, progress=False)
    assert caught.value.exit_status == 128 + signum
    assert signal.getsignal(signum) is handler
    assert load_training_state(tmp_path / "run" / "last.safetensors").step == 6
    assert len(logged_losses(tmp_path / "run")) == 6


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("hears_signals")
def test_second_interrupt_kills(first, second):
    program = (
        "import signal\nfrom refinedet.interrupt import stop_on_interrupt\n"
        f"with stop_on_interrupt() as stop:\n    signal.raise_signal({first:d})\n    print(stop.made, flush=True)\n"
        f"    signal.raise_signal({second:d})\n    print('alive')\n"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (child.returncode, child.stdout) == (-second, "True\n")


def test_a_request_sent_twice_is_one():
    """`timeout` sends SIGTERM to the process and at once to its group."""
    program = (
        "import os, signal, subprocess, sys\nfrom refinedet.interrupt import stop_on_interrupt\n"
        "with stop_on_interrupt() as stop:\n"
        "    again = subprocess.Popen(['sh', '-c', f'sleep 0.1; kill -TERM {os.getpid()}'])\n"
        "    signal.raise_signal(signal.SIGTERM)\n    again.wait()\n    print(stop.signum)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (child.returncode, child.stdout, child.stderr) == (0, f"{int(signal.SIGTERM)}\n", "")


def test_nohup_keeps_its_meaning():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_interrupt():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_interrupt_before_the_first_step(data, tmp_path, monkeypatch):
    """While the first images are read, which may take minutes: the run ends there, and can go on."""
    read = datasets_module.DetectionDataset.__getitem__

    def interrupted(dataset, index):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the request waits for the batch")

    recipe, out = tiny_recipe(data={"cache": True}), tmp_path / "run"
    monkeypatch.setattr(datasets_module.DetectionDataset, "__getitem__", interrupted)
    with pytest.raises(TrainingInterrupted, match="stopped after step 0; the run is saved"):
        train(recipe, out, data=data, progress=False)
    assert load_training_state(out / "last.safetensors").step == 0
    monkeypatch.setattr(datasets_module.DetectionDataset, "__getitem__", read)
    assert train(recipe, out, data=data, resume=True, progress=False).steps == 12


@pytest.mark.parametrize("step", [3, 12])
def test_interrupt_in_an_evaluation_ends_it_and_saves(step, data, tmp_path, monkeypatch, run):
    """Schedulers wait ten or thirty seconds, an evaluation takes minutes. The resumed run makes up for it."""
    evaluate = train_module.evaluate

    def interrupted(detector, *arguments, **options):
        if evaluations:
            evaluations.pop()
            return evaluate(detector, *arguments, **options)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the request waits for the evaluation")

    recipe, out = tiny_recipe(evaluate={"every": 3}, train={"checkpoint_every": 100}), tmp_path / "run"
    evaluations = [None] * (step // 3 - 1)
    monkeypatch.setattr(train_module, "evaluate", interrupted)
    with pytest.raises(TrainingInterrupted, match=f"stopped after step {step}; the run is saved"):
        train(recipe, out, data=data, progress=False)
    assert load_training_state(out / "last.safetensors").step == step
    monkeypatch.setattr(train_module, "evaluate", evaluate)
    result = train(recipe, out, data=data, resume=True, progress=False)
    assert result.evaluation["images"] == 2
    assert [entry["step"] for entry in read_log(out / "log.jsonl") if entry["group"] == "test"] == [3, 6, 9, 12]
    assert logged_losses(out) == logged_losses(run[0])


def test_interrupt_while_the_result_is_written_lets_it_be(data, tmp_path, monkeypatch):
    save = train_module.save_model

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        save(*arguments, **options)

    monkeypatch.setattr(train_module, "save_model", interrupted)
    result = train(tiny_recipe(train={"steps": 1}), tmp_path / "run", data=data, progress=False)
    assert refinedet.load(result.checkpoint).classes == CLASSES
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


def test_evaluations_on_the_way_are_told(data, tmp_path, capsys):
    recipe = tiny_recipe(train={"steps": 4}, evaluate={"every": 2})
    train(recipe, tmp_path / "run", data=data)
    (entry, _) = (e for e in read_log(tmp_path / "run" / "log.jsonl") if e["group"] == "test")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert told == [f"step 2: mean AP@0.5 (area) on the test split {entry['mean_ap']:.4f}"]
    train(tiny_recipe(train={"steps": 3}, evaluate={"every": 2}), tmp_path / "quiet", data=data, progress=False)
    assert capsys.readouterr().err == ""


def test_interrupt_handler_is_left_alone_in_other_threads():
    seen = []

    def body():
        with stop_on_interrupt() as stop:
            seen.append((stop.made, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]


def wait_for_a_step(out, child):
    deadline = time.monotonic() + PATIENCE
    while not (out / "log.jsonl").exists() or not read_log(out / "log.jsonl"):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_is_left_of_a_run_of_tests_that_is_killed():
    """Its child, in a session of its own like those below, closes the pipe as it ends."""
    start = (
        "import subprocess, sys; from support.commands import mortal\n"
        "command = mortal('-c', 'import time; print(1, flush=True); time.sleep(600)')\n"
        "subprocess.Popen(command, start_new_session=True).wait()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen([sys.executable, "-c", start], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"1\n"
        parent.kill()
        assert select.select([parent.stdout], [], [], PATIENCE)[0]
        assert parent.stdout.read() == b""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_at_the_shell(signum, data, tmp_path):
    """The process group gets the signal, loading workers too, as from a terminal, `timeout` or Slurm; exit status 130
    or 143, how to go on, and no worker that is left."""
    content = recipe_content(train={"steps": 100_000, "workers": 1}, data={"root": str(data)})
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(_toml(content)))
    out = tmp_path / "run"
    command = mortal("-m", "refinedet", "train", str(recipe), "--out", str(out))
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for_a_step(out, child)
        child.send_signal(signum)
        os.killpg(child.pid, signum)
        _, shown = child.communicate(timeout=PATIENCE)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 128 + signum
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
    message = shown.splitlines()[-1]
    assert message.startswith(f"refinedet: stopped after step {len(read_log(out / 'log.jsonl'))}; the run is saved in")
    assert f"; go on with: refinedet train {recipe} --out {out} --resume; " in message
    assert message.endswith(f"; measure it with: refinedet evaluate {out / 'last.safetensors'} --data {data}")
    assert "Traceback" not in shown
    assert load_training_state(out / "last.safetensors").step == len(read_log(out / "log.jsonl"))
    assert main(shlex.split(message.rpartition("refinedet ")[2])) == 0


@pytest.mark.usefixtures("hears_signals")
def test_a_terminal_that_is_closed(data, tmp_path):
    """Training gets SIGHUP, and can tell nobody."""
    out = tmp_path / "run"
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(_toml(recipe_content(train={"steps": 100_000}, data={"root": str(data)}))))
    arguments = ["-m", "refinedet", "train", str(recipe), "--out", str(out)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, *arguments])
    deadline = time.monotonic() + PATIENCE
    while not (out / "log.jsonl").exists() or not read_log(out / "log.jsonl"):
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert load_training_state(out / "last.safetensors").step == len(read_log(out / "log.jsonl"))


def _toml(content):
    for section, values in content.items():
        yield f"[{section}]"
        yield from (f"{key} = {json.dumps(value)}" for key, value in values.items())


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the pixels of every image whose path contains a text not a number."""

    def install(text):
        class Poisoned(datasets_module.TrainAugment):
            def __call__(self, sample, rng):
                image, *rest = super().__call__(sample, rng)
                return (image * float("nan") if text in sample.path else image, *rest)

        monkeypatch.setattr(datasets_module, "TrainAugment", Poisoned)

    return install


def test_loss_that_is_not_finite_names_the_image(data, tmp_path, poisoned):
    out = tmp_path / "run"
    recipe = tiny_recipe(train={"batch_size": 2, "steps": 4, "checkpoint_every": 1})
    poisoned("000002")
    with pytest.raises(RefineDetError) as caught:
        train(recipe, out, data=data, progress=False)
    message = str(caught.value)
    assert "is not finite because of" in message
    assert str(data / "JPEGImages" / "000002.jpg") in message
    assert not any(name in message for name in ("000000", "000001", "000003"))
    step = len(logged_losses(out))
    assert f"the loss of step {step} " in message
    assert load_training_state(out / "last.safetensors").step == step
    assert not (out / "model.safetensors").exists()


def test_gradient_that_is_not_finite_keeps_the_last_good_state(data, tmp_path, before_step):
    """The loss is finite: only the gradient shows it."""

    def nan_gradient(module, inputs, raw):
        raw.odm_loc.register_hook(lambda gradient: gradient * float("nan"))

    def spoil(trainer):
        if trainer.steps == 6:
            trainer.model.register_forward_hook(nan_gradient)

    before_step(spoil)
    out = tmp_path / "run"
    with pytest.raises(RefineDetError, match=r"^the gradient of backbone.* in step 6 is not finite, on every image"):
        train(tiny_recipe(train={"ema_decay": 0.9}), out, data=data, progress=False)
    state = load_training_state(out / "last.safetensors")
    assert state.step == 4
    assert all(t.isfinite().all() for t in [*state.model.values(), *state.average.values()] if t.is_floating_point())
    assert len(logged_losses(out)) == 6


def test_divergence_is_told_from_a_bad_image(data, tmp_path):
    recipe = tiny_recipe(train={"lr": 1e12, "warmup_steps": 0, "checkpoint_every": 100})
    with pytest.raises(RefineDetError, match=r"on every image of its batch .*diverged\. Lower train\.lr"):
        train(recipe, tmp_path / "run", data=data, progress=False)
    assert load_training_state(tmp_path / "run" / "last.safetensors").step == 0


@contextmanager
def full_disk():
    """Gives a function that limits the size of files, a full disk to whoever writes; unlimited again at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_the_previous_state(data, tmp_path, before_step):
    out = tmp_path / "run"
    with full_disk() as limit:
        before_step(lambda trainer: limit(1_000_000) if trainer.steps == 6 else None)
        with pytest.raises(CheckpointError, match=r"cannot write .*last\.safetensors is untouched\. Free space"):
            train(tiny_recipe(), out, data=data, progress=False)
    assert load_training_state(out / "last.safetensors").step == 4
    assert not list(out.glob(".*"))


def test_full_disk_while_logging_is_one_error(data, tmp_path, before_step, recwarn):
    """Neither the closing of the log nor TensorBoard's thread may hide it or report it a second time."""
    out = tmp_path / "run"

    def fill(trainer):
        if trainer.steps == 5 and not (tmp_path / "filled").exists():
            (tmp_path / "filled").touch()
            limit((out / "log.jsonl").stat().st_size // 2)

    with full_disk() as limit:
        before_step(fill)
        with pytest.raises(RefineDetError, match=r"cannot write .*log\.jsonl: .*; free space, then resume the run"):
            train(tiny_recipe(), out, data=data, progress=False)
    assert not [warning for warning in recwarn if "thread" in str(warning.message)]
    assert load_training_state(out / "last.safetensors").step == 4
    assert train(tiny_recipe(), out, data=data, resume=True, progress=False).steps == 12
    assert [entry[0] for entry in logged_losses(out)] == list(range(1, 13))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ArithmeticError("as TensorFlow's may be")])
def test_tensorboard_that_does_not_open(data, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    hook = threading.excepthook
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", fail)
    with pytest.raises(
        RefineDetError, match=rf"cannot write .*tensorboard: .*{error.args[-1]}; free space, then resume"
    ):
        train(tiny_recipe(), tmp_path / "run", data=data, progress=False)
    assert threading.excepthook is hook
    monkeypatch.undo()
    assert train(tiny_recipe(train={"steps": 1}), tmp_path / "run", data=data, resume=True, progress=False).steps == 1
    assert threading.excepthook is hook


def test_tensorboard_that_fails_in_its_thread(data, tmp_path, before_step, monkeypatch, recwarn):
    """Its thread keeps the error for the next call; log.jsonl has room."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fail(*_):
        raise OSError(28, "No space left on device")

    hook = threading.excepthook
    before_step(lambda trainer: monkeypatch.setattr(RecordWriter, "write", fail) if trainer.steps == 5 else None)
    with pytest.raises(RefineDetError, match=r"cannot write .*tensorboard: .*No space left on device; free space"):
        train(tiny_recipe(), tmp_path / "run", data=data, progress=False)
    assert threading.excepthook is hook
    assert not [warning for warning in recwarn if "thread" in str(warning.message)]


def test_damaged_log_is_read_up_to_the_damage(tmp_path):
    log = tmp_path / "log.jsonl"
    for line in (b"[]", b'{"step": "1", "group": "train"}', b'{"step": 2}', b"\xff", b"[" * 9999, b"7"):
        log.write_bytes(b'{"step": 1, "group": "train"}\n' + line + b'\n{"step": 3, "group": "train"}\n')
        assert read_log(log) == [{"step": 1, "group": "train"}]


# one run in a folder --------------------------------------------------------------------------------------------------


def test_folder_of_a_running_run(data, tmp_path):
    out = tmp_path / "run"
    train(tiny_recipe(train={"steps": 1}), out, data=data, progress=False)
    before = (out / "last.safetensors").read_bytes()
    with run_lock(out), pytest.raises(InputError, match=rf"a run is going on in .*run \(process {os.getpid()} on "):
        train(tiny_recipe(train={"steps": 2}), out, data=data, resume=True, progress=False)
    assert (out / "last.safetensors").read_bytes() == before
    assert train(tiny_recipe(train={"steps": 2}), out, data=data, resume=True, progress=False).steps == 2


def test_run_that_began_meanwhile(data, tmp_path, monkeypatch):
    """Both found the folder empty; reading the data took a while."""
    out = tmp_path / "run"
    check = train_module.check_objects

    def other_run(*arguments):
        out.mkdir()
        (out / "last.safetensors").touch()
        check(*arguments)

    monkeypatch.setattr(train_module, "check_objects", other_run)
    with pytest.raises(InputError, match="is not empty; resume it"):
        train(tiny_recipe(), out, data=data, progress=False)
    assert [path.name for path in out.iterdir()] == ["last.safetensors"]


def test_leftovers_of_a_kill_before_the_first_save_are_removed(data, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in (".last.abcd1234.safetensors", ".recipe.abcd1234.toml", ".lock"):
        (out / name).write_text("half")
    train(tiny_recipe(train={"steps": 1}), out, data=data, progress=False)
    assert not list(out.glob(".*"))


def test_recipe_of_a_run_killed_after_its_first_save_is_written(data, tmp_path):
    out = tmp_path / "run"
    train(tiny_recipe(train={"steps": 1}), out, data=data, progress=False)
    (out / "recipe.toml").unlink()
    train(tiny_recipe(train={"steps": 1}), out, data=data, resume=True, progress=False)
    assert read_recipe(out / "recipe.toml").data.root == str(data)


# data that cannot be loaded ------------------------------------------------------------------------------------------


@pytest.fixture
def doomed(monkeypatch):
    """Makes the loading of an image do something before, by the epoch: of 4 images, as a batch has."""

    def install(function):
        load = _Batches._item
        monkeypatch.setattr(
            _Batches, "_item", lambda self, epoch, place: (function(epoch), load(self, epoch, place))[1]
        )

    return install


def test_killed_worker_stops_the_run_which_goes_on(data, tmp_path, doomed, run, monkeypatch):
    """As the kernel does when memory runs out."""
    out = tmp_path / "run"
    settings = {"workers": 1, "checkpoint_every": 100}
    doomed(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 5 else None)
    with pytest.raises(
        RunStopped, match=r"process died .*fewer workers \(0: none\)\. The run is saved in .*run, after"
    ):
        train(tiny_recipe(train=settings), out, data=data, progress=False)
    step = load_training_state(out / "last.safetensors").step
    assert step == len(logged_losses(out)) > 0
    assert not list(out.glob(".*"))
    monkeypatch.undo()
    train(tiny_recipe(train=settings), out, data=data, resume=True, progress=False)
    assert logged_losses(out) == logged_losses(run[0])


def test_failing_worker_at_the_command_line(data, tmp_path, doomed, capsys):
    def fail(step):
        if step == 3:
            raise MemoryError

    doomed(fail)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(_toml(recipe_content(train={"workers": 1}, data={"root": str(data)}))))
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refinedet: error: ")]
    assert "the batch of step 3 cannot be loaded (MemoryError: ); free memory" in line
    assert f"go on with: refinedet train {recipe} --out {tmp_path / 'run'} --resume" in line
    assert load_training_state(tmp_path / "run" / "last.safetensors").step == 3


# refusals before the first step --------------------------------------------------------------------------------------


def refused(tmp_path, recipe, error, message, **arguments):
    with pytest.raises(error, match=message):
        train(recipe, tmp_path / "run", progress=False, **arguments)
    assert not (tmp_path / "run").exists()


def test_no_data_folder(tmp_path):
    refused(tmp_path, tiny_recipe(), RecipeError, r"recipe tiny has no data\.root: give the data folder there or with")


def test_missing_data_folder(tmp_path):
    refused(tmp_path, tiny_recipe(), DataError, "nowhere", data=tmp_path / "nowhere")


def test_empty_data_set(tmp_path):
    root = make_voc(tmp_path / "voc", {"train": 0})
    refused(tmp_path, tiny_recipe(), DataError, "train", data=root)


def test_nothing_to_learn_from(tmp_path):
    root = make_voc(tmp_path / "voc")
    for path in (root / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    refused(tmp_path, tiny_recipe(data={"use_difficult": False}), DataError, "no image has a usable object", data=root)
    for path in (root / "Annotations").glob("00000[0-3].xml"):  # the training split
        path.write_text("<annotation></annotation>")
    refused(tmp_path, tiny_recipe(), DataError, "no image has a usable object", data=root)


def test_missing_split(tmp_path, data):
    refused(tmp_path, tiny_recipe(data={"train_split": "night"}), DataError, "night", data=data)


def test_missing_test_split_is_found_before_training(tmp_path, data):
    recipe = tiny_recipe(data={"test_split": "night"}, evaluate={"every": 5})
    refused(tmp_path, recipe, DataError, "night", data=data)


def test_unknown_backbone_of_timm_is_found_before_the_data_is_read(tmp_path):
    recipe = tiny_recipe(model={"backbone": "timm:vgg17"})
    refused(tmp_path, recipe, InputError, "timm has no model 'vgg17'; did you mean 'vgg1", data=tmp_path / "nowhere")


@pytest.mark.parametrize("size", [64, [64, 64]])
def test_a_batch_too_small_for_batch_normalisation(tmp_path, data, size):
    recipe = tiny_recipe(model={"size": size}, train={"batch_size": 1})
    with pytest.raises(RecipeError, match=r"train\.batch_size is 1 at model\.size .*64.*; give at least 2 images"):
        train(recipe, tmp_path / "run", data=data, progress=False)
    assert not (tmp_path / "run").exists()


def test_one_image_is_enough_where_a_channel_has_two_values(tmp_path, data):
    recipe = tiny_recipe(model={"size": [64, 128]}, train={"batch_size": 1, "steps": 1})
    assert train(recipe, tmp_path / "run", data=data, progress=False).steps == 1


def test_backbone_weights_for_another_input(tmp_path, data):
    """The recipe or the caller says which; torchvision's SqueezeNet and the original have the same names."""
    state = {f"features.{k}": v for k, v in SqueezeNet().features.state_dict().items()}
    state["classifier.1.weight"] = 1000 * torch.ones(1000, 512, 1, 1) * torch.arange(1000).view(-1, 1, 1, 1)
    torch.save(state, tmp_path / "weights.pth")
    recipe = tiny_recipe(model={"weights_input": "caffe"}, train={"steps": 1})
    options = {"data": data, "weights": tmp_path / "weights.pth"}
    refused(tmp_path, recipe, CheckpointError, r"for torchvision's input, not caffe's", **options)
    train(recipe, tmp_path / "run", weights_input="torchvision", progress=False, **options)
    assert read_recipe(tmp_path / "run" / "recipe.toml").model.weights_input == "torchvision"


@pytest.mark.parametrize("name", ["none.pth", ".", "x" * 300])
def test_missing_weights_are_found_before_the_data_is_read(tmp_path, name):
    message = r"^model\.weights is '.*; it must be a file, or the name of a shipped checkpoint: bccd"
    options = {"data": tmp_path / "nowhere", "weights": tmp_path / name}
    refused(tmp_path, tiny_recipe(), CheckpointError, message, **options)


def test_a_shipped_checkpoint_as_weights(tmp_path):
    refused(tmp_path, tiny_recipe(), DataError, "nowhere", data=tmp_path / "nowhere", weights="bccd")


def test_fine_tuning_from_a_checkpoint_with_other_classes(tmp_path, data):
    other = tiny_checkpoint(tmp_path / "other.safetensors", classes=("a", "b", "c"))
    refused(tmp_path, tiny_recipe(), CheckpointError, r"does not fit the network .*classes", data=data, weights=other)


@pytest.mark.parametrize(("device", "message"), [("gpu", "auto, cpu, cuda or cuda:N"), ("cuda:99", "torch sees")])
def test_device_that_is_not_there(tmp_path, data, device, message):
    refused(tmp_path, tiny_recipe(), InputError, message, data=data, device=device)


def test_weights_input_that_is_no_word_of_it(tmp_path, data):
    message = r"^train\(\): model\.weights_input is 'bgr'; choose one of torchvision, caffe"
    refused(tmp_path, tiny_recipe(), RecipeError, message, data=data, weights_input="bgr")


def test_unknown_recipe_name(tmp_path, data):
    refused(tmp_path, "bccdd", RecipeError, "did you mean 'bccd'", data=data)
