"""vote. Tests with the argument ``vote`` run on every implementation; those of the kernels alone come last."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import random_tensor, threads
from support.implementations import IMPLEMENTATIONS
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError
from refinedet.ops.ranked import ranked

VoteOp = Callable[..., ops.Detected]
TILE = 64  # rows that find_tops_kernel looks at together, kTile of csrc/cuda/suppress.h
NAN, INF = float("nan"), float("inf")


def launch(
    harness: Harness,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float = 0.45,
    soft: bool = False,
    score_threshold: float = 0.05,
    official: bool = False,
    misaligned: bool = False,
    seed: int = 0,
) -> ops.Detected:
    """The kernels on the harness, between the sorts that the registration does before and the face after."""
    batch, count = scores.shape
    if boxes.dtype not in DTYPES:
        boxes = boxes.float()
    scores = scores.float()
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    by_label = labels.gather(1, by_score).argsort(dim=1, stable=True)
    result = harness.run(
        "vote",
        {
            "boxes": to_array(boxes.contiguous()),
            "scores": scores.numpy(),
            "labels": labels.numpy(),
            "by_score": by_score.numpy(),
            "by_label": by_label.numpy(),
        },
        {
            "type": DTYPES.index(boxes.dtype),
            "batch": batch,
            "num_boxes": count,
            "iou_threshold": float(iou_threshold),
            "soft": int(soft),
            "score_threshold": float(score_threshold),
            "official": int(official),
        },
        {"found_boxes": (np.float32, (batch, count, 4)), "found_scores": (np.float32, (batch, count))},
        seed=seed,
        misaligned=("boxes",) if misaligned else (),
    )
    assert result.launches == (3 if batch * count > 0 else 0)
    found_boxes, found_scores = (torch.from_numpy(result.outputs[f"found_{name}"].copy()) for name in ("boxes", "scores"))
    return ranked(found_boxes, found_scores, labels)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def vote(request: pytest.FixtureRequest) -> VoteOp:
    return request.param(request, ops.vote, launch)


def bits(tensor: Tensor) -> Tensor:
    """What has to be equal: -0 is not 0."""
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def assert_equal(found: ops.Detected, expected: ops.Detected) -> None:
    for name, one, other in zip(found._fields, found, expected, strict=True):
        assert torch.equal(bits(one), bits(other)), name


def rows(found: ops.Detected, image: int = 0) -> list[tuple[int, float, list[float]]]:
    """Index, score and box of what comes out of an image."""
    count = int(found.counts[image])
    assert (found.indices[image, count:] == -1).all()
    return [
        (index, score, box)
        for index, score, box in zip(
            found.indices[image, :count].tolist(),
            found.scores[image, :count].tolist(),
            found.boxes[image, :count].tolist(),
            strict=True,
        )
    ]
