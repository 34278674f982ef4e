"""What a run saves beside its tensors, and whether a saved run may go on: only whole, with what it began with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refinedet.data import DetectionDataset
from refinedet.errors import CheckpointError, RecipeError, show
from refinedet.parsing import to_float
from refinedet.training.folder import RECIPE_FILE, STATE_FILE
from refinedet.training.logs import RunningMean
from refinedet.training.loss import MultiBoxLosses
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
_FIX = "use an undamaged copy, or start in another folder"
_MOST_STEPS = 2**53  # up to here JSON and floats hold every whole number


def fingerprint(dataset: DetectionDataset) -> dict[str, Any]:
    """What identifies a training set: its size, classes and a digest of names and boxes in order."""
    digest = hashlib.sha256()
    for record in dataset.records:
        name = str(record.image_id).encode(errors="surrogateescape")  # of a file whose name is not UTF-8
        for part in (name, record.boxes.tobytes(), record.labels.tobytes()):
            digest.update(part)
    return {"images": len(dataset), "classes": list(dataset.classes), "digest": digest.hexdigest()[:16]}


def run_facts(recipe: Recipe, data: Mapping[str, Any], window: RunningMean) -> dict[str, Any]:
    """What is saved with a state: the settings, the `fingerprint` ``data``, and the sums that are not logged yet."""
    return {
        "recipe": recipe.writable().to_dict(),
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
    changed = [f"{k} was {v}" for k, v in differences(_saved_recipe(state, path), recipe).items()]
    changed = [change for change in changed if not change.startswith(_FREE)]
    if changed:
        raise RecipeError(
            f"the run in {out} has other settings: {'; '.join(changed)}. Resume it with {out / RECIPE_FILE}, or start "
            "in another folder"
        )
    if state.facts.get("data") != data:
        raise CheckpointError(
            f"the run in {out} was started on other images or annotations ({show(state.facts.get('data'))}; now "
            f"{data}). Give the same data set, or start in another folder"
        )
    return state, _read_window(state, path)


def check_tensors(group: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Check the tensors of a ``group`` of the state in ``path`` against those they will replace.

    Raises:
        CheckpointError: naming the first one that is missing, unknown, of another shape or dtype, or not finite.
    """
    for name in dict.fromkeys([*expected, *found]):
        field = f"{group}.{name}"
        if name not in found or name not in expected:
            problem = "is missing" if name in expected else "belongs to no part of the network"
            raise CheckpointError(f"{path} does not fit the run: {field} {problem}; {_FIX}")
        tensor, wanted = found[name], expected[name]
        if (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            raise CheckpointError(
                f"{path} does not fit the run: {field} is {list(tensor.shape)}, {tensor.dtype}, the network needs "
                f"{list(wanted.shape)}, {wanted.dtype}; {_FIX}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {field} holds values that are not finite; {_FIX}")


def set_random_states(states: Mapping[str, Tensor], device: torch.device, path: Path) -> None:
    """Put torch's generators in the ``states`` of a run; one of a GPU is missing where the run was on a CPU so far.

    Raises:
        CheckpointError: the CPU's is missing, or one of them is none.
    """
    setters: dict[str, Callable[[Tensor], None]] = {"cpu": torch.set_rng_state}
    if device.type == "cuda":
        setters["cuda"] = lambda state: torch.cuda.set_rng_state(state, device)
    for name, setter in setters.items():
        if name in states:
            try:
                setter(states[name])
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(f"{path} is damaged: random.{name} is no state of a generator; {_FIX}") from error
        elif name == "cpu":
            raise CheckpointError(f"{path} is damaged: random.cpu, the state of the generator, is missing; {_FIX}")


def read_scale(facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The state of the gradients' scale, empty after steps without one.

    Raises:
        CheckpointError: it is missing or holds what no scale can be.
    """
    scale: Any = facts.get("scaler")
    _require(isinstance(scale, dict), path, "scaler", scale, "a JSON object")
    if scale:
        for name, valid, needed in _SCALE:
            _require(valid(scale.get(name)), path, f"scaler.{name}", scale.get(name), needed)
    return dict(scale)


def _saved_recipe(state: TrainingState, path: Path) -> Recipe:
    content: Any = state.facts.get("recipe")
    _require(isinstance(content, dict), path, "recipe", content, "a JSON object")
    try:
        return parse_recipe(content, name="recipe", source=str(path))
    except RecipeError as error:
        raise CheckpointError(f"{error}; {_FIX}") from error


def _read_window(state: TrainingState, path: Path) -> RunningMean:
    """The sums of the steps since the last line of the log."""
    window: Any = state.facts.get("window")
    _require(isinstance(window, dict), path, "window", window, "a JSON object")
    sums, count = window.get("sums"), window.get("count")
    _require(_is_count(count) and count <= state.step, path, "window.count", count, f"from 0 to step {state.step}")
    names = set(MultiBoxLosses._fields) if count else set()
    _require(isinstance(sums, dict) and sums.keys() == names, path, "window.sums", sums, f"{len(names)} losses by name")
    for name, value in sums.items():
        _require(_is_number(value), path, f"window.sums.{name}", value, "a finite number")
    return RunningMean(sums, count)


def _require(valid: bool, path: Path, field: str, value: Any, needed: str) -> None:
    if not valid:
        found = "is missing" if value is None else f"is {show(value)}"
        raise CheckpointError(f"{path} is damaged: {field} {found}, it must be {needed}; {_FIX}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_STEPS  # not isinstance: True is no whole number


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(to_float(value))


# Of torch.amp.GradScaler.state_dict(): name, what is valid, and that in words. The scale is a float32.
_SCALE: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("scale", lambda v: _is_number(v) and 0 < v <= torch.finfo(torch.float32).max, "a float32 above 0"),
    ("growth_factor", lambda v: _is_number(v) and v > 1, "a number above 1"),
    ("backoff_factor", lambda v: _is_number(v) and 0 < v < 1, "a number between 0 and 1"),
    ("growth_interval", lambda v: _is_count(v) and v > 0, "a whole number from 1"),
    ("_growth_tracker", _is_count, "a whole number from 0"),
)
