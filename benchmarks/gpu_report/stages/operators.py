"""Times of the operators, beside the prediction, the bandwidth of the memory, and what others write.

For every case, medians of microseconds:
see `gpu_report.worker.measure_call`. The model predicts "graph, cold".
"""

import torch
from problems import arguments_of, crowd, image_of
from support.gpu import to

from gpu_report.cases import BANDWIDTH, COLD, MEMORY, Case, every_case, measure_bandwidth, model_device
from gpu_report.peer_calls import Peer, agreement, list_peers
from gpu_report.worker import Job, measure_call
from refinedet import ops
from refinedet.profiling import cost

PEER_ROUNDS = 20  # some take milliseconds


def run(job: Job) -> None:
    bandwidth = measure_bandwidth(job)
    job.figure(MEMORY, BANDWIDTH, bandwidth, "GB/s")
    device = model_device(job, bandwidth)
    job.note(f"predictions are for {device}")
    cases = list(every_case())
    boxes = cost.BOXES[:1] if job.dry_run else cost.BOXES
    with torch.inference_mode():
        for case in cases[: len(cost.OPERATORS)] if job.dry_run else cases:
            measure(job, case, bandwidth, device)
        for count in boxes:
            measure_nms(job, count)
            measure_soft_nms(job, count)
            measure_vote(job, count)
        for peer in list_peers(job, boxes):
            measure_peer(job, peer)


def measure(job: Job, case: Case, bandwidth: float, device: cost.Device) -> None:
    moved = to(job.device, arguments_of(case.operator, case.net, case.batch))
    operator = getattr(ops, case.operator)
    times = measure_call(job, lambda: operator(*moved))
    predicted, floor = case.cost.predicted(device), case.cost.floor(device)
    job.figures(case.label, "us", {**times, "predicted": predicted, "floor": floor})
    job.figure(case.label, "cold / predicted", times[COLD] / predicted, "1")
    share = case.cost.minimum / times[COLD] / 1e3 / bandwidth
    job.figure(case.label, "of the copy's bandwidth, cold", 100 * share, "%")


def measure_nms(job: Job, count: int) -> None:
    """With the sort before it and the wait for the number of boxes, for which there is no graph."""
    arguments = (*to(job.device, crowd(count)), 0.45)
    times = measure_call(job, lambda: ops.batched_nms(*arguments), capturable=False)
    job.figures(f"nms, {count} boxes", "us", times)


def measure_soft_nms(job: Job, count: int) -> None:
    """With the sorts before and after it."""
    arguments = to(job.device, image_of(*crowd(count)))
    job.figures(f"soft_nms, {count} boxes", "us", measure_call(job, lambda: ops.soft_nms(*arguments)))


def measure_vote(job: Job, count: int) -> None:
    """With the two sorts before it and the one after."""
    arguments = to(job.device, image_of(*crowd(count)))
    job.figures(f"vote, {count} boxes", "us", measure_call(job, lambda: ops.vote(*arguments)))


def measure_peer(job: Job, peer: Peer) -> None:
    """A peer that fails on a GPU is told, and no failure of ours."""
    moved = to(job.device, peer.arguments)
    with job.tolerated(peer.label):
        job.figures(peer.label, "us", measure_call(job, lambda: peer.call(*moved), peer.static, PEER_ROUNDS))
        job.figure(peer.label, "agrees with ours", 100 * agreement(peer, moved), "%")
