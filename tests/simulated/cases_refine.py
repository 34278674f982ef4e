"""refine on the harness: the launcher with the face of ``ops.refine``, and the quick cases that mutate.py uses."""

from collections.abc import Sequence

import numpy as np
import torch
from simulated.harness import Harness
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import random_anchors, random_tensor
from torch import Tensor

from refinedet import ops


def refine(
    harness: Harness,
    anchors: Tensor,
    offsets: Tensor,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    *,
    misaligned: bool = False,
    seed: int = 0,
) -> Tensor:
    """The CUDA ``refine``."""
    if offsets.dtype not in DTYPES:
        offsets = offsets.float()
    arrays = {"anchors": anchors.float().numpy(), "offsets": to_array(offsets.contiguous())}
    scalars = {
        "type": DTYPES.index(offsets.dtype),
        "batch": offsets.shape[0],
        "num_anchors": offsets.shape[1],
        "shared_anchors": anchors.dim() == 2,
        **{f"variance_{axis}": float(value) for axis, value in zip("xywh", variances, strict=True)},
    }
    outputs = {"refined": (np.float32, tuple(offsets.shape))}
    result = harness.run("refine", arrays, scalars, outputs, seed=seed, misaligned=tuple(arrays) if misaligned else ())
    assert result.launches <= 1
    return torch.from_numpy(result.outputs["refined"].copy())


def check_case(
    harness: Harness,
    batch: int,
    count: int,
    *,
    shared: bool = True,
    dtype: torch.dtype = torch.float32,
    trouble: float = 0.0,
    misaligned: bool = False,
    seed: int = 0,
) -> None:
    """Runs the kernel and the CPU operator on random numbers; the results must be the same bit for bit."""
    rng = np.random.default_rng(seed)
    anchors = random_anchors(rng, count) if shared else random_anchors(rng, batch * count).view(batch, count, 4)
    offsets = random_tensor(rng, (batch, count, 4), scale=3, steps=False, trouble=trouble).to(dtype)
    found = refine(harness, anchors, offsets, misaligned=misaligned, seed=seed)
    torch.testing.assert_close(found, ops.refine(anchors, offsets), rtol=0, atol=0, equal_nan=True)


def check(harness: Harness) -> None:
    """Quick cases in which every bounds check matters."""
    check_case(harness, 2, 300)
    check_case(harness, 2, 300, shared=False, dtype=torch.float16, trouble=0.1)
