"""What others write for the operators, with arguments: the peers of benchmarks/peers.py and of torchvision."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from problems import arguments_of, crowd, golden_outputs
from torch import Tensor

from gpu_report import machine
from gpu_report.cases import BATCHES, Case
from gpu_report.worker import Job
from refinedet import ops
from refinedet.boxes import decode
from refinedet.profiling import cost

NET = cost.NETWORKS[0]
IOU = 0.45  # of nms


@dataclass(frozen=True)
class Peer:
    """``call(*arguments)`` beside ``ours(*arguments)``, whose result both are compared by.

    ``static``: its shapes do not depend on the numbers, so that it fits in a graph and a compiler takes it.
    """

    label: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    ours: Callable[..., Tensor]
    result: Callable[[Any], Tensor]  # of the peer, for the comparison
    static: bool = False


def agreement(peer: Peer, arguments: tuple[Any, ...]) -> float:
    """The share of equal numbers in the results of both. A GPU rounds its own way in sums and exponentials."""
    ours, theirs = peer.ours(*arguments), peer.result(peer.call(*arguments))
    if ours.shape != theirs.shape:
        return 0.0
    return torch.isclose(ours.float(), theirs.float(), rtol=1e-5, atol=1e-6).float().mean().item()


def list_peers(job: Job, boxes: tuple[int, ...]) -> Iterator[Peer]:
    batches = BATCHES[:1] if job.dry_run else BATCHES
    for batch in batches:
        yield Peer(
            label("refine", batch, "PyTorch"), decode, arguments_of("refine", NET, batch), ops.refine, same, static=True
        )
    if not machine.has_package("torchvision"):
        job.note("skipped, because torchvision is not installed: the peers of detect, match, mine and nms")
        return
    for batch in batches:
        yield from matching_and_mining(batch)
    yield from selecting(boxes)


def matching_and_mining(batch: int) -> Iterator[Peer]:
    import peers

    yield Peer(
        label("match", batch, "PyTorch"),
        peers.match,
        arguments_of("match", NET, batch),
        lambda *arguments: ops.match(*arguments).indices,
        lambda found: found[2],
    )
    arguments = arguments_of("mine", NET, batch)
    everywhere = torch.ones_like(arguments[2])  # the peer wants objectness: every anchor is eligible
    yield Peer(label("mine", batch, "PyTorch"), peers.mine, (*arguments, everywhere), ops.mine, same, static=True)


def selecting(boxes: tuple[int, ...]) -> Iterator[Peer]:
    import peers
    from torchvision.ops import batched_nms

    golden = golden_outputs("typical_voc320")
    name = f"detect, golden typical_voc320, batch {len(golden[0])}"
    yield Peer(f"{name}, ours", ops.detect, golden, detected, lambda found: detected_indices(found), static=True)
    yield Peer(f"{name}, PyTorch", peers.detect, golden, detected, lambda found: torch.cat([row[3] for row in found]))
    for count in boxes:
        arguments = (*crowd(count), IOU)
        yield Peer(f"nms, {count} boxes, torchvision", batched_nms, arguments, ops.batched_nms, same)


def label(operator: str, batch: int, whose: str) -> str:
    return f"{Case(operator, NET, batch).label}, {whose}"


def same(found: Tensor) -> Tensor:
    return found


def detected(*arguments: Tensor) -> Tensor:
    return detected_indices(ops.detect(*arguments))


def detected_indices(found: ops.Detected) -> Tensor:
    """The anchors of all detections, image by image."""
    return torch.cat([row[:count] for row, count in zip(found.indices, found.counts.tolist(), strict=True)])
