"""Training: from a recipe and a data set to a checkpoint (spec sections 7 and 9)."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refinedet.anchors import STRIDES
from refinedet.data import DetectionDataset
from refinedet.errors import CheckpointError, DataError, RecipeError, RefineDetError, show
from refinedet.evaluation.evaluate import evaluate
from refinedet.files import write_text
from refinedet.inference.detector import Detector
from refinedet.interrupt import Stopped, StopRequest, TrainingInterrupted, stop_on_interrupt
from refinedet.models import RefineDet, build, load_pretrained
from refinedet.models.backbones import make_backbone
from refinedet.ops.devices import choose_device
from refinedet.records import Batch
from refinedet.training.datasets import announce, check_objects, open_test_data, open_training_data, training_batches
from refinedet.training.folder import MODEL_FILE, RECIPE_FILE, RESULT_FILE, STATE_FILE, check_folder, remove_leftovers
from refinedet.training.heap import keep_freed_memory
from refinedet.training.lock import refuse_running, run_lock
from refinedet.training.logs import LOG_FILE, RunningMean, TrainingLog, read_log
from refinedet.training.progress import Speed, StepBar, show_mean_ap
from refinedet.training.read import read_recipe, with_settings
from refinedet.training.recipe import Recipe
from refinedet.training.resume import fingerprint, load_run, run_facts
from refinedet.training.sources import setting
from refinedet.training.step import Trainer
from refinedet.weights.checkpoint import is_checkpoint, load_weights, save_model, save_training_state, shipped_names


class RunStopped(DataError):
    """The next batch could not be loaded. The run is saved and can go on; the message says why and where."""


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
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a model and write it to ``out/model.safetensors``.

    ``out`` also receives ``last.safetensors`` (the state to resume from: at the start, every
    ``train.checkpoint_every`` steps and at the end), ``recipe.toml``, ``log.jsonl``, ``tensorboard/`` and
    ``result.json``. Everything is checked before the first step. The first Ctrl-C or SIGTERM finishes the step, saves
    and raises; the second kills. Torch's global generator is seeded with ``train.seed``. On a CPU, with the same number
    of threads, a resumed run goes through the same losses, bit for bit, as one that never stopped. While it runs no
    other one can begin in ``out``. Torch's default device and dtype do not matter.

    Args:
        recipe: a recipe, its TOML file, or the name of one of the package's.
        out: folder of the run; it must be empty or absent, unless ``resume``.
        data: folder of the data set, instead of the recipe's ``data.root``.
        weights: pretrained backbone file, or refinedet checkpoint to start from, instead of ``model.weights``.
        weights_input: what the backbone file reads, "torchvision" or "caffe", instead of ``model.weights_input``.
        device: where to train: auto, cpu, cuda or cuda:N. No setting of the recipe: a run may go on on another one.
        resume: go on with the run in ``out``.
        progress: show on stderr how many images and objects each class has, and a progress bar.

    Raises:
        RecipeError, DataError, CheckpointError, InputError: recipe, data, weights or ``out`` cannot be used; another
            run is going on in ``out``.
        RefineDetError: loss, gradient or weights are not finite, the memory is too small, or a file cannot be written.
            The last saved state is kept.
        RunStopped: a batch cannot be loaded: a loading process died, an image is damaged. The run is saved first.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    out = Path(out)
    recipe = _complete(recipe if isinstance(recipe, Recipe) else read_recipe(recipe), data, weights, weights_input)
    with _usual_defaults():
        check_folder(out, resume)
        refuse_running(out)
        chosen = choose_device(device)
        if chosen.type == "cpu":
            keep_freed_memory()
        _check_network(recipe, resume)
        dataset = open_training_data(recipe)
        check_objects(dataset, recipe.data.use_difficult)
        test_data = open_test_data(recipe, dataset.classes) if recipe.evaluate.every else None
        if progress:
            announce(dataset, recipe)
        run = _Run(recipe, out, dataset, test_data)
        with run_lock(out):
            check_folder(out, resume)  # another run may have come and gone
            remove_leftovers(out)
            if resume:
                run.restore(chosen)
            else:
                run.start(chosen)
            return run.finish(progress)


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
            anchor_ratio=recipe.model.anchor_ratio,
        )
        _check_statistics(self.model, recipe)
        self.loader = training_batches(recipe, dataset, self.model.config.preprocessing)
        self.fingerprint = fingerprint(dataset)
        self.window = RunningMean()
        self.trainer: Trainer

    def start(self, device: torch.device) -> None:
        """Load the pretrained weights and save the state of step 0: a run can be resumed from its first moment."""
        if self.recipe.model.weights is not None:
            _load_pretrained(self.model, self.recipe.model.weights, self.recipe.model.weights_input)
        self.trainer = Trainer(self.model, self.recipe, device)
        self._save()
        write_text(self.out / RECIPE_FILE, self.recipe.to_toml())

    def restore(self, device: torch.device) -> None:
        """Take up the saved state; raises as `load_run`."""
        state, self.window = load_run(self.out, self.recipe, self.fingerprint)
        self.trainer = Trainer(self.model, self.recipe, device)
        self.trainer.restore(state, self.out / STATE_FILE)
        write_text(self.out / RECIPE_FILE, self.recipe.to_toml())  # a run killed at once has none yet

    def finish(self, progress: bool) -> TrainResult:
        """Take the remaining steps, and write the final model and the result."""
        started = time.monotonic()
        with stop_on_interrupt() as stop:
            try:
                evaluation = self._take_steps(progress, stop)
            except Stopped as stopped:
                self._save()
                saved = f"stopped after step {self.trainer.steps}; the run is saved in {self.out}"
                raise TrainingInterrupted(saved, stopped.signum) from None
            return self._write_result(evaluation, started)

    def _take_steps(self, progress: bool, stop: StopRequest) -> dict[str, Any] | None:
        """Take the remaining steps and evaluate the last; raises Stopped between two of them."""
        with TrainingLog(self.out, self.trainer.steps) as log:
            self._loop(log, progress, stop)
            return self._evaluate(log, progress, stop)

    def _write_result(self, evaluation: dict[str, Any] | None, started: float) -> TrainResult:
        logged = [entry["total"] for entry in read_log(self.out / LOG_FILE) if entry["group"] == "train"]
        loss = logged[-1] if logged else None
        summary = evaluation and {key: evaluation[key] for key in ("measure", "mean_ap", "rows")}
        recipe = self.recipe.without_folders().writable().to_dict()
        facts = {"recipe": recipe, "steps": self.trainer.steps, "loss": loss, "evaluation": summary}
        checkpoint = self.out / MODEL_FILE
        save_model(self.trainer.inference_model, checkpoint, half=self.recipe.train.half_checkpoint, metadata=facts)
        result = TrainResult(checkpoint, self.trainer.steps, loss, time.monotonic() - started, evaluation)
        write_text(self.out / RESULT_FILE, result.to_json() + "\n")
        return result

    def _loop(self, log: TrainingLog, progress: bool, stop: StopRequest) -> None:
        """Take the remaining steps."""
        settings, trainer = self.recipe.train, self.trainer
        speed = Speed(settings.batch_size)
        if self._evaluation_due and trainer.steps < settings.steps and not self._is_evaluated():
            self._evaluate(log, progress, stop)
        with StepBar(trainer.steps, settings.steps, shown=progress) as bar, closing(self._batches(stop)) as batches:
            for batch in speed.timed(batches, settings.steps - trainer.steps):
                lr = trainer.learning_rate
                values = trainer.step(batch)
                self.window.add(values)
                bar.show(values["total"], lr, speed)
                if trainer.steps % settings.log_every == 0:
                    self._log(log, lr, speed)
                finished = trainer.steps == settings.steps
                if finished or trainer.steps % settings.checkpoint_every == 0:
                    self._save()
                if not finished:
                    stop.obey()
                if self._evaluation_due and not finished:
                    self._evaluate(log, progress, stop)
                    speed.reset()  # the images per second are those of training

    def _batches(self, stop: StopRequest) -> Generator[Batch, None, None]:
        """The batches from the next step on. One that cannot be loaded ends the run, between two steps: it is saved."""
        try:
            with stop.at_once():
                self.loader.fill_cache()
            # Not at once from here on: a worker that is left in the middle of handing over a batch complains.
            yield from self.loader.iterate(self.trainer.steps)
        except RefineDetError as error:
            self._save()
            raise RunStopped(f"{error}. The run is saved in {self.out}, after step {self.trainer.steps}") from error

    @property
    def _evaluation_due(self) -> bool:
        every = self.recipe.evaluate.every
        return every > 0 and self.trainer.steps > 0 and self.trainer.steps % every == 0

    def _is_evaluated(self) -> bool:
        """Whether the log has an evaluation of this step: not so when the run was stopped in it."""
        return any(
            entry["group"] == "test" and entry["step"] == self.trainer.steps for entry in read_log(self.out / LOG_FILE)
        )

    def _log(self, log: TrainingLog, lr: float, speed: Speed) -> None:
        log.write(self.trainer.steps, "train", {**self.window.means(), "lr": lr, **speed.numbers()})
        self.window.reset()
        speed.reset()

    def _evaluate(self, log: TrainingLog, progress: bool, stop: StopRequest) -> dict[str, Any] | None:
        """Evaluate on the test split, when the recipe wants it."""
        if self.test_data is None:
            return None
        settings = self.recipe.evaluate
        with stop.at_once():
            found = evaluate(
                Detector(self.trainer.inference_model),
                self.test_data,
                protocol=settings.protocol,
                metric=settings.metric,
                batch_size=settings.batch_size,
                progress=progress,
            )
        if progress and self.trainer.steps < self.recipe.train.steps:  # the last one is the caller's to tell
            show_mean_ap(self.trainer.steps, found)
        if not self._is_evaluated():  # it is, where the run was stopped after its last evaluation, or is finished again
            log.write(self.trainer.steps, "test", {"mean_ap": found.mean_ap, "ap": {r.name: r.ap for r in found.rows}})
        numbers: dict[str, Any] = json.loads(found.to_json())
        return numbers

    def _save(self) -> None:
        facts = run_facts(self.recipe, self.fingerprint, self.window)
        save_training_state(self.out / STATE_FILE, self.trainer.model, self.trainer.state(facts))


def _complete(
    recipe: Recipe,
    data: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    weights_input: str | None,
) -> Recipe:
    """The recipe with the caller's data folder and weights in place of its own."""
    given = {"data.root": data, "model.weights": weights, "model.weights_input": weights_input}
    settings = [setting(name, str(value), "train()") for name, value in given.items() if value is not None]
    return with_settings(recipe, settings) if settings else recipe


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """Networks and generators are made in float32 on the CPU, whatever torch's default dtype and device."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        if torch.get_default_device().type == "cpu":
            yield
        else:
            with torch.device("cpu"):
                yield
    finally:
        torch.set_default_dtype(dtype)


def _check_network(recipe: Recipe, resume: bool) -> None:
    """Raise what can be told of the network before the data is read, which may take minutes."""
    with torch.device("meta"):
        make_backbone(recipe.model.backbone)
    weights, names = recipe.model.weights, shipped_names()
    if not (resume or weights is None or os.path.isfile(weights) or weights in names):
        raise CheckpointError(
            f"model.weights is {show(weights)}; it must be a file, or the name of a shipped checkpoint: "
            f"{', '.join(names)}"
        )


def _check_statistics(model: RefineDet, recipe: Recipe) -> None:
    """Raise RecipeError when a channel of the coarsest level has one value in a whole batch: that has no variance."""
    height, width = recipe.model.input_size
    values = recipe.train.batch_size * (height // STRIDES[-1]) * (width // STRIDES[-1])
    if values == 1 and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise RecipeError(
            f"recipe {recipe.name}: train.batch_size is 1 at model.size {recipe.model.size}, which leaves batch "
            f"normalisation one value per channel at stride {STRIDES[-1]}; give at least 2 images or a larger size"
        )


def _load_pretrained(model: RefineDet, path: str, weights_input: str) -> None:
    if is_checkpoint(path):
        load_weights(model, path)
    else:
        load_pretrained(model.backbone, path, weights_input)
