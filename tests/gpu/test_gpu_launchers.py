"""The launchers of `refinedet._C`, which take addresses and a stream, beside the operators."""

import sys
from typing import Any

import pytest
import torch
from support.gpu import DEVICE, assert_same, to
from support.gpu_cases import anchors, heads, merging, mining, suppression, truth
from torch import Tensor

from refinedet import ops
from refinedet.ops.ranked import ranked

pytestmark = [pytest.mark.gpu, pytest.mark.small]

VARIANCES = (0.1, 0.1, 0.2, 0.2)
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
EVERY_TYPE = pytest.mark.parametrize("type_name", TYPES)


@pytest.fixture
def launchers() -> Any:
    return sys.modules["refinedet._C"].launchers


def addresses(**tensors: Tensor) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def workspace(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=DEVICE)


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def empty_like(results: Any) -> Any:
    """Memory for the fields of a named tuple, full of what no kernel writes."""
    return type(results)(*(torch.full_like(tensor, -7) for tensor in results))


@EVERY_TYPE
def test_launch_refine(launchers: Any, type_name: str) -> None:
    places, offsets = anchors().to(DEVICE), heads()[0].to(DEVICE, TYPES[type_name])
    refined = torch.empty_like(offsets, dtype=torch.float32)
    launchers.refine(
        type=type_name,
        shared_anchors=True,
        batch=2,
        num_anchors=1000,
        variances=VARIANCES,
        **addresses(anchors=places, offsets=offsets, refined=refined),
        stream=stream(),
    )
    assert_same(refined, ops.refine(places, offsets))


@EVERY_TYPE
@pytest.mark.parametrize("parts", [(1000,), (600, 300, 75, 25)])
def test_launch_detect(launchers: Any, parts: tuple[int, ...], type_name: str) -> None:
    """Concatenated tensors, and the maps of four levels, which are the same rows in four pieces."""
    whole, places = [tensor.to(DEVICE, TYPES[type_name]) for tensor in heads()], anchors().to(DEVICE)
    pieces = [[piece.contiguous() for piece in tensor.split(parts, dim=1)] for tensor in whole]
    levels = [(*(maps[i].data_ptr() for maps in pieces), count) for i, count in enumerate(parts)]
    sizes = {"batch": 2, "num_anchors": 1000, "num_classes": 21, "top_k": 1000, "keep_top_k": 500}
    room = workspace(launchers.detect_workspace_bytes(**sizes))
    expected = ops.detect(*whole, places)
    found = empty_like(expected)
    launchers.detect(
        type=type_name,
        levels=levels,
        objectness_threshold=0.01,
        score_threshold=0.01,
        iou_threshold=0.45,
        variances=VARIANCES,
        **sizes,
        **addresses(anchors=places, workspace=room, **found._asdict()),
        stream=stream(),
    )
    assert_same(found, expected)


@pytest.mark.parametrize("shared", [True, False])
def test_launch_match(launchers: Any, shared: bool) -> None:
    places = anchors() if shared else torch.stack([anchors(1), anchors(2)])
    places, (boxes, labels, offsets) = places.to(DEVICE), to(DEVICE, truth())
    sizes = {"batch": 2, "num_anchors": 1000, "num_truths": len(boxes)}
    room = workspace(launchers.match_workspace_bytes(**sizes))
    expected = ops.match(places, boxes, labels, offsets)
    found = empty_like(expected)
    launchers.match(
        shared_anchors=shared,
        iou_threshold=0.5,
        variances=VARIANCES,
        **sizes,
        **addresses(anchors=places, gt_boxes=boxes, gt_labels=labels, gt_offsets=offsets, workspace=room),
        **addresses(**found._asdict()),
        stream=stream(),
    )
    assert_same(found, expected)


@EVERY_TYPE
@pytest.mark.parametrize("num_classes", [0, 21])
def test_launch_mine(launchers: Any, num_classes: int, type_name: str) -> None:
    """Losses, and logits."""
    losses, labels, ious = to(DEVICE, mining())
    losses = (losses if num_classes else losses[..., 0].contiguous()).to(TYPES[type_name])
    mask = torch.empty_like(labels, dtype=torch.bool)
    sizes = {"batch": 2, "num_anchors": 1000, "num_classes": num_classes}
    room = workspace(launchers.mine_workspace_bytes(**sizes))
    launchers.mine(
        type=type_name,
        objectness=0,
        **sizes,
        negative_iou=0.5,
        negative_ratio=3.0,
        objectness_threshold=0.01,
        **addresses(losses=losses, labels=labels, ious=ious, mask=mask, workspace=room),
        stream=stream(),
    )
    assert mask.any()
    assert_same(mask, ops.mine(losses, labels, ious))


@EVERY_TYPE
def test_launch_nms(launchers: Any, type_name: str) -> None:
    boxes, scores, labels = to(DEVICE, suppression())
    boxes = boxes.to(TYPES[type_name])
    order = scores.sort(descending=True, stable=True).indices
    kept, count = torch.empty_like(order), torch.empty(1, dtype=torch.int64, device=DEVICE)
    room = workspace(launchers.nms_workspace_bytes(num_boxes=len(boxes)))
    launchers.nms(
        type=type_name,
        num_boxes=len(boxes),
        iou_threshold=0.5,
        **addresses(boxes=boxes, scores=scores, labels=labels, order=order, kept=kept, count=count, workspace=room),
        stream=stream(),
    )
    assert_same(kept[: count.item()], ops.batched_nms(boxes, scores, labels, 0.5))


@EVERY_TYPE
@pytest.mark.parametrize("soft", [False, True])
def test_launch_vote(launchers: Any, soft: bool, type_name: str) -> None:
    boxes, scores, labels = to(DEVICE, merging())
    boxes = boxes.to(TYPES[type_name])
    by_score = scores.sort(descending=True, stable=True).indices
    by_label = labels.gather(1, by_score).sort(stable=True).indices
    found_boxes, found_scores = torch.empty(*scores.shape, 4, device=DEVICE), torch.empty_like(scores)
    sizes = {"batch": len(boxes), "num_boxes": boxes.shape[1]}
    room = workspace(launchers.vote_workspace_bytes(**sizes))
    launchers.vote(
        type=type_name,
        **sizes,
        iou_threshold=0.45,
        soft=soft,
        score_threshold=0.05,
        official=False,
        **addresses(boxes=boxes, scores=scores, labels=labels, by_score=by_score, by_label=by_label, workspace=room),
        **addresses(found_boxes=found_boxes, found_scores=found_scores),
        stream=stream(),
    )
    assert_same(ranked(found_boxes, found_scores, labels), ops.vote(boxes, scores, labels, soft=soft))


def test_an_error_is_reported_once(launchers: Any) -> None:
    """The launch after a failed call succeeds."""
    none = dict.fromkeys(("boxes", "scores", "labels", "order", "kept", "count", "workspace"), 0)
    with pytest.raises(RuntimeError, match=r"^memset: invalid argument$"):
        launchers.nms(type="float32", num_boxes=0, iou_threshold=0.5, stream=stream(), **none)
    test_launch_refine(launchers, "float32")
