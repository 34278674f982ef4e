"""Exponential moving average of a model's weights."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from refinedet.models import RefineDet


class ModelEMA:
    """Keeps ``model``, a copy in eval mode whose weights and batch statistics follow those of another model.

    After step t (from 1) each floating value moves a share ``1 - d`` towards the trained one, with
    ``d = min(decay, (1 + t) / (10 + t))``: early averages would otherwise be dominated by the random start.
    """

    def __init__(self, model: RefineDet, decay: float) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: RefineDet, step: int) -> None:
        """Move towards ``model`` after step ``step`` (1-based)."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        averages, values = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([averages[n] for n in floating], [values[n] for n in floating], share)
        for name in values.keys() - set(floating):
            averages[name].copy_(values[name])
