"""``ops.detect`` beside the pipeline a practitioner writes with PyTorch and torchvision."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from refinedet import ops
from refinedet.boxes import decode, to_centers, to_corners

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "detout"
BAR = {"typical_voc320": 8.0, "clusters_voc320": 8.0}  # at least this many times faster


def load(name: str) -> tuple[Tensor, ...]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        assert json.loads(str(data["meta"]))["strict"]  # no decision hangs on rounding, so the peer decides alike
        keys = ("arm_loc", "arm_conf", "odm_loc", "odm_conf")
        arm_loc, arm_conf, odm_loc, odm_conf = (torch.from_numpy(data[key]) for key in keys)
        return arm_loc, arm_conf.log(), odm_loc, odm_conf.log(), to_centers(torch.from_numpy(data["priors"]))


def peer(
    arm_loc: Tensor,
    arm_conf: Tensor,
    odm_loc: Tensor,
    odm_conf: Tensor,
    anchors: Tensor,
    objectness_threshold: float = 0.01,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 1000,
    keep_top_k: int = 500,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Boxes, scores, labels and anchor indices per image: filter first, then everything for the survivors only."""
    found = []
    for image in range(len(odm_loc)):
        kept = (arm_conf[image].softmax(-1)[:, 1] >= objectness_threshold).nonzero().squeeze(1)
        boxes = to_corners(decode(decode(anchors[kept], arm_loc[image, kept]), odm_loc[image, kept]))
        scores = odm_conf[image, kept].softmax(-1)[:, 1:]
        if len(kept) > top_k:
            values, rows = scores.topk(top_k, dim=0)
            above = values > score_threshold
            rows, classes, values = rows[above], above.nonzero()[:, 1], values[above]
        else:
            rows, classes = (scores > score_threshold).nonzero(as_tuple=True)
            values = scores[rows, classes]
        best = batched_nms(boxes[rows], values, classes, iou_threshold)[:keep_top_k]
        found.append((boxes[rows[best]], values[best], classes[best] + 1, kept[rows[best]]))
    return found


def assert_same_as_peer(inputs: tuple[Tensor, ...]) -> None:
    detected = ops.detect(*inputs)
    for image, (boxes, scores, labels, indices) in enumerate(peer(*inputs)):
        count = int(detected.counts[image])
        assert torch.equal(detected.indices[image, :count], indices)
        assert torch.equal(detected.labels[image, :count], labels)
        torch.testing.assert_close(detected.scores[image, :count], scores, rtol=1e-5, atol=0)
        torch.testing.assert_close(detected.boxes[image, :count], boxes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["typical_voc320", "clusters_voc320", "typical_voc512", "coco81_320"])
def test_detect(name: str, compare: Callable[..., None]) -> None:
    inputs = load(name)
    assert_same_as_peer(inputs)
    compare(lambda: ops.detect(*inputs), lambda: peer(*inputs), at_least=BAR.get(name, 1.0))


def test_levels(compare: Callable[..., None]) -> None:
    """Head maps as they are, beside the same concatenated first."""
    *outputs, anchors = load("typical_voc320")
    levels = [[level.contiguous() for level in output.split((4800, 1200, 300, 75), dim=1)] for output in outputs]

    def concatenated() -> ops.Detected:
        return ops.detect(*(torch.cat(output, dim=1) for output in levels), anchors)

    for ours, theirs in zip(ops.detect(*levels, anchors), concatenated(), strict=True):
        assert torch.equal(ours, theirs)
    compare(lambda: ops.detect(*levels, anchors), concatenated, at_least=1.0)
