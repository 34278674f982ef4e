"""Inputs that several benchmarks share."""

import json
from functools import lru_cache

import numpy as np
import torch
from support.detect_cases import DETOUT, load_golden
from torch import Tensor

from refinedet import generate_anchors
from refinedet.profiling import cost
from refinedet.profiling.operators import crowd as crowd
from refinedet.profiling.operators import ground_truth as ground_truth

SIDES = {6375: 320, 16320: 512}


@lru_cache(maxsize=1)  # the operators of one case follow one another
def network_outputs(net: cost.Network, batch: int) -> tuple[Tensor, ...]:
    """Arguments of detect as a trained network puts them out: as many survivors as the cost model assumes, each with
    one candidate, which suppression nearly always keeps."""
    generator = torch.Generator().manual_seed(0)
    size = (batch, net.anchors)
    arm_conf = torch.zeros(*size, 2)
    arm_conf[..., 0] = torch.where(torch.rand(size, generator=generator) < net.survivors, 0.0, 10.0)
    odm_conf = torch.randn(*size, net.classes, generator=generator)
    likely = torch.randint(1, net.classes, size, generator=generator)
    odm_conf.scatter_(2, likely[..., None], 8.0)
    offsets = [torch.randn(*size, 4, generator=generator) for _ in range(2)]
    side = SIDES[net.anchors]
    return offsets[0], arm_conf, offsets[1], odm_conf, generate_anchors((side, side))


def arguments_of(name: str, net: cost.Network, batch: int) -> tuple[Tensor, ...]:
    """Arguments of an operator of `cost.OPERATORS`, on the CPU."""
    outputs = network_outputs(net, batch)
    if name == "detect":
        return outputs
    if name == "refine":
        return outputs[4], outputs[0]
    if name == "match":
        return outputs[4], *ground_truth(batch)
    if name == "mine":
        labels = (torch.rand(batch, net.anchors, generator=torch.Generator().manual_seed(1)) < 0.005).long()
        return outputs[3], labels, torch.zeros(batch, net.anchors)
    raise KeyError(name)


def golden_outputs(name: str) -> tuple[Tensor, ...]:
    """Arguments of detect of a golden case in which no decision hangs on rounding, so that a peer decides alike."""
    with np.load(DETOUT / f"{name}.npz") as data:
        assert json.loads(str(data["meta"]))["strict"]
    return load_golden(name)[0]


def random_boxes(count: int) -> tuple[Tensor, Tensor]:
    """Arguments of nms: boxes anywhere, of which suppression keeps some two thirds."""
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(count, 2, generator=generator)
    half = torch.rand(count, 2, generator=generator) * 0.1 + 0.01
    return torch.cat([center - half, center + half], dim=1), torch.rand(count, generator=generator)


def image_of(boxes: Tensor, scores: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of soft_nms and vote from those of nms: one image. Without labels one class."""
    return boxes[None], scores[None], (torch.zeros_like(scores).long() if labels is None else labels)[None] + 1
