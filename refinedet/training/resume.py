"""What a run saves beside its tensors, and whether a saved run may go on: only with what it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refinedet.data import DetectionDataset
from refinedet.errors import CheckpointError, RecipeError
from refinedet.training.folder import RECIPE_FILE, STATE_FILE
from refinedet.training.logs import RunningMean
from refinedet.training.read import parse_recipe
from refinedet.training.recipe import Recipe, differences
from refinedet.weights.checkpoint import TrainingState, load_training_state

# Settings that may change when a run goes on: those that move no weight of a step already planned.
_FREE = (
    "model.weights",
    "data.root",
    "data.test_split",
    "data.cache",
    "train.steps",
    "train.workers",
    "train.checkpoint_every",
    "train.log_every",
    "train.half_checkpoint",
    "evaluate.",
)


def fingerprint(dataset: DetectionDataset) -> dict[str, Any]:
    """What identifies a training set: its size, classes and a digest of names and boxes in order."""
    digest = hashlib.sha256()
    for record in dataset.records:
        for part in (str(record.image_id).encode(), record.boxes.tobytes(), record.labels.tobytes()):
            digest.update(part)
    return {"images": len(dataset), "classes": list(dataset.classes), "digest": digest.hexdigest()[:16]}


def run_facts(recipe: Recipe, data: Mapping[str, Any], window: RunningMean) -> dict[str, Any]:
    """What is saved with a state: the settings, the `fingerprint` ``data``, and the sums that are not logged yet."""
    return {
        "recipe": recipe.to_dict(),
        "data": dict(data),
        "window": {"sums": window.sums, "count": window.count},
    }


def load_run(out: Path, recipe: Recipe, data: Mapping[str, Any]) -> tuple[TrainingState, RunningMean]:
    """The state saved in ``out``, and the sums of the `run_facts` in it.

    Raises:
        CheckpointError: it is unusable, or of another data set than the one of the `fingerprint` ``data``.
        RecipeError: it is of a recipe that differs in what matters.
    """
    path = out / STATE_FILE
    state = load_training_state(path)
    old = parse_recipe(state.facts["recipe"], name=recipe.name, source=str(path))
    changed = [f"{k} was {v}" for k, v in differences(old, recipe).items() if not k.startswith(_FREE)]
    if changed:
        raise RecipeError(
            f"the run in {out} has other settings: {'; '.join(changed)}. Resume it with {out / RECIPE_FILE}, or start "
            "in another folder"
        )
    if state.facts["data"] != data:
        raise CheckpointError(
            f"the run in {out} was started on other images or annotations ({state.facts['data']}; now {data}). Give "
            "the same data set, or start in another folder"
        )
    return state, RunningMean(**state.facts["window"])
