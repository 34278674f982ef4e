"""Recipes: the shipped ones, and a small one that extends another and names a list of classes."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np
import torch

from fuzz.engine import Target
from fuzz.mutations import damage_document, damage_text
from refinedet.data import TrainAugment
from refinedet.errors import RecipeError, RefineDetError
from refinedet.files import RECIPES
from refinedet.parsing import parse_toml
from refinedet.preprocessing import Preprocessing
from refinedet.records import Sample
from refinedet.training.read import parse_recipe, read_recipe
from refinedet.training.recipe import SECTIONS, Recipe
from refinedet.training.schedule import learning_rate
from refinedet.training.sources import parse_setting

SMALL = """extends = "base.toml"
[model]
size = [64, 128]
weights = "squeezenet1_1.safetensors"
[data]
root = "data"
train_split = ["VOC2007/train", "VOC2012/train"]
classes = "names.txt"
[train]
steps = 12
milestones = [4, 8]
warmup_steps = 2
seed = 7
[augment]
contrast = [0.5, 1.5]
crop_min_ious = [0.1, 0.9]
[evaluate]
every = 6
metric = "coco"
[evaluate.protocol]
merge = "soft_vote"
top_k = "none"
[[evaluate.protocol.scales]]
size = [64, 128]
turned = true
flipped = true
min_side_below = 32.5
score_threshold = 0.05
"""
BASE = '[model]\nbackbone = "squeezenet"\n[train]\nsteps = 5\nbatch_size = 8\nnormalize_groups = 4\nlr = 1e-2\n'
SAMPLE = Sample(
    np.zeros((24, 32, 3), np.uint8),
    np.array([[0.1, 0.1, 0.6, 0.9]], np.float32),
    np.ones(1, np.int64),
    np.zeros(1, bool),
    "picture.png",
    "picture",
)
EXTREMES: tuple[Any, ...] = (
    0, 1, 2, 5, 64, 4096, 10**6, 2**31, 2**63 - 1, 2**63, 2**64, -1, 1e-320, 1e-30, 0.0, 0.5, 1.0, 1e12, 1e30, 1e308,
    float("nan"), True, "", "voc", "coco", "paper", "\x7f", "😀", "a\0b", "a\nb", "x" * 300, "../x", "timm:resnet18",
    "background", [], [[]], [1e-300, 1.0], [1, 100], [0.001, 1], ["a", "a"], ["a", "B/c"], [64, 4096], [4096, 4096],
    [1, 2**62], [0.5] * 100,
)  # fmt: skip
LONGEST = 2000  # characters of a message


def make_seeds(folder: Path) -> list[Path]:
    files = {"small.toml": SMALL, "base.toml": BASE, "names.txt": "cat\nguinea pig\nköter\n"}
    files |= {path.name: path.read_text() for path in RECIPES.glob("*.toml")}
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def mutate(chance: random.Random, data: bytes) -> bytes:
    """Another value, key or length in the document, written back; now and then its text."""
    if b"=" not in data or chance.random() < 0.3:
        return damage_text(chance, data)
    document = parse_toml(data.decode())
    for _ in range(chance.choice((1, 1, 2, 4))):
        document = set_extreme(chance, document) if chance.random() < 0.5 else damage_document(chance, document)
        if not isinstance(document, dict) or not document:
            return b""
    lines = [f"{json.dumps(key)} = {to_toml(value)}\n" for key, value in document.items()]
    return "".join(lines).encode("utf-8", "surrogatepass")


def set_extreme(chance: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    """Another value for one of all settings, mostly of its type."""
    section = chance.choice(sorted(SECTIONS))
    values = document.get(section, {})
    setting = chance.choice(fields(SECTIONS[section]))
    types = get_args(setting.type) if get_origin(setting.type) is UnionType else (setting.type,)
    kinds = {get_origin(kind) or kind for kind in types}
    typed = [value for value in EXTREMES if type(value) in kinds or (type(value) is list and tuple in kinds)]
    value = chance.choice(typed if typed and chance.random() < 0.8 else EXTREMES)
    return {**document, section: {**(values if isinstance(values, dict) else {}), setting.name: value}}


def to_toml(value: Any) -> str:
    """A value as TOML, which has no null: that is written as JSON does, and refused."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def read(file: Path) -> None:
    """As `refinedet train` does, up to the point where data is opened; and each of its lines as ``--set`` does."""
    for line in file.read_bytes()[:4096].decode("utf-8", "surrogateescape").splitlines():
        with contextlib.suppress(RecipeError):
            parse_setting(f"train.{line}")
    recipe_file = file if file.suffix == ".toml" else file.with_name("small.toml")
    try:
        recipe = read_recipe(recipe_file)
    except RecipeError as error:
        if "\n" in str(error) or len(str(error)) > LONGEST:
            raise AssertionError("no short line") from error
        raise
    try:
        use(recipe, file.with_name("written.toml"))
    except RefineDetError as error:
        raise AssertionError("refused after it was read") from error


def use(recipe: Recipe, written: Path) -> None:
    """What a run does with its recipe before it opens data: it is stored, and its numbers are used."""
    assert parse_recipe(recipe.to_dict(), name=recipe.name, source="itself") == recipe
    written.write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(written).to_dict() == recipe.to_dict()
    settings = recipe.train
    for step in (0, 1, settings.steps):
        rate = learning_rate(
            step,
            base=settings.lr,
            milestones=settings.milestones,
            gamma=settings.gamma,
            warmup_steps=settings.warmup_steps,
            warmup_factor=settings.warmup_factor,
        )
        assert np.isfinite(np.float32(rate))
    torch.manual_seed(settings.seed)
    image, *_ = TrainAugment((64, 64), Preprocessing(), recipe.augment)(SAMPLE, np.random.default_rng(settings.seed))
    assert image.isfinite().all()


TARGET = Target("recipes", make_seeds, mutate, read)
