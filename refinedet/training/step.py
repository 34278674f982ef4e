"""One training step, and the state that carries over from one to the next."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refinedet.errors import InputError, RefineDetError
from refinedet.models import RefineDet, caffe_multipliers
from refinedet.records import Batch, Targets
from refinedet.training.average import ModelEMA
from refinedet.training.loss import MultiBoxLoss, MultiBoxLosses
from refinedet.training.recipe import Recipe
from refinedet.training.schedule import learning_rate
from refinedet.training.sgd import BUFFER, CaffeSGD, parameter_groups
from refinedet.weights.checkpoint import TrainingState, fit

BACKBONE = "backbone."  # prefix of the names of the backbone's parameters
_AMP_DTYPES = {"cuda": torch.float16, "cpu": torch.bfloat16}


class Trainer:
    """Takes optimiser steps on a model by a recipe's ``[train]`` section.

    ``steps`` counts those taken, ``model`` is the network in training, ``inference_model`` the one to ship.
    """

    def __init__(self, model: RefineDet, recipe: Recipe, device: torch.device) -> None:
        settings = recipe.train
        self.model = model.to(device).train()
        self.settings = settings
        self.device = device
        self.steps = 0
        self.criterion = MultiBoxLoss(model.config.preset, settings.normalize_groups)
        groups = parameter_groups(
            model,
            caffe_multipliers(model),
            lambda name: settings.backbone_lr_mult if name.startswith(BACKBONE) else 1.0,
        )
        self.optimizer = CaffeSGD(groups, settings.lr, settings.momentum, settings.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp and device.type == "cuda")
        self.average = ModelEMA(model, settings.ema_decay) if settings.ema_decay else None

    @property
    def inference_model(self) -> RefineDet:
        """The network to evaluate and to ship: the moving average of the weights where the recipe keeps one."""
        return self.average.model if self.average else self.model

    @property
    def learning_rate(self) -> float:
        """Base learning rate of the next step."""
        s = self.settings
        return learning_rate(
            self.steps,
            base=s.lr,
            milestones=s.milestones,
            gamma=s.gamma,
            warmup_steps=s.warmup_steps,
            warmup_factor=s.warmup_factor,
        )

    def step(self, batch: Batch) -> dict[str, float]:
        """Take one step on ``batch``; returns the fields of `MultiBoxLosses` as numbers.

        Raises:
            InputError: there are no images.
            RefineDetError: the loss is not finite; names the step and the images. No weight has changed then.
        """
        if len(batch.images) == 0:
            raise InputError("the batch has no images; give at least one")
        images, targets = self._to_device(batch)
        losses = self._losses(images, targets)
        values = _to_numbers(losses)
        if not torch.isfinite(torch.tensor(values["total"])):
            raise RefineDetError(self._explain_divergence(images, targets, batch.paths))
        self.optimizer.zero_grad()
        self.scaler.scale(losses.total).backward()
        if self.settings.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.set_lr(self.learning_rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        if self.average:
            self.average.update(self.model, self.steps)
        return values

    def state(self, facts: dict[str, Any]) -> TrainingState:
        """Everything to continue from here, with ``facts`` of the caller."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return TrainingState(
            step=self.steps,
            model=self.model.state_dict(),
            momentum={
                name: self.optimizer.state[parameter][BUFFER]
                for name, parameter in self.model.named_parameters()
                if BUFFER in self.optimizer.state[parameter]
            },
            average=self.average.model.state_dict() if self.average else {},
            random=random,
            facts={**facts, "scaler": self.scaler.state_dict()},
        )

    def restore(self, state: TrainingState, path: Path) -> None:
        """Take up a state that `state` made for the same recipe; ``path`` names its file in errors.

        Raises:
            CheckpointError: it does not fit the network.
        """
        fit(self.model, state.model, path)
        self.model.load_state_dict(state.model)
        if self.average:
            fit(self.average.model, state.average, path)
            self.average.model.load_state_dict(state.average)
        for name, parameter in self.model.named_parameters():
            if name in state.momentum:
                # empty_like: a buffer of another memory layout than its parameter makes every step slower.
                buffer = torch.empty_like(parameter, requires_grad=False)
                self.optimizer.state[parameter][BUFFER] = buffer.copy_(state.momentum[name])
        if state.facts["scaler"]:  # empty after steps on a CPU
            self.scaler.load_state_dict(state.facts["scaler"])
        self.steps = state.step
        torch.set_rng_state(state.random["cpu"])
        if self.device.type == "cuda" and "cuda" in state.random:
            torch.cuda.set_rng_state(state.random["cuda"], self.device)

    def _to_device(self, batch: Batch) -> tuple[Tensor, Targets]:
        images = batch.images.to(self.device, non_blocking=True)
        return images, Targets(*(t.to(self.device, non_blocking=True) for t in batch.targets))

    def _losses(self, images: Tensor, targets: Targets) -> MultiBoxLosses:
        with torch.autocast(self.device.type, _AMP_DTYPES[self.device.type], enabled=self.settings.amp):
            raw = self.model(images)
        losses: MultiBoxLosses = self.criterion(raw, self.model.anchors, targets)
        return losses

    @torch.no_grad()
    def _explain_divergence(self, images: Tensor, targets: Targets, paths: Iterable[str]) -> str:
        """Which images of the batch give a loss that is not finite on their own."""
        paths = list(paths)
        guilty = [p for i, p in enumerate(paths) if not self._losses(*_twice(images, targets, i)).total.isfinite()]
        where = f"the loss of step {self.steps} is not finite"
        if len(guilty) == len(paths) or not guilty:
            return (
                f"{where}, on every image of its batch ({', '.join(paths)}): the training has diverged. "
                "Lower train.lr, or set train.warmup_steps or train.clip_norm. The last saved state is kept"
            )
        return f"{where} because of {', '.join(guilty)}; check image and annotation. The last saved state is kept"


def _twice(images: Tensor, targets: Targets, index: int) -> tuple[Tensor, Targets]:
    """Batch of image ``index`` two times: batch normalisation takes no batch of one value per channel."""
    first, last = targets.offsets[index], targets.offsets[index + 1]
    boxes, labels = targets.boxes[first:last], targets.labels[first:last]
    offsets = torch.arange(3, device=targets.offsets.device) * len(labels)
    return images[[index, index]], Targets(torch.cat([boxes, boxes]), torch.cat([labels, labels]), offsets)


def _to_numbers(losses: MultiBoxLosses) -> dict[str, float]:
    # One transfer from the device instead of one per field.
    return dict(zip(losses._fields, torch.stack([value.detach().float() for value in losses]).tolist(), strict=True))
