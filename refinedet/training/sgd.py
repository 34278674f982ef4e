"""SGD with momentum as Caffe computes it: the learning rate is inside the momentum buffer (spec 9.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from refinedet.ops import extension

BUFFER = "momentum_buffer"


class CaffeSGD(torch.optim.Optimizer):
    """Stochastic gradient descent with Caffe's momentum.

    ``V <- momentum * V + lr * lr_mult * (grad + weight_decay * decay_mult * w)``, then ``w <- w - V``.
    ``torch.optim.SGD`` multiplies by the rate after the buffer, so the two differ from the first step after the
    rate has changed.  A parameter group may carry ``lr_mult`` and ``decay_mult`` (both 1 by default); a group with
    ``lr_mult`` 0 is left untouched, by the weight decay too.

    Args:
        params: parameters or parameter groups, as for every ``torch.optim.Optimizer``.
        lr: base learning rate, >= 0.  Change it between steps through ``set_lr``.
        momentum: in [0, 1).
        weight_decay: L2 coefficient, >= 0.

    Source: spec 9.1.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        if lr < 0:
            raise ValueError(f"lr must be >= 0, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lr_mult": 1.0, "decay_mult": 1.0}
        super().__init__(params, defaults)

    def set_lr(self, lr: float) -> None:
        """Set the base learning rate of every group."""
        for group in self.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step from the ``.grad`` of the parameters; parameters without a gradient are skipped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["lr_mult"] != 0:
                self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        weights = [w for w in group["params"] if w.grad is not None]
        if not weights:
            return
        for w in weights:
            if BUFFER not in self.state[w]:
                self.state[w][BUFFER] = torch.zeros_like(w)
        rate = group["lr"] * group["lr_mult"]
        decay = rate * group["weight_decay"] * group["decay_mult"]
        rest: list[Tensor] = []
        for w in weights:
            flat = _flat(w.detach(), self.state[w][BUFFER], w.grad)
            if flat:
                torch.ops.refinedet.caffe_sgd(*flat, group["momentum"], decay, rate)
                # As torch's own do: autograd and `refinedet.models.optimized` see a change by its count alone.
                increment_version([w, self.state[w][BUFFER]])
            else:
                rest.append(w)
        if rest:
            self._step_torch(rest, group["momentum"], decay, rate)

    def _step_torch(self, weights: list[Tensor], momentum: float, decay: float, rate: float) -> None:
        buffers = [self.state[w][BUFFER] for w in weights]
        # The decay goes straight into the buffer: a sum "grad + decay * w" would need another copy of the network.
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, weights, alpha=decay)
        torch._foreach_add_(buffers, [w.grad for w in weights if w.grad is not None], alpha=rate)
        torch._foreach_sub_(weights, buffers)


def _flat(*tensors: Tensor | None) -> list[Tensor] | None:
    """One-dimensional views of tensors of one shape, in one order; None where the compiled step does not take them."""
    views = []
    for tensor in tensors:
        if tensor is None or tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return None
        last = tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor
        if not last.is_contiguous():
            return None
        views.append(last.view(-1))
    return views if extension.problem() is None else None


def parameter_groups(
    model: nn.Module,
    multipliers: Mapping[str, tuple[float, float]],
    lr_scale: Callable[[str], float] = lambda name: 1.0,
) -> list[dict[str, Any]]:
    """Group the parameters of ``model`` by their (lr_mult, decay_mult), in the order of first appearance.

    Args:
        model: the network.
        multipliers: (lr_mult, decay_mult) of every parameter name, see ``models.caffe_multipliers``.
        lr_scale: further factor on the lr_mult of a parameter name (a slower backbone).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr_mult, decay_mult = multipliers[name]
        groups.setdefault((lr_mult * lr_scale(name), decay_mult), []).append(parameter)
    return [{"params": p, "lr_mult": lr, "decay_mult": decay} for (lr, decay), p in groups.items()]
