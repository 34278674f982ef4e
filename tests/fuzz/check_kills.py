"""Training runs that are killed go on exactly; and the comparison would see it if they did not."""

import json
import os
import signal

import pytest

from fuzz import kills
from fuzz.kills import Kill, kill_runs
from refinedet.training.step import Trainer

SEED = 20261128


def test_killed_runs_go_on_exactly(tmp_path):
    report = kill_runs(3, SEED, tmp_path)
    assert not report.failures, "\n".join(f"{f.file}\n{f.detail}" for f in report.failures)
    assert report.kills >= 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run and its recipe."""
    folder = tmp_path_factory.mktemp("kills")
    recipe = kills._write_recipe(folder)
    run = kills._Run(folder / "whole", recipe)
    assert run.go_on(None) == (True, "")
    return run, recipe


def test_planted_change_of_a_loss_is_found(whole, tmp_path):
    run, recipe = whole
    other = kills._Run(tmp_path / "other", recipe)
    other.out.symlink_to(run.out)
    assert run.differences(other) == ""
    other.out.unlink()
    other.out.mkdir()
    for file in run.out.iterdir():
        os.symlink(file, other.out / file.name)
    log = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    log[0]["odm"] += 1e-12
    (other.out / "log.jsonl").unlink()
    (other.out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    assert run.differences(other).startswith("other losses")


def test_planted_loss_of_momentum_is_found(whole, tmp_path, monkeypatch):
    run, recipe = whole
    restore = Trainer.restore

    def forget(self, state, path):
        restore(self, state, path)
        self.optimizer.state.clear()

    monkeypatch.setattr(Trainer, "restore", forget)
    killed = kills._Run(tmp_path / "killed", recipe)
    step = Trainer.step

    def stop(self, batch):
        if self.steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", stop)
    assert killed.go_on(Kill(signal.SIGTERM, None, kills.HANG, False)) == (False, "")
    monkeypatch.setattr(Trainer, "step", step)
    assert killed.go_on(None) == (True, "")
    assert run.differences(killed).startswith("model.safetensors differs in")


def test_planted_traceback_is_found(whole, tmp_path, monkeypatch):
    def fail(self, batch):
        raise KeyError("planted")

    monkeypatch.setattr(Trainer, "step", fail)
    finished, problem = kills._Run(tmp_path / "failing", whole[1]).go_on(None)
    assert not finished
    assert "KeyError" in problem
