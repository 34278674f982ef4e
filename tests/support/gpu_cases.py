"""Arguments of every operator, on the CPU, as functions of a seed and of sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from refinedet import ops


def detect_by_level(*arguments: Tensor) -> ops.Detected:
    """detect, with its four first arguments in four levels."""
    *outputs, places = arguments
    sizes = [len(places) * share // 8 for share in (5, 2, 1)]
    sizes.append(len(places) - sum(sizes))
    return ops.detect(*(output.split(sizes, dim=1) for output in outputs), places)


OPERATORS: dict[str, Callable[..., Any]] = {
    "detect": ops.detect,
    "detect by level": detect_by_level,
    "match": ops.match,
    "mine": ops.mine,
    "nms": partial(ops.batched_nms, iou_threshold=0.5),
    "refine": ops.refine,
    "vote": partial(ops.vote, soft=True),
}


def inputs(name: str, seed: int = 0, images: int = 2, count: int = 1000) -> tuple[Tensor, ...]:
    """Arguments of an operator for so many images of ``count`` anchors or boxes; for nms ``count`` boxes."""
    if name.startswith("detect"):
        return *heads(seed, images, count), anchors(seed, count)
    if name == "match":
        return anchors(seed, count), *truth(seed, images)
    if name == "mine":
        return mining(seed, images, count)
    if name == "nms":
        return suppression(seed, count)
    if name == "refine":
        return anchors(seed, count), heads(seed, images, count)[0]
    if name == "vote":
        return merging(seed, images, count)
    raise KeyError(name)


def heads(seed: int = 0, images: int = 2, count: int = 1000, classes: int = 21) -> list[Tensor]:
    """arm_loc, arm_conf, odm_loc, odm_conf; about five of six anchors are rejected."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(images, count, n, generator=generator) for n in (4, 2, 4, classes)]
    tensors[1][..., 0] += 6
    tensors[3] *= 3
    return tensors


def anchors(seed: int = 0, count: int = 1000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.rand(count, 2, generator=generator), torch.rand(count, 2, generator=generator) * 0.3], dim=1
    )


def truth(seed: int = 0, images: int = 2, boxes: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """gt_boxes, gt_labels, gt_offsets."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(images * boxes, 2, generator=generator)
    half = torch.rand(images * boxes, 2, generator=generator) * 0.2
    labels = torch.randint(1, 21, (images * boxes,), generator=generator)
    return torch.cat([centers - half, centers + half], dim=1), labels, torch.arange(images + 1) * boxes


def mining(seed: int = 0, images: int = 2, count: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels, IoUs."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, count, generator=generator) < 0.02).long()
    return torch.randn(images, count, 21, generator=generator), labels, torch.rand(images, count, generator=generator)


def suppression(seed: int = 0, count: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores, labels."""
    boxes, labels, _ = truth(seed, 1, count)
    return boxes, torch.rand(count, generator=torch.Generator().manual_seed(seed)), labels


def merging(seed: int = 0, images: int = 2, count: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores, labels of images; one in ten is padding."""
    boxes, scores, labels = suppression(seed, images * count)
    labels = labels * (torch.arange(len(labels)) % 10 > 0)
    return boxes.reshape(images, count, 4), scores.reshape(images, count), labels.reshape(images, count)
