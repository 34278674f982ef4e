"""Training: from a recipe and a data set to a checkpoint (spec sections 7 and 9)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from refinedet.anchors import STRIDES
from refinedet.data import DetectionDataset, TrainAugment, TrainLoader, open_dataset
from refinedet.errors import CheckpointError, DataError, InputError, RecipeError
from refinedet.evaluation.evaluate import evaluate
from refinedet.files import write_text
from refinedet.inference.detector import Detector
from refinedet.interrupt import TrainingInterrupted, stop_on_interrupt
from refinedet.models import RefineDet, build, load_pretrained
from refinedet.ops.devices import choose_device
from refinedet.training.logs import LOG_FILE, RunningMean, TrainingLog, read_log
from refinedet.training.recipe import Recipe, differences, parse_recipe, read_recipe
from refinedet.training.step import Trainer
from refinedet.weights.checkpoint import (
    is_checkpoint,
    load_training_state,
    load_weights,
    save_model,
    save_training_state,
)

STATE_FILE = "last.safetensors"
MODEL_FILE = "model.safetensors"
RECIPE_FILE = "recipe.toml"
RESULT_FILE = "result.json"
_SMOOTHING = 0.05  # weight of the newest loss in the progress bar
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


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left behind."""

    checkpoint: Path  # the model, for `refinedet.load`
    steps: int
    loss: float | None  # total loss, mean of the last logged steps; None when none was logged
    seconds: float  # of this process: a resumed run counts from the resumption
    evaluation: dict[str, Any] | None  # of the final model on the test split, when the recipe evaluates

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps({**dataclasses.asdict(self), "checkpoint": str(self.checkpoint)}, indent=2)


