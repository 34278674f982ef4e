"""One training step, and the state that carries over from one to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refinedet.errors import InputError, RefineDetError, is_out_of_memory, shorten
from refinedet.models import RefineDet, caffe_multipliers
from refinedet.records import Batch, Targets
from refinedet.training.average import ModelEMA
from refinedet.training.loss import MultiBoxLoss, MultiBoxLosses
from refinedet.training.recipe import Recipe
from refinedet.training.resume import check_tensors, read_scale, set_random_states
from refinedet.training.schedule import learning_rate
from refinedet.training.sgd import BUFFER, CaffeSGD, parameter_groups
from refinedet.weights.checkpoint import TrainingState

BACKBONE = "backbone."  # prefix of the names of the backbone's parameters
_AMP_DTYPES = {"cuda": torch.float16, "cpu": torch.bfloat16}
_LEAST_SCALE = 1.0  # of the loss under AMP: a gradient that overflows float16 without being enlarged has diverged
_KEPT = "The last saved state is kept"
_DIVERGED = f"the training has diverged. Lower train.lr, or set train.warmup_steps or train.clip_norm. {_KEPT}"


class _Found(NamedTuple):
    """What one pass through the network gave."""

    losses: dict[str, float]  # the fields of `MultiBoxLosses`
    gradients: list[str]  # parameters whose gradient is not finite
    state: list[str]  # weights and batch statistics that are not finite


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
        self._parameters = dict(self.model.named_parameters())
        self._watched = _floating(self.model)  # what a step may make infinite although its loss is not

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

        Where the loss is scaled (``train.amp`` on CUDA) and a gradient overflows, the batch is tried again with a lower
        scale: each step that is counted has been taken. The host waits for the device once in each trial.

        Raises:
            InputError: the batch has no image.
            RefineDetError: loss, gradient or weights are not finite, or the memory is too small; the message names the
                step, and the images or tensors. No weight has changed then.
        """
        if len(batch.images) == 0:
            raise InputError(f"the batch of step {self.steps} has no image; give at least one")
        with self._explaining_memory(batch):
            images, targets = self._to_device(batch)
            found = self._backward(images, targets)
            while found.gradients and self._lower_scale():
                found = self._backward(images, targets)
            self._check(found, images, targets, batch.paths)
            self._update()
        return found.losses

    def state(self, facts: dict[str, Any]) -> TrainingState:
        """Everything to continue from here, with ``facts`` of the caller.

        Raises:
            RefineDetError: a weight, a batch statistic or their average is not finite.
        """
        self._check_state()
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return TrainingState(
            step=self.steps,
            model=self.model.state_dict(),
            momentum=self._momentum(),
            average=self.average.model.state_dict() if self.average else {},
            random=random,
            facts={**facts, "scaler": self.scaler.state_dict()},
        )

    def restore(self, state: TrainingState, path: Path) -> None:
        """Take up a state that `state` made for the same recipe; ``path`` names its file in errors.

        Raises:
            CheckpointError: it does not fit the network, or a part of it is missing or damaged.
        """
        check_tensors("model", state.model, self.model.state_dict(), path)
        if self.average:
            check_tensors("average", state.average, self.average.model.state_dict(), path)
        self.steps = state.step
        check_tensors("momentum", state.momentum, self._momentum(), path)
        self.model.load_state_dict(state.model)
        if self.average:
            self.average.model.load_state_dict(state.average)
        for name, value in state.momentum.items():
            # empty_like: a buffer of another memory layout than its parameter makes every step slower.
            buffer = torch.empty_like(self._parameters[name], requires_grad=False)
            self.optimizer.state[self._parameters[name]][BUFFER] = buffer.copy_(value)
        if scale := read_scale(state.facts, path):
            self.scaler.load_state_dict(scale)
        set_random_states(state.random, self.device, path)

    def _to_device(self, batch: Batch) -> tuple[Tensor, Targets]:
        images = batch.images.to(self.device, non_blocking=True)
        return images, Targets(*(t.to(self.device, non_blocking=True) for t in batch.targets))

    def _losses(self, images: Tensor, targets: Targets) -> MultiBoxLosses:
        with torch.autocast(self.device.type, _AMP_DTYPES[self.device.type], enabled=self.settings.amp):
            raw = self.model(images)
        losses: MultiBoxLosses = self.criterion(raw, self.model.anchors, targets)
        return losses

    def _backward(self, images: Tensor, targets: Targets) -> _Found:
        """Losses and gradients of a batch, and what of them and of the network is not finite."""
        losses = self._losses(images, targets)
        self.optimizer.zero_grad()
        self.scaler.scale(losses.total).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        tensors = [*gradients.values(), *self._watched.values()]
        # One transfer from the device: this is where the host waits, before the step and for all that it has to know.
        numbers = torch.stack([*(value.detach().float() for value in losses), *_sizes(tensors)]).tolist()
        values = dict(zip(losses._fields, numbers[: len(losses)], strict=True))
        broken = _broken(tensors, numbers[len(losses) :])
        return _Found(
            values,
            [name for name, bad in zip(gradients, broken[: len(gradients)], strict=True) if bad],
            [name for name, bad in zip(self._watched, broken[len(gradients) :], strict=True) if bad],
        )

    def _momentum(self) -> dict[str, Tensor]:
        """The momentum buffer of each parameter that learns, by name; none before the first step."""
        if self.steps == 0:
            return {}
        groups = [group["params"] for group in self.optimizer.param_groups if group["lr_mult"] != 0]
        learning = {parameter for group in groups for parameter in group}
        return {
            name: self.optimizer.state[p].get(BUFFER, torch.zeros_like(p, requires_grad=False))
            for name, p in self._parameters.items()
            if p in learning
        }

    def _lower_scale(self) -> bool:
        """Lower the scale of the loss after an overflow; False where there is none to lower."""
        if not self.scaler.is_enabled() or self.scaler.get_scale() < _LEAST_SCALE:
            return False
        self.scaler.update()
        return True

    def _update(self) -> None:
        """Take the step whose gradients are there."""
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.set_lr(self.learning_rate)
        self.optimizer.step()  # not through the scaler, which would wait once more for what `_backward` has found
        self.scaler.update()
        self.steps += 1
        if self.average:
            self.average.update(self.model, self.steps)

    def _check(self, found: _Found, images: Tensor, targets: Targets, paths: tuple[str, ...]) -> None:
        """Raise unless the step can be taken."""
        total = found.losses["total"]
        if not math.isfinite(total):
            raise RefineDetError(self._explain("the loss of", images, targets, paths, _loss_is_broken))
        if found.state:
            raise RefineDetError(
                f"at step {self.steps} {shorten(found.state)} hold values that are not finite: {_DIVERGED}"
            )
        if found.gradients:
            what = f"the gradient of {shorten(found.gradients)} in"
            explained = self._explain(what, images, targets, paths, self._gradient_is_broken)
            raise RefineDetError(f"{explained} (the loss is {total:.4g})")

    def _check_state(self) -> None:
        tensors = {**self._watched, **{f"momentum of {name}": t for name, t in self._momentum().items()}}
        if self.average:
            tensors.update({f"average of {name}": t for name, t in _floating(self.average.model).items()})
        peaks = torch.stack(_largest(list(tensors.values()))).tolist()
        broken = [name for name, peak in zip(tensors, peaks, strict=True) if not math.isfinite(peak)]
        if broken:
            raise RefineDetError(
                f"after {self.steps} steps {shorten(broken)} hold values that are not finite: {_DIVERGED}"
            )

    def _explain(
        self,
        what: str,
        images: Tensor,
        targets: Targets,
        paths: tuple[str, ...],
        is_broken: Callable[[MultiBoxLosses], bool],
    ) -> str:
        """Which images of the batch give something that is not finite on their own."""
        guilty = [p for i, p in enumerate(paths) if is_broken(self._losses(*_twice(images, targets, i)))]
        where = f"{what} step {self.steps} is not finite"
        if len(guilty) == len(paths) or not guilty:
            return f"{where}, on every image of its batch ({', '.join(paths)}): {_DIVERGED}"
        return f"{where} because of {', '.join(guilty)}; check image and annotation. {_KEPT}"

    def _gradient_is_broken(self, losses: MultiBoxLosses) -> bool:
        self.optimizer.zero_grad()
        losses.total.backward()
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        return not bool(torch.stack(_largest(gradients)).isfinite().all())

    @contextmanager
    def _explaining_memory(self, batch: Batch) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = batch.images.shape[2:]
            raise RefineDetError(
                f"step {self.steps} needs more memory than {self.device} has for {len(batch.images)} images of "
                f"{height} x {width} pixels; lower train.batch_size or model.size, or free memory. {_KEPT}"
            ) from error


