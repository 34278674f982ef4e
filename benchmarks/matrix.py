"""The cases of the operator benchmarks: operator x scenario x dtype x batch x device, in one table.

A scenario of a network is what `problems.network_outputs` makes for it, with 2 %, 10 % or all of its anchors past the
objectness filter: of those `mine` may choose, and they are the boxes that `nms`, `batched_nms`, `soft_nms` and `vote`
get, each in its likeliest class. The golden cases are outputs of the official code, with clusters as images have them;
a crowd is so many boxes of 20 classes around 40 objects.

The name of a case, ``detect-VOC-320-10pct-float16-batch8-cpu``, stays from commit to commit: pytest-benchmark compares
by it, and ``-k "detect and VOC-320 and batch8"`` chooses by it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from problems import crowd, golden_outputs, ground_truth, image_of, network_outputs
from torch import Tensor

from refinedet import ops
from refinedet.boxes import decode, to_corners
from refinedet.profiling import cost

IOU = 0.45  # of nms and batched_nms
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {  # operators called with options, under a name of their own
    "soft_nms_gaussian": ("soft_nms", {"method": "gaussian"}),
    "vote_official": ("vote", {"official": True}),
    "vote_official_soft": ("vote", {"official": True, "soft": True}),
}

NETWORKS = {net.name.replace(" ", "-"): net for net in cost.NETWORKS}
SURVIVORS = {"2pct": 0.02, "10pct": 0.1, "all": 1.0}
FROM_NETWORKS = tuple(f"{net}-{share}" for net in NETWORKS for share in SURVIVORS)
GOLDEN = ("typical_voc320", "clusters_voc320", "dense_voc320", "typical_voc512", "coco81_320")
ANCHORS = ("VOC-320", "VOC-512")  # those of COCO are the same
MATCHED = tuple(f"{net}-{objects}objects" for net in ANCHORS for objects in (8, 100))
CROWDS = {f"crowd-{count}": count for count in (200, 1000, 6375, 10_000)}

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BATCHES = (1, 8, 32)
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    operator: str
    scenario: str
    dtype: str
    batch: int  # images
    device: str

    def __str__(self) -> str:
        return f"{self.operator}-{self.scenario}-{self.dtype}-batch{self.batch}-{self.device}"


@dataclass(frozen=True)
class Block:
    """All cases of one operator with these scenarios, dtypes and batches, on every device."""

    operator: str
    scenarios: Iterable[str]
    dtypes: Iterable[str] = ("float32",)
    batches: Iterable[int] = (1,)

    def cases(self) -> Iterator[Case]:
        for scenario in self.scenarios:
            for batch in self.batches:  # the dtypes of one problem follow one another: it is made once
                for dtype in self.dtypes:
                    for device in DEVICES:
                        yield Case(self.operator, scenario, dtype, batch, device)


BLOCKS = (
    Block("detect", FROM_NETWORKS, DTYPES, BATCHES),
    Block("detect", GOLDEN[:3], batches=(1, 2)),
    Block("detect", GOLDEN[3:]),
    Block("refine", ANCHORS, DTYPES, BATCHES),
    Block("match", MATCHED, DTYPES, BATCHES),
    Block("mine", FROM_NETWORKS, DTYPES, BATCHES),
    Block("mine", [f"{net}-losses" for net in ANCHORS], DTYPES, BATCHES),
    Block("nms", FROM_NETWORKS, DTYPES),
    Block("nms", CROWDS),
    Block("batched_nms", FROM_NETWORKS, DTYPES, BATCHES),
    Block("batched_nms", CROWDS),
    Block("soft_nms", FROM_NETWORKS, DTYPES, BATCHES),
    Block("soft_nms", CROWDS),
    Block("soft_nms_gaussian", CROWDS),
    Block("vote", FROM_NETWORKS, DTYPES, BATCHES),
    Block("vote", CROWDS),
    Block("vote_official", CROWDS),
    Block("vote_official_soft", CROWDS),
)
CASES = tuple(case for block in BLOCKS for case in block.cases())
QUICK = {"VOC-320-2pct", "COCO-320-2pct", "VOC-320", "VOC-320-8objects", "crowd-1000", *GOLDEN}


def parameters() -> list[Any]:
    """The cases for ``pytest.mark.parametrize``: `quick` chooses some of one image, in float32; cuda needs a GPU."""
    return [pytest.param(case, id=str(case), marks=list(_marks(case))) for case in CASES]


def _marks(case: Case) -> Iterator[pytest.MarkDecorator]:
    if case.device == "cuda":
        yield pytest.mark.gpu
    if case.scenario in QUICK and case.dtype == "float32" and (case.batch == 1 or case.scenario in GOLDEN):
        yield pytest.mark.quick


# --- Arguments --------------------------------------------------------------------------------------------------------


def arguments(case: Case) -> tuple[Any, ...]:
    """Positional arguments of the operator, in the case's dtype; anchors stay float32, as networks keep them."""
    found = _PROBLEMS[case.operator](case.scenario, case.batch)
    kept = {"detect": 4, "refine": 0, "match": 0}.get(case.operator)  # the place of the anchors
    return tuple(
        (value if place == kept or not value.is_floating_point() else value.to(DTYPES[case.dtype])).to(case.device)
        if isinstance(value, Tensor)
        else value
        for place, value in enumerate(found)
    )


