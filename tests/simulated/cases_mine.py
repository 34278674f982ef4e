"""mine on the harness: the launcher with the face of ``ops.mine``, and the quick cases that mutate.py uses."""

from typing import Any

import numpy as np
import torch
from simulated.harness import Harness
from simulated.torch_arrays import DTYPES, to_array
from torch import Tensor

from refinedet import ops

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # losses, labels, ious, objectness


def mine(
    harness: Harness,
    losses: Tensor,
    labels: Tensor,
    ious: Tensor,
    objectness: Tensor | None = None,
    *,
    negative_iou: float = 0.5,
    negative_ratio: float = 3.0,
    objectness_threshold: float = 0.01,
    misaligned: bool = False,
    seed: int = 0,
) -> Tensor:
    """The CUDA ``mine``; like the operator, converts all but half-typed losses to float32 before the kernels."""
    if losses.dtype not in DTYPES:
        losses = losses.float()
    arrays = {"losses": to_array(losses), "labels": labels.numpy(), "ious": ious.float().numpy()}
    if objectness is not None:
        arrays["objectness"] = objectness.float().numpy()
    scalars = {
        "type": DTYPES.index(losses.dtype),
        "batch": labels.shape[0],
        "num_anchors": labels.shape[1],
        "num_classes": losses.shape[2] if losses.dim() == 3 else 0,  # 0 = losses, not logits
        "negative_iou": float(negative_iou),
        "negative_ratio": float(negative_ratio),
        "objectness_threshold": float(objectness_threshold),
    }
    outputs = {"mask": (np.bool_, tuple(labels.shape))}
    result = harness.run("mine", arrays, scalars, outputs, seed=seed, misaligned=tuple(arrays) if misaligned else ())
    assert result.launches <= 2
    return torch.from_numpy(result.outputs["mask"].copy())


def check_case(harness: Harness, inputs: Inputs, **arguments: Any) -> Tensor:
    """Runs the kernels and the CPU operator; the masks must be the same."""
    found = mine(harness, *inputs, **arguments)
    options = {name: value for name, value in arguments.items() if name not in ("misaligned", "seed")}
    assert torch.equal(found, ops.mine(*inputs, **options))
    return found


def random_inputs(
    seed: int,
    batch: int,
    anchors: int,
    classes: int | None = None,
    *,
    objectness: bool = True,
    positives: float = 0.05,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Losses, or logits of ``classes`` classes, in steps so that there are ties."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, anchors)
    losses = torch.randint(-40, 40, shape if classes is None else (*shape, classes), generator=random) / 16
    labels = torch.randint(1, 21, shape, generator=random) * (torch.rand(shape, generator=random) < positives)
    ious, scores = torch.rand(2, *shape, generator=random)
    return losses.to(dtype), labels, ious, scores if objectness else None


def near_ties(seed: int, anchors: int, classes: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """The same logits in another order for every anchor: losses differ by how a sum was rounded, if at all."""
    random = torch.Generator().manual_seed(seed)
    order = torch.rand(1, anchors, classes - 1, generator=random).argsort(dim=-1)
    others = torch.randn(classes - 1, generator=random)[order] * 3
    _, *conditions = random_inputs(seed, 1, anchors, positives=0.1)
    return torch.cat([torch.zeros(1, anchors, 1), others], dim=-1).to(dtype), *conditions


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    # Anchors that end within a block; more candidates than wanted, with ties across the boundary.
    losses, *conditions = random_inputs(0, 2, 300)
    check_case(harness, (losses, *conditions), seed=1)
    # Fewer candidates than wanted: their losses are such that no key made of poison lies beyond them.
    check_case(harness, (losses * 1e20, *conditions), negative_ratio=1e30, seed=2)
    # Logits of several tiles, of one, and of rows wider than a warp.
    check_case(harness, near_ties(1, 300, 41), negative_ratio=1.0, seed=3)
    check_case(harness, near_ties(2, 100, 6), negative_ratio=1.0, seed=4)
    check_case(harness, near_ties(3, 40, 600), negative_ratio=1.0, seed=5)
