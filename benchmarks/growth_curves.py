"""What is measured of growth: an operator along one axis, everything else held."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from problems import ground_truth
from torch import Tensor

from refinedet import ops

AXES = {
    "anchors": (1_000, 3_000, 10_000, 30_000, 100_000, 300_000),
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "classes": (2, 6, 20, 60, 200, 600),
    "objects": (1, 3, 10, 30, 100, 300, 1_000),
}
HELD = {"anchors": 10_000, "batch": 1, "classes": 20, "objects": 40}  # classes without the background
IOU = 0.45
READS = "detect, reads alone"

Problem = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Curve:
    """``power``: the exponent that time may have; that of memory may be 1. ``why`` says what it follows from."""

    operator: str
    axis: str
    make: Callable[[dict[str, int]], Problem]
    why: str
    power: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.operator}, {self.axis}"

    def points(self) -> tuple[int, ...]:
        return AXES[self.axis]

    def problem(self, value: int) -> Problem:
        return self.make({**HELD, self.axis: value})

    def tiny(self) -> tuple[Any, ...]:
        """Arguments that take next to no memory."""
        return self.make(dict.fromkeys(AXES, 2))[1]


# --- Inputs -----------------------------------------------------------------------------------------------------------


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _corners(count: int, half: float, generator: torch.Generator) -> Tensor:
    """Boxes anywhere in the unit square."""
    center = torch.rand(count, 2, generator=generator)
    sides = half * (0.5 + torch.rand(count, 2, generator=generator))
    return torch.cat([center - sides, center + sides], dim=1)


def _anchors(count: int) -> Tensor:
    """[count,4] cx, cy, w, h: three at every cell, cell after cell, as a network has them."""
    side = int((count / 3) ** 0.5) + 1
    cell, shape = torch.arange(count) // 3, torch.arange(count) % 3
    center = (torch.stack([cell % side, cell // side], dim=1) + 0.5) / side
    return torch.cat([center, torch.tensor([[0.1, 0.1], [0.14, 0.07], [0.07, 0.14]])[shape]], dim=1)


def _outputs(size: dict[str, int], survivors: float) -> tuple[Tensor, ...]:
    """Of a network of so many anchors; a survivor has one candidate."""
    generator, shape, classes = _generator(), (size["batch"], size["anchors"]), size["classes"] + 1
    arm_conf = torch.zeros(*shape, 2)
    arm_conf[..., 0] = torch.where(torch.rand(shape, generator=generator) < survivors, 0.0, 10.0)
    odm_conf = torch.randn(*shape, classes, generator=generator)
    odm_conf.scatter_(2, torch.randint(1, classes, (*shape, 1), generator=generator), 9.0)
    offsets = [torch.randn(*shape, 4, generator=generator) for _ in range(2)]
    return offsets[0], arm_conf, offsets[1], odm_conf, _anchors(size["anchors"])


def _detect(survivors: float, size: dict[str, int]) -> Problem:
    return ops.detect, _outputs(size, survivors)


def _reads(size: dict[str, int]) -> Problem:
    """What detect has to read, read by torch: the objectness of all anchors and the rows of the survivors."""
    arm_loc, arm_conf, odm_loc, odm_conf, _ = _outputs(size, 0.02)
    survivors = (arm_conf[..., 0] == 0).flatten().nonzero()[:, 0]
    rows = [output.flatten(end_dim=1) for output in (arm_loc, odm_loc, odm_conf)]
    places = [torch.empty(len(survivors), output.shape[1]) for output in rows]
    return _read, (arm_conf, survivors, rows, places)


def _read(objectness: Tensor, survivors: Tensor, rows: list[Tensor], places: list[Tensor]) -> None:
    objectness.sum()
    for output, place in zip(rows, places, strict=True):
        torch.index_select(output, 0, survivors, out=place)


def _refine(size: dict[str, int]) -> Problem:
    outputs = _outputs({**size, "classes": 1}, 1.0)
    return ops.refine, (outputs[4], outputs[0])


def _match(size: dict[str, int]) -> Problem:
    return ops.match, (_anchors(size["anchors"]), *ground_truth(size["batch"], size["objects"]))


def _mine(size: dict[str, int]) -> Problem:
    """From logits, one anchor in 200 an object, every other one eligible."""
    logits = _outputs(size, 1.0)[3]
    labels = (torch.rand(logits.shape[:2], generator=_generator()) < 0.005).long()
    return ops.mine, (logits, labels, torch.zeros(logits.shape[:2]))


def _around_objects(size: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [B,N,4] around objects, which suppression leaves alone, scores [B,N] and labels [B,N]."""
    generator, shape = _generator(), (size["batch"], size["anchors"])
    objects = _corners(size["objects"], 0.1, generator)
    boxes = objects[torch.randint(size["objects"], shape, generator=generator)]
    boxes = boxes + 0.005 * torch.randn(*shape, 4, generator=generator)
    labels = torch.randint(1, size["classes"] + 1, shape, generator=generator)
    return boxes, torch.rand(shape, generator=generator), labels


