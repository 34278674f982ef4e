"""The times of the operators on what a network puts out, beside the work that `refinedet.profiling.cost` counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from refinedet import ops
from refinedet.inference.selection import select
from refinedet.ops.reference import portable
from refinedet.presets import Preset
from refinedet.profiling import cost
from refinedet.profiling.ceilings import Rate
from refinedet.protocols import Thresholds
from refinedet.records import LevelOutput

LEAST_RUNS = 5
SECONDS = 0.2  # for each operator
SLEEP = 1_000_000  # cycles of a GPU, in which the host queues a call
BOXES = cost.BOXES[0]
_TOUCH = cost.NETWORKS[0].touch

Call = Callable[[], object]


@dataclass(frozen=True)
class TimedOperator:
    """An operator, on what it ran, and its median rate at the work that this needs."""

    name: str
    case: str
    rate: Rate


def time_operators(
    raw: LevelOutput, anchors: Tensor, preset: Preset, seconds: float = SECONDS
) -> Iterator[TimedOperator]:
    """All operators but `batched_nms`, which is `nms`, one after the other, each for some ``seconds``.

    `detect`, `refine` and `mine` run on ``raw``, the output for a batch, `match` on random objects, the others on a
    crowd of random boxes (the cost model's). What they need is what a plain implementation computes: an operator that
    gets around some of it may seem faster than the machine.
    """
    for name, case, work, call in _calls(raw, anchors, preset):
        rate = Rate(work.operations, work.minimum, _milliseconds(call, anchors.device, seconds))
        yield TimedOperator(name, case, rate)


def _calls(raw: LevelOutput, anchors: Tensor, preset: Preset) -> Iterator[tuple[str, str, cost.Work, Call]]:
    batch, element = len(raw.odm_conf[0]), raw.odm_conf[0].element_size()
    whole = raw.concatenate()
    net = _network(raw, len(anchors), preset)
    case = f"{batch} x {len(anchors)} anchors, {net.classes} classes, {net.survivors:.1%} survive"
    thresholds = Thresholds.of(preset)
    yield "detect", case, cost.detect_work(net, batch, element), lambda: select(raw, anchors, preset, thresholds)
    offsets = whole.odm_loc if whole.arm_loc is None else whole.arm_loc
    case = f"{batch} x {len(anchors)} anchors"
    yield "refine", case, cost.refine_work(net, batch, element), lambda: ops.refine(anchors, offsets)
    boxes, labels, offsets_of_images = (each.to(anchors.device) for each in ground_truth(batch, classes=net.classes))
    matched = ops.match(anchors, boxes, labels, offsets_of_images)
    case = f"{case}, {cost.TRUTHS} objects each"
    yield "match", case, cost.match_work(net, batch), lambda: ops.match(anchors, boxes, labels, offsets_of_images)
    yield (
        "mine",
        f"{case}, {net.classes} classes",
        cost.mine_work(net, batch, element),
        lambda: ops.mine(whole.odm_conf, matched.labels, matched.ious),
    )
    yield from _calls_on_boxes(anchors.device)


def _calls_on_boxes(device: torch.device) -> Iterator[tuple[str, str, cost.Work, Call]]:
    boxes, scores, labels = (each.to(device) for each in crowd(BOXES))
    case = f"{BOXES:,} boxes, 20 classes"
    yield "nms", case, cost.nms(BOXES).work, lambda: ops.batched_nms(boxes, scores, labels, 0.45)
    image = boxes[None], scores[None], labels[None] + 1
    yield "soft_nms", case, cost.soft_nms(BOXES).work, lambda: ops.soft_nms(*image)
    yield "vote", case, cost.vote(BOXES).work, lambda: ops.vote(*image)


def _network(raw: LevelOutput, anchors: int, preset: Preset) -> cost.Network:
    """What the cost model has to know of this output."""
    whole = raw.concatenate()
    candidates = portable.softmax(whole.odm_conf.float())[..., 1:] > preset.score_threshold
    survivors = torch.ones(candidates.shape[:2], dtype=torch.bool, device=candidates.device)
    if whole.arm_conf is not None:
        survivors = portable.objectness(whole.arm_conf.float()) >= preset.objectness_threshold
    count = survivors.sum().item()
    pairs = (candidates & survivors[..., None]).sum().item() / max(count, 1)
    return cost.Network("", anchors, whole.odm_conf.shape[2], pairs, _TOUCH, count / max(survivors.numel(), 1))


def _milliseconds(call: Call, device: torch.device, seconds: float) -> float:
    """The median of the calls that ``seconds`` allow, after one that warms up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        times.append(_time(call, device))
    return statistics.median(times)


def _time(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def ground_truth(images: int, objects: int = cost.TRUTHS, classes: int = 21) -> tuple[Tensor, Tensor, Tensor]:
    """gt_boxes, gt_labels and gt_offsets: the same number of random objects in each image. ``classes`` counts the
    background."""
    generator = torch.Generator().manual_seed(0)
    count = images * objects
    center = torch.rand(count, 2, generator=generator)
    half = torch.rand(count, 2, generator=generator) * 0.15 + 0.02
    labels = torch.randint(1, classes, (count,), generator=generator)
    return torch.cat([center - half, center + half], dim=1), labels, torch.arange(images + 1) * objects


def crowd(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes around 40 objects, scores, labels of 20 classes: what the cost model counted.

    [N,4] float32 corners, [N] float32, [N] int64: arguments of `ops.batched_nms`.
    """
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(40, 4, generator=generator) * 0.5
    chosen = objects[torch.randint(40, (count,), generator=generator)]
    center = chosen[:, :2] * 2 + torch.randn(count, 2, generator=generator) * 0.03
    half = chosen[:, 2:] * 0.3 + 0.02
    labels = torch.randint(20, (count,), generator=generator)
    return torch.cat([center - half, center + half], dim=1), torch.rand(count, generator=generator), labels