def train(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    weights_input: str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a model and write it to ``out/model.safetensors``.

    ``out`` also receives ``last.safetensors`` (the state to resume from: at the start, every
    ``train.checkpoint_every`` steps and at the end), ``recipe.toml``, ``log.jsonl``, ``tensorboard/`` and
    ``result.json``. Everything is checked before the first step. The first Ctrl-C finishes the step, saves and raises;
    the second kills. Torch's global generator is seeded with ``train.seed``. On a CPU, with the same number of threads,
    a resumed run goes through the same losses, bit for bit, as one that never stopped.

    Args:
        recipe: a recipe, its TOML file, or the name of one of the package's.
        out: folder of the run; it must be empty or absent, unless ``resume``.
        data: folder of the data set, instead of the recipe's ``data.root``.
        weights: pretrained backbone file, or refinedet checkpoint to start from, instead of ``model.weights``.
        weights_input: what the backbone file reads, "torchvision" or "caffe", instead of ``model.weights_input``.
        resume: go on with the run in ``out``.
        progress: show on stderr how many images and objects each class has, and a progress bar.

    Raises:
        RecipeError, DataError, CheckpointError, InputError: recipe, data, weights or ``out`` cannot be used.
        RefineDetError: the loss is not finite; the message names the step and the images.
        TrainingInterrupted: Ctrl-C, after saving.
    """
    out = Path(out)
    recipe = _complete(recipe if isinstance(recipe, Recipe) else read_recipe(recipe), data, weights, weights_input)
    _check_folder(out, resume)
    dataset = open_training_data(recipe)
    _check_objects(dataset, recipe.data.use_difficult)
    test_data = open_test_data(recipe, dataset.classes) if recipe.evaluate.every else None
    if progress:
        _announce(dataset, recipe)
    run = _Run(recipe, out, dataset, test_data)
    if resume:
        run.restore()
    else:
        run.start()
    return run.finish(progress)


def open_training_data(recipe: Recipe) -> DetectionDataset:
    """The training split of a recipe, or its several splits as one data set.

    Raises:
        RecipeError: the recipe has no ``data.root``.
        DataError: the data set cannot be used.
    """
    classes = recipe.data.classes
    parts: list[DetectionDataset] = []
    for split in recipe.data.train_splits:
        parts.append(_open_split(recipe, split, classes))
        classes = parts[0].classes
    if len(parts) == 1:
        return parts[0]
    records = [record for part in parts for record in part.records]
    return DetectionDataset(" + ".join(part.name for part in parts), parts[0].classes, records)


def open_test_data(recipe: Recipe, classes: tuple[str, ...]) -> DetectionDataset:
    """The test split of a recipe, labelled by ``classes``; raises as `open_training_data`."""
    return _open_split(recipe, recipe.data.test_split, classes)


class _Run:
    """A training run: the trainer, its data and its folder."""

    def __init__(
        self, recipe: Recipe, out: Path, dataset: DetectionDataset, test_data: DetectionDataset | None
    ) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe = recipe
        self.out = out
        self.test_data = test_data
        self.model = build(
            recipe.model.backbone,
            recipe.model.input_size,
            classes=dataset.classes,
            preset=recipe.model.full_preset,
            tcb_channels=recipe.model.tcb_channels,
        )
        _check_statistics(self.model, recipe)
        self.loader = _loader(recipe, dataset, self.model)
        self.fingerprint = _fingerprint(dataset)
        self.window = RunningMean()
        self.trainer: Trainer

    def start(self) -> None:
        """Load the pretrained weights and save the state of step 0: a run can be resumed from its first moment."""
        if self.recipe.model.weights is not None:
            _load_pretrained(self.model, self.recipe.model.weights, self.recipe.model.weights_input)
        self.trainer = Trainer(self.model, self.recipe, choose_device())
        self._save()
        write_text(self.out / RECIPE_FILE, self.recipe.to_toml())

    def restore(self) -> None:
        """Take up the saved state.

        Raises:
            CheckpointError: it is unusable, or of another data set.
            RecipeError: it is of a recipe that differs in what matters.
        """
        path = self.out / STATE_FILE
        state = load_training_state(path)
        old = parse_recipe(state.facts["recipe"], name=self.recipe.name, source=str(path))
        changed = [f"{k} was {v}" for k, v in differences(old, self.recipe).items() if not k.startswith(_FREE)]
        if changed:
            raise RecipeError(
                f"the run in {self.out} has other settings: {'; '.join(changed)}. Resume it with "
                f"{self.out / RECIPE_FILE}, or start in another folder"
            )
        if state.facts["data"] != self.fingerprint:
            raise CheckpointError(
                f"the run in {self.out} was started on other images or annotations ({state.facts['data']}; now "
                f"{self.fingerprint}). Give the same data set, or start in another folder"
            )
        self.trainer = Trainer(self.model, self.recipe, choose_device())
        self.trainer.restore(state, path)
        self.window = RunningMean(**state.facts["window"])
        _remove_leftovers(self.out)

    def finish(self, progress: bool) -> TrainResult:
        """Take the remaining steps, and write the final model and the result."""
        started = time.monotonic()
        with TrainingLog(self.out, self.trainer.steps) as log:
            self._loop(log, progress)
            evaluation = self._evaluate(log, progress)
        logged = [entry["total"] for entry in read_log(self.out / LOG_FILE) if entry["group"] == "train"]
        loss = logged[-1] if logged else None
        summary = evaluation and {key: evaluation[key] for key in ("measure", "mean_ap", "rows")}
        recipe = _without_folders(self.recipe).to_dict()
        facts = {"recipe": recipe, "steps": self.trainer.steps, "loss": loss, "evaluation": summary}
        checkpoint = self.out / MODEL_FILE
        save_model(self.trainer.best_model, checkpoint, half=self.recipe.train.half_checkpoint, metadata=facts)
        result = TrainResult(checkpoint, self.trainer.steps, loss, time.monotonic() - started, evaluation)
        write_text(self.out / RESULT_FILE, result.to_json() + "\n")
        return result

    def _loop(self, log: TrainingLog, progress: bool) -> None:
        """Take the remaining steps."""
        settings, trainer = self.recipe.train, self.trainer
        speed = _Speed(settings.batch_size)
        bar = _Bar(trainer.steps, settings.steps, disable=not progress)
        with stop_on_interrupt() as stop, bar:
            for batch in speed.timed(self.loader.iterate(trainer.steps), settings.steps - trainer.steps):
                lr = trainer.learning_rate
                values = trainer.step(batch)
                self.window.add(values)
                bar.show(values["total"], lr, speed)
                if trainer.steps % settings.log_every == 0:
                    self._log(log, lr, speed)
                finished = trainer.steps == settings.steps
                if finished or stop.made or trainer.steps % settings.checkpoint_every == 0:
                    self._save()
                if stop.made and not finished:
                    raise TrainingInterrupted(f"stopped after step {trainer.steps}; the run is saved in {self.out}")
                if self._evaluation_due and not finished:
                    self._evaluate(log, progress)
                    speed.reset()  # the images per second are those of training

    @property
    def _evaluation_due(self) -> bool:
        every = self.recipe.evaluate.every
        return every > 0 and self.trainer.steps % every == 0

    def _log(self, log: TrainingLog, lr: float, speed: _Speed) -> None:
        log.write(self.trainer.steps, "train", {**self.window.means(), "lr": lr, **speed.numbers()})
        self.window.reset()
        speed.reset()

    def _evaluate(self, log: TrainingLog, progress: bool) -> dict[str, Any] | None:
        """Evaluate on the test split, when the recipe wants it."""
        if self.test_data is None:
            return None
        settings = self.recipe.evaluate
        found = evaluate(
            Detector(self.trainer.best_model),
            self.test_data,
            metric="voc07" if settings.use_07_metric else settings.metric,
            batch_size=settings.batch_size,
            progress=progress,
        )
        log.write(self.trainer.steps, "test", {"mean_ap": found.mean_ap, "ap": {r.name: r.ap for r in found.rows}})
        return json.loads(found.to_json())

    def _save(self) -> None:
        facts = {
            "recipe": self.recipe.to_dict(),
            "data": self.fingerprint,
            "window": {"sums": self.window.sums, "count": self.window.count},
        }
        save_training_state(self.out / STATE_FILE, self.trainer.model, self.trainer.state(facts))


class _Speed:
    """Images per second and the share of time spent waiting for data, since the last `reset`."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.reset()

    def reset(self) -> None:
        """Start measuring anew."""
        self._start, self._waited, self._batches = time.monotonic(), 0.0, 0

    def timed(self, batches: Iterator[Any], count: int) -> Iterator[Any]:
        """The first ``count`` of ``batches``, measured."""
        for _ in range(count):
            asked = time.monotonic()
            batch = next(batches)
            self._waited += time.monotonic() - asked
            self._batches += 1
            yield batch

    def numbers(self) -> dict[str, float]:
        """``images_per_second`` and ``data_wait`` (0 to 1)."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        return {
            "images_per_second": self._batches * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
        }


class _Bar(tqdm):
    """Progress of the steps with smoothed loss, learning rate and images per second; tqdm adds rate and ETA."""

    def __init__(self, done: int, steps: int, disable: bool) -> None:
        super().__init__(initial=done, total=steps, desc="training", unit="step", dynamic_ncols=True, disable=disable)
        self._loss: float | None = None

    def show(self, loss: float, lr: float, speed: _Speed) -> None:
        """Count one step."""
        self._loss = loss if self._loss is None else self._loss + _SMOOTHING * (loss - self._loss)
        rate = speed.numbers()["images_per_second"]
        self.set_postfix_str(f"loss {self._loss:.3f}, lr {lr:.2e}, {rate:.1f} images/s", refresh=False)
        self.update()


def _complete(
    recipe: Recipe,
    data: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    weights_input: str | None,
) -> Recipe:
    """The recipe with the caller's data folder and weights in place of its own."""
    if data is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=str(data)))
    if weights is not None:
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=str(weights)))
    if weights_input is not None:
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights_input=weights_input))
    return recipe


