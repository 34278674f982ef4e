"""Learning-rate schedule: a pure function of the step, so there is no state to save or restore."""

from __future__ import annotations

from collections.abc import Sequence


def learning_rate(
    step: int,
    *,
    base: float,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
) -> float:
    """Learning rate of step ``step`` (0-based): Caffe's ``multistep`` policy after an optional linear warm-up.

    The rate is ``base * gamma ** k`` with k milestones at or below ``step`` (spec 9.1).  During the first
    ``warmup_steps`` steps it is multiplied by a factor that grows linearly from ``warmup_factor`` at step 0 to 1 at
    step ``warmup_steps``.  The official runs have no warm-up.
    """
    rate = base * gamma ** sum(step >= milestone for milestone in milestones)
    if step >= warmup_steps:
        return rate
    return rate * (warmup_factor + (1.0 - warmup_factor) * step / warmup_steps)