def _apart(size: dict[str, int]) -> Problem:
    """Boxes of one class of which none meets another: all are kept."""
    side = int(size["anchors"] ** 0.5) + 1
    order = torch.randperm(side * side, generator=_generator())[: size["anchors"]]
    corner = torch.stack([order % side, order // side], dim=1).float()
    return ops.nms, (torch.cat([corner, corner + 0.9], dim=1), torch.rand(len(order), generator=_generator()), IOU)


def _nms(size: dict[str, int]) -> Problem:
    boxes, scores, _ = _around_objects(size)
    return ops.nms, (boxes[0], scores[0], IOU)


def _batched_nms(size: dict[str, int]) -> Problem:
    boxes, scores, labels = _around_objects(size)
    return ops.batched_nms, (boxes[0], scores[0], labels[0], IOU)


def _merge(operator: Callable[..., Any], size: dict[str, int]) -> Problem:
    return operator, _around_objects(size)


# --- The curves -------------------------------------------------------------------------------------------------------


def _curves() -> Iterator[Curve]:
    for axis in ("anchors", "batch", "classes"):
        yield Curve("detect", axis, partial(_detect, 0.02), "each output is looked at once; a class has at most top_k")
    yield Curve(READS, "batch", _reads, "torch reads what detect reads and computes nothing: caches alone")
    yield Curve("detect, all survive", "anchors", partial(_detect, 1.0), "a class is cut to top_k = 1,000 first")
    for axis in ("anchors", "batch"):
        yield Curve("refine", axis, _refine, "each anchor by itself")
    for axis in ("anchors", "batch"):
        yield Curve("match", axis, _match, "anchors times the objects near them; memory O(B N + M), says its contract")
    why = "the more objects, the more of them search all anchors again, for another one took theirs"
    yield Curve("match", "objects", _match, why, power=2)
    for axis in ("anchors", "batch", "classes"):
        yield Curve("mine", axis, _mine, "each logit once, then a selection")
    for axis in ("anchors", "objects"):
        yield Curve("nms", axis, _nms, "boxes times kept boxes, one or a few for each object")
    yield Curve("nms, boxes apart", "anchors", _apart, "all are kept: quadratic at worst", power=2)
    for axis in ("anchors", "classes", "objects"):
        yield Curve("batched_nms", axis, _batched_nms, "boxes times kept boxes of their class")
    for axis in ("anchors", "batch", "classes", "objects"):
        power = 2 if axis == "anchors" else 1
        why = "each picked box decays all that are left of its class" if power == 2 else "pairs of boxes of a class"
        yield Curve("soft_nms", axis, partial(_merge, ops.soft_nms), why, power)
    for axis in ("anchors", "batch", "classes", "objects"):
        yield Curve("vote", axis, partial(_merge, ops.vote), "boxes times tops of their class")


CURVES = tuple(_curves())