def _without_folders(recipe: Recipe) -> Recipe:
    """The recipe as it goes with a model to other machines: no data folder, only the name of the weights file."""
    weights = recipe.model.weights and Path(recipe.model.weights).name
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, root=None),
        model=dataclasses.replace(recipe.model, weights=weights),
    )


def _check_folder(out: Path, resume: bool) -> None:
    state = out / STATE_FILE
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the run")
    if resume and not state.is_file():
        raise CheckpointError(f"{out} holds no run to resume (no {STATE_FILE}); start one without resume")
    if resume or not out.is_dir():
        return
    if any(not path.name.startswith(".") for path in out.iterdir()):
        fix = "resume it (--resume) or choose" if state.is_file() else "choose"
        raise InputError(f"{out} is not empty; {fix} another folder (--out)")


def _open_split(recipe: Recipe, split: str, classes: tuple[str, ...] | None) -> DetectionDataset:
    if recipe.data.root is None:
        raise RecipeError(f"recipe {recipe.name} has no data.root: give the data folder there or with --data")
    folder, _, name = split.rpartition("/")
    return open_dataset(Path(recipe.data.root) / folder, name, format=recipe.data.format, classes=classes)


def _check_objects(dataset: DetectionDataset, use_difficult: bool) -> None:
    """Raise DataError when nothing can be learned: every loss would be 0."""
    if not any(use_difficult or not all(record.difficult) for record in dataset.records if len(record.labels)):
        raise DataError(f"{dataset.name}: no image has a usable object to learn from; check the annotations")


