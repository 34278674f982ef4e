"""The state of a run, ``last.safetensors``, up to the first step that a resumed run would take."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from support.runs import tiny_recipe
from support.synthetic import CLASSES
from torch import Tensor, nn

from fuzz.engine import MEBIBYTE, Target
from fuzz.mutations import damage_bytes, damage_document
from refinedet.models import ModelConfig, RefineDet
from refinedet.models.backbones.base import Backbone
from refinedet.training.folder import STATE_FILE
from refinedet.training.logs import RunningMean
from refinedet.training.loss import MultiBoxLosses
from refinedet.training.resume import load_run, run_facts
from refinedet.training.step import BUFFER, Trainer
from refinedet.weights.checkpoint import save_training_state

RECIPE = tiny_recipe(train={"ema_decay": 0.9})
DATA = {"images": 4, "classes": list(CLASSES), "digest": "0123456789abcdef"}
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e5m2)
VALUES = (float("nan"), float("inf"), -float("inf"), 1e38, -1.0, 0.0)
STEPS = 3


class Small(Backbone):
    """Four maps of two channels: the file has some ten kilobytes."""

    channels = (2, 2, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(4))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("no step is taken")


def new_trainer(scaled: bool) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(RefineDet(ModelConfig("small", (64, 64), CLASSES, tcb_channels=2), Small()), RECIPE, CPU)
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    return trainer


def make_seeds(folder: Path) -> list[Path]:
    """Two runs on their way, with a line of the log begun and a moving average; one of them scales its loss."""
    files = []
    for scaled in (False, True):
        trainer = new_trainer(scaled)
        for parameter in trainer.model.parameters():
            trainer.optimizer.state[parameter][BUFFER] = torch.ones_like(parameter)
        trainer.steps = STEPS
        window = RunningMean(dict.fromkeys(MultiBoxLosses._fields, 1.5), 2)
        files.append(folder / ("scaled" if scaled else "plain") / STATE_FILE)
        save_training_state(files[-1], trainer.model, trainer.state(run_facts(RECIPE, DATA, window)))
    return files


def mutate(chance: random.Random, content: bytes) -> bytes:
    """Another value in the facts, or in, of or for a tensor; now and then bytes."""
    if chance.random() < 0.1:
        return damage_bytes(chance, content)
    tensors = load(content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["refinedet"])
    for _ in range(chance.choice((1, 1, 2))):
        if chance.random() < 0.6:
            header = _damage_header(chance, header)
        else:
            _damage_tensor(chance, tensors)
    return save(tensors, {"format": "pt", "refinedet": json.dumps(header)})


def _damage_header(chance: random.Random, header: Any) -> Any:
    """Mostly in a part that a resumed run needs: the recipe is long, and has a target of its own."""
    if not isinstance(header, dict) or not isinstance(header.get("facts"), dict) or chance.random() < 0.2:
        return damage_document(chance, header)
    if chance.random() < 0.2:
        return _damage_key(chance, header, "step")
    return {**header, "facts": _damage_key(chance, header["facts"], chance.choice(("window", "scaler", "data")))}


def _damage_key(chance: random.Random, document: dict[str, Any], key: str) -> dict[str, Any]:
    rest = {name: value for name, value in document.items() if name != key}
    damaged: dict[str, Any] = damage_document(chance, {key: document.get(key)})
    return {**rest, **damaged}


def _damage_tensor(chance: random.Random, tensors: dict[str, Tensor]) -> None:
    """Any of them, the state of the generator more often."""
    name = chance.choice([*tensors, *["random.cpu"] * (len(tensors) // 5)])
    if name not in tensors:
        return
    tensor, action = tensors.pop(name), chance.randrange(6)
    if action == 0:
        return
    if action == 1:
        name = chance.choice((f"{name}x", name.replace("model.", "average."), f"momentum.{name}", "x"))
    elif action == 2:
        tensor = tensor.to(chance.choice(DTYPES))
    elif action == 3:
        tensor = tensor.flatten()[: chance.choice((0, 1, max(0, tensor.numel() - 1)))]
    elif tensor.is_floating_point():
        tensor.view(-1)[chance.randrange(tensor.numel())] = chance.choice(VALUES)
    else:
        tensor = torch.randint_like(tensor, 2, generator=torch.Generator().manual_seed(chance.randrange(1000)))
    tensors[name] = tensor.contiguous()


def read(file: Path) -> None:
    """What ``--resume`` does before its first step."""
    state, window = load_run(file.parent, RECIPE, DATA)
    trainer = _trainer(file.parent.name == "scaled")
    trainer.restore(state, file)
    assert trainer.learning_rate >= 0
    assert trainer.state({}).step == state.step
    if window.count:
        window.means()


@cache
def _trainer(scaled: bool) -> Trainer:
    return new_trainer(scaled)


CPU = torch.device("cpu")
TARGET = Target("states", make_seeds, mutate, read, memory=lambda size: 2 * size + 300 * MEBIBYTE)