def network_of(scenario: str) -> cost.Network:
    """The network, with the scenario's share of survivors."""
    name = next(name for name in NETWORKS if scenario.startswith(name))
    share = SURVIVORS.get(scenario.rpartition("-")[2])
    return NETWORKS[name] if share is None else replace(NETWORKS[name], survivors=share)


def _detect(scenario: str, batch: int) -> tuple[Tensor, ...]:
    if scenario not in GOLDEN:
        return network_outputs(network_of(scenario), batch)
    *outputs, anchors = golden_outputs(scenario)
    return *(output[:batch] for output in outputs), anchors


def _refine(scenario: str, batch: int) -> tuple[Tensor, ...]:
    outputs = network_outputs(network_of(scenario), batch)
    return outputs[4], outputs[0]


def _match(scenario: str, batch: int) -> tuple[Tensor, ...]:
    objects = int(scenario.rpartition("-")[2].removesuffix("objects"))
    return network_outputs(network_of(scenario), 1)[4], *ground_truth(batch, objects)


def _mine(scenario: str, batch: int) -> tuple[Tensor, ...]:
    """Logits, or losses; one anchor in 200 is an object."""
    _, arm_conf, _, logits, _ = network_outputs(network_of(scenario), batch)
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(logits.shape[:2], generator=generator) < 0.005).long()
    ious = torch.rand(logits.shape[:2], generator=generator) ** 4
    losses = -logits.log_softmax(dim=-1)[..., 0] if scenario.endswith("losses") else logits
    return losses, labels, ious, arm_conf.softmax(dim=-1)[..., 1]


@lru_cache(maxsize=1)
def candidates(scenario: str, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [B,n,4], scores [B,n] and labels [B,n], 1 or more, of a network's survivors, or of a crowd."""
    if scenario in CROWDS:
        boxes, scores, labels = crowd(CROWDS[scenario])
        return image_of(boxes / 2 + 0.25, scores, labels)  # in the unit square, where every peer takes them
    net = network_of(scenario)
    arm_loc, _, odm_loc, logits, anchors = network_outputs(replace(net, survivors=1.0), batch)
    boxes = to_corners(decode(decode(anchors, arm_loc), odm_loc))
    scores, labels = logits.softmax(dim=-1)[..., 1:].max(dim=-1)
    chosen = torch.rand(batch, net.anchors, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    chosen = chosen[:, : round(net.anchors * net.survivors)]
    corners = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    return corners, scores.gather(1, chosen), labels.gather(1, chosen) + 1


def _nms(scenario: str, batch: int) -> tuple[Any, ...]:
    boxes, scores, _ = candidates(scenario, batch)
    return boxes[0], scores[0], IOU


def _batched_nms(scenario: str, batch: int) -> tuple[Any, ...]:
    """Images as classes of their own: as many labels as images times classes."""
    boxes, scores, labels = candidates(scenario, batch)
    labels = labels + torch.arange(batch)[:, None] * (labels.max() + 1)
    return boxes.flatten(0, 1), scores.flatten(), labels.flatten(), IOU


def _pixels(scenario: str, batch: int) -> tuple[Tensor, ...]:
    boxes, scores, labels = candidates(scenario, batch)
    return boxes * 1000, scores, labels


_PROBLEMS: dict[str, Callable[[str, int], tuple[Any, ...]]] = {
    "detect": _detect,
    "refine": _refine,
    "match": _match,
    "mine": _mine,
    "nms": _nms,
    "batched_nms": _batched_nms,
    "soft_nms": candidates,
    "soft_nms_gaussian": candidates,
    "vote": candidates,
    "vote_official": _pixels,
    "vote_official_soft": _pixels,
}


def ours(case: Case, given: tuple[Any, ...]) -> Callable[[], Any]:
    name, options = OPTIONS.get(case.operator, (case.operator, {}))
    operator = getattr(ops, name)
    return lambda: operator(*given, **options)


def floor(case: Case, device: cost.Device | None) -> float | None:
    """Microseconds that no implementation on the GPU can beat, where the cost model knows GPU and case."""
    if device is None or case.device == "cpu":
        return None
    try:
        if case.scenario in CROWDS:
            name = {"nms": "", "batched_nms": "nms"}.get(case.operator, case.operator)  # counted are 20 classes
            return cost.OF_BOXES[name](CROWDS[case.scenario]).floor(device)
        net = network_of(case.scenario)
        if case.dtype == "float32" and not case.scenario.endswith(("100objects", "losses")):
            return cost.OPERATORS[case.operator](net, case.batch).floor(device)
    except (KeyError, ValueError, StopIteration):
        pass  # nothing was counted
    return None
