"""detect on the harness: the launcher with the face of ``ops.detect``, and the quick cases that mutate.py uses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from simulated.harness import Harness
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import in_levels, random_anchors, random_tensor
from torch import Tensor

from refinedet import ops
from refinedet.ops import Detected

HEADS = ("arm_loc", "arm_conf", "odm_loc", "odm_conf")
Output = Tensor | Sequence[Tensor]  # whole or in levels
Inputs = tuple[Output | None, Output | None, Output, Output, Tensor]  # HEADS, then anchors


def detect(
    harness: Harness,
    inputs: Inputs,
    *,
    misaligned: bool = False,
    seed: int = 0,
    objectness_threshold: float = 0.01,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 1000,
    keep_top_k: int = 500,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
) -> Detected:
    """The CUDA ``detect``."""
    *heads, anchors = ([value] if isinstance(value, Tensor) else value for value in inputs)
    batch, dtype = len(heads[2][0]), heads[2][0].dtype
    dtype = dtype if dtype in DTYPES else torch.float32
    arrays = {"anchors": anchors[0].float().numpy()}
    for name, levels in zip(HEADS, heads, strict=True):
        for i, level in enumerate(levels or ()):
            arrays[f"{name}{i}"] = to_array(level.to(dtype).contiguous())
    scalars = {
        "type": DTYPES.index(dtype),
        "batch": batch,
        "num_anchors": len(anchors[0]),
        "num_classes": heads[3][0].shape[2],
        "num_levels": len(heads[2]),
        **{f"num_anchors{i}": level.shape[1] for i, level in enumerate(heads[2])},
        "objectness_threshold": float(objectness_threshold),
        "score_threshold": float(score_threshold),
        "iou_threshold": float(iou_threshold),
        "top_k": top_k,
        "keep_top_k": keep_top_k,
        **{f"variance_{axis}": float(value) for axis, value in zip("xywh", variances, strict=True)},
    }
    outputs = {
        "boxes": (np.float32, (batch, keep_top_k, 4)),
        "scores": (np.float32, (batch, keep_top_k)),
        "labels": (np.int64, (batch, keep_top_k)),
        "indices": (np.int64, (batch, keep_top_k)),
        "counts": (np.int64, (batch,)),
    }
    result = harness.run("detect", arrays, scalars, outputs, seed=seed, misaligned=tuple(arrays) if misaligned else ())
    assert result.launches <= 3
    return Detected(*(torch.from_numpy(result.outputs[name].copy()) for name in outputs))


def check_case(harness: Harness, inputs: Inputs, *, levels: Sequence[int] | None = None, **arguments: Any) -> Detected:
    """Runs the kernels, with outputs in levels of so many anchors, and the CPU operator, with whole ones; the results
    must be the same bit for bit."""
    found = detect(harness, inputs if levels is None else in_levels(inputs, levels), **arguments)
    options = {name: value for name, value in arguments.items() if name not in ("misaligned", "seed")}
    expected = ops.detect(*inputs, **options)
    for name, ours, theirs in zip(Detected._fields, found, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name
    return found


def random_inputs(
    seed: int,
    batch: int,
    count: int,
    classes: int,
    *,
    arm_loc: bool = True,
    arm_conf: bool = True,
    dtype: torch.dtype = torch.float32,
    steps: bool = False,
    trouble: float = 0.0,
) -> Inputs:
    """Random numbers like those of tests/ops/test_detect.py."""
    rng = np.random.default_rng(seed)

    def tensor(width: int, scale: float) -> Tensor:
        return random_tensor(rng, (batch, count, width), scale=scale, steps=steps, trouble=trouble).to(dtype)

    return (
        tensor(4, 1) if arm_loc else None,
        tensor(2, 3) if arm_conf else None,
        tensor(4, 1),
        tensor(classes, 3),
        random_anchors(rng, count).to(dtype),
    )


def check(harness: Harness) -> None:
    """Quick cases in which every barrier and every bounds check matters."""
    # Two levels that end within a block; more candidates than top_k, more survivors than rows.
    check_case(harness, random_inputs(0, 2, 300, 3), levels=[290, 10], top_k=20, keep_top_k=9, seed=1)
    # More exponentials than a block has room for, two tiles of candidates, fewer survivors than rows.
    inputs = random_inputs(1, 1, 230, 21, arm_conf=False)
    check_case(harness, inputs, score_threshold=0.0, iou_threshold=0.1, top_k=100, keep_top_k=900, seed=2)