def _loss_is_broken(losses: MultiBoxLosses) -> bool:
    return not math.isfinite(losses.total.item())


def _sizes(tensors: list[Tensor]) -> list[Tensor]:
    """A number for each tensor, without a wait: it is finite only where all values of the tensor are.

    Their Euclidean norm, which torch computes on the CPU eight times as fast as their largest. Squares may overflow:
    a number that is not finite is a question for `_largest`.
    """
    return list(torch._foreach_norm(tensors))


def _broken(tensors: list[Tensor], sizes: list[float]) -> list[bool]:
    """Which tensors hold a value that is not finite, by their `_sizes`. The device is waited for only if one may."""
    doubtful = [i for i, size in enumerate(sizes) if not math.isfinite(size)]
    broken = [False] * len(tensors)
    if doubtful:
        peaks = torch.stack(_largest([tensors[i] for i in doubtful])).tolist()
        for i, peak in zip(doubtful, peaks, strict=True):
            broken[i] = not math.isfinite(peak)
    return broken


def _largest(tensors: list[Tensor]) -> list[Tensor]:
    """The largest absolute value of each tensor, without a wait; NaN or infinite where one of its values is."""
    return list(torch._foreach_norm(tensors, math.inf))


def _floating(module: nn.Module) -> dict[str, Tensor]:
    """Weights and batch statistics by name: the tensors themselves, not copies."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


def _twice(images: Tensor, targets: Targets, index: int) -> tuple[Tensor, Targets]:
    """Batch of image ``index`` two times: batch normalisation takes no batch of one value per channel."""
    first, last = targets.offsets[index], targets.offsets[index + 1]
    boxes, labels = targets.boxes[first:last], targets.labels[first:last]
    offsets = torch.arange(3, device=targets.offsets.device) * len(labels)
    return images[[index, index]], Targets(torch.cat([boxes, boxes]), torch.cat([labels, labels]), offsets)