def _check_statistics(model: RefineDet, recipe: Recipe) -> None:
    """Raise RecipeError when a channel of the coarsest level has one value in a whole batch: that has no variance."""
    height, width = recipe.model.input_size
    values = recipe.train.batch_size * (height // STRIDES[-1]) * (width // STRIDES[-1])
    if values == 1 and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise RecipeError(
            f"recipe {recipe.name}: train.batch_size is 1 at model.size {recipe.model.size}, which leaves batch "
            f"normalisation one value per channel at stride {STRIDES[-1]}; give at least 2 images or a larger size"
        )


def _announce(dataset: DetectionDataset, recipe: Recipe) -> None:
    """Say what is there to learn from: a misspelt class stands out by its few objects."""
    print(f"{dataset.name}: {len(dataset)} images\n{dataset.class_table()}", file=sys.stderr)
    if recipe.data.classes is None:
        print(
            "classes are those of the annotations; data.classes in the recipe makes any other an error", file=sys.stderr
        )


def _loader(recipe: Recipe, dataset: DetectionDataset, model: RefineDet) -> TrainLoader:
    settings = recipe.train
    return TrainLoader(
        dataset,
        TrainAugment(recipe.model.input_size, model.config.preprocessing, recipe.augment),
        settings.batch_size,
        settings.seed,
        settings.workers,
        recipe.data.use_difficult,
        recipe.data.cache,
    )


def _load_pretrained(model: RefineDet, path: str, weights_input: str) -> None:
    if is_checkpoint(path):
        load_weights(model, path)
    else:
        load_pretrained(model.backbone, path, weights_input)


def _fingerprint(dataset: DetectionDataset) -> dict[str, Any]:
    """What identifies a training set: its size, classes and a digest of names and boxes in order."""
    digest = hashlib.sha256()
    for record in dataset.records:
        for part in (record.image_id.encode(), record.boxes.tobytes(), record.labels.tobytes()):
            digest.update(part)
    return {"images": len(dataset), "classes": list(dataset.classes), "digest": digest.hexdigest()[:16]}


def _remove_leftovers(out: Path) -> None:
    """Delete temporary files of a process that was killed while writing."""
    for file in (STATE_FILE, MODEL_FILE, RECIPE_FILE, RESULT_FILE):
        name = Path(file)
        for path in out.glob(f".{name.stem}.*{name.suffix}"):
            path.unlink(missing_ok=True)
