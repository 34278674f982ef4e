"""A training run of seconds, shared by the tests of the engine."""

from __future__ import annotations

from refinedet.training.logs import LOG_FILE, read_log
from refinedet.training.read import parse_recipe
from refinedet.training.recipe import Recipe

LOSSES = ("total", "arm", "odm", "arm_loc", "arm_conf", "odm_loc", "odm_conf", "arm_positives", "odm_positives", "lr")
PATIENCE = 300  # seconds to wait for a child process: it needs about 5, on a busy machine many more
PLAIN = {"distort_probability": 0.0, "expand_probability": 0.0, "crop": False, "mirror_probability": 0.0}


def recipe_content(**sections) -> dict:
    """A recipe of 12 steps on 64 px images as a dictionary; ``sections`` change or add settings."""
    content = {
        "model": {"backbone": "squeezenet", "size": 64, "tcb_channels": 16},
        "data": {},
        "train": {
            "steps": 12,
            "batch_size": 4,
            "lr": 1e-3,
            "milestones": [9],
            "warmup_steps": 3,
            "workers": 0,
            "log_every": 1,
            "checkpoint_every": 4,
        },
    }
    for name, values in sections.items():
        content.setdefault(name, {}).update(values)
    return content


def tiny_recipe(**sections) -> Recipe:
    """`recipe_content` as a recipe."""
    return parse_recipe(recipe_content(**sections), name="tiny", source="tiny.toml")


def logged_losses(out) -> list[tuple]:
    """(step, losses and rate) of every logged step in run folder ``out``, exactly as logged."""
    entries = [entry for entry in read_log(out / LOG_FILE) if entry["group"] == "train"]
    return [(entry["step"], *(entry[name] for name in LOSSES)) for entry in entries]
