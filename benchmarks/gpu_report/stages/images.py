"""From JPEG files to boxes, as `Detector.detect` does it, and each step of the way. Times on the clock of the host."""

import torch

import refinedet
from gpu_report import machine
from gpu_report.worker import Job
from refinedet.data import read_image
from refinedet.inference.detector import Detector
from refinedet.preprocessing import prepare

FILES = 32  # the photographs of examples/bccd, over and over
ROUNDS = 5


def run(job: Job) -> None:
    torch.manual_seed(0)
    # No weights of VGG-16 are shipped: nothing is above this threshold, and the operators end early.
    size = 64 if job.dry_run else 320
    vgg = Detector(refinedet.build("vgg16", size=size, num_classes=21).eval()).to(job.device)
    bccd = refinedet.load("bccd").to(job.device)
    sides = "x".join(map(str, bccd.size))
    for batch in (1,) if job.dry_run else (1, FILES):
        measure(job, f"bccd (SqueezeNet {sides}), batch {batch}", bccd, batch, 0.5)
        measure(job, f"VGG-16 {size}, random weights, batch {batch}", vgg, batch, 0.9)


@torch.inference_mode()
def measure(job: Job, case: str, detector: Detector, batch: int, threshold: float) -> None:
    photographs = sorted((machine.ROOT / "examples" / "bccd").glob("*.jpg"))
    paths = [photographs[i % len(photographs)] for i in range(batch)]
    arrays = [read_image(path) for path in paths]
    prepared = torch.stack([prepare(array, detector.size, detector.preprocessing) for array in arrays])
    moved = prepared.to(detector.device)
    raw = detector.run(moved)
    steps = {
        "whole": lambda: detector.detect(paths, score_threshold=threshold, batch_size=batch),
        "read": lambda: [read_image(path) for path in paths],
        "prepare": lambda: [prepare(array, detector.size, detector.preprocessing) for array in arrays],
        "to the GPU": lambda: prepared.to(detector.device),
        "network": lambda: detector.run(moved),
        "operators": lambda: detector.select(raw, threshold),
    }
    times = {step: job.host_milliseconds(call, ROUNDS) for step, call in steps.items()}
    job.figures(case, "ms", times)
    job.figure(case, "images a second", 1e3 * batch / times["whole"], "1/s")
