"""What `torch.compile` makes of the peers whose shapes are fixed, of `ops.detect`, and of VGG-16."""

from collections.abc import Callable
from typing import Any

import torch
from support.gpu import to

from gpu_report.peer_calls import list_peers
from gpu_report.stages.networks import Network
from gpu_report.worker import Job, measure_call

ROUNDS = 20


@torch.inference_mode()
def run(job: Job) -> None:
    """What is deployed first: a compiler takes seconds for each."""
    network = Network(64, 1, torch.float32, "nhwc") if job.dry_run else Network(320, 1, torch.float16, "nhwc")
    model, images = network.build(job.device)
    measure(job, network.label, model, (images,))
    for peer in list_peers(job, boxes=()):
        if peer.static:
            measure(job, peer.label, peer.call, to(job.device, peer.arguments))


def measure(job: Job, label: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """A compiler that refuses what it is given is told, and no failure of ours."""
    compiled = torch.compile(call, dynamic=False, backend="eager" if job.dry_run else "inductor")
    name = f"{label}, torch.compile"
    with job.tolerated(name):
        job.figures(name, "us", measure_call(job, lambda: compiled(*arguments), rounds=ROUNDS))
