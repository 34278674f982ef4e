"""Inputs that several benchmarks share."""

import torch
from torch import Tensor

from refinedet import generate_anchors
from refinedet.profiling import cost

SIDES = {6375: 320, 16320: 512}


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
