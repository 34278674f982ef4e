"""A step of the recipe vgg16_voc07_320 (VGG-16, 320 pixels, batch 32) and its stages, on images of noise."""

from collections.abc import Callable
from dataclasses import replace

import torch
from problems import ground_truth

from gpu_report.worker import Job
from refinedet import build
from refinedet.records import Batch, RawOutput, Targets
from refinedet.training.loss import MultiBoxLosses
from refinedet.training.read import read_recipe
from refinedet.training.step import Trainer

RECIPE = "vgg16_voc07_320"
BATCH = 32
RATE = 1e-9  # noise would make a network diverge that learns from it
ROUNDS = 10


def run(job: Job) -> None:
    recipe = read_recipe(RECIPE)
    for amp in [False] if job.dry_run else [False, True]:
        torch.manual_seed(0)
        settings = replace(recipe.train, amp=amp, lr=RATE, normalize_groups=1)
        model = build("vgg16", size=64 if job.dry_run else recipe.model.size, num_classes=21)
        trainer = Trainer(model, replace(recipe, train=settings), job.device)
        measure(job, f"VGG-16 {model.config.size[0]}, {'float16 (amp)' if amp else 'float32'}", trainer)


def measure(job: Job, name: str, trainer: Trainer) -> None:
    count = 1 if job.dry_run else BATCH
    batch = Batch(torch.randn(count, 3, *trainer.model.config.size), Targets(*ground_truth(count)), ("noise",) * count)
    case = f"{name}, batch {count}"
    whole = job.host_milliseconds(lambda: trainer.step(batch), ROUNDS)
    job.figure(case, "whole step", whole, "ms")
    step = Step(trainer, batch)
    for stage, (call, before) in step.stages().items():
        job.figure(case, stage, job.microseconds(call, before, ROUNDS) / 1e3, "ms")
    job.figure(case, "images a second", 1e3 * count / whole, "1/s")
    if not job.dry_run:
        job.figure(case, "peak of torch's memory", torch.cuda.max_memory_allocated() / 2**20, "MiB")


class Step:
    """The stages of `Trainer.step`, one by one."""

    raw: RawOutput
    losses: MultiBoxLosses

    def __init__(self, trainer: Trainer, batch: Batch) -> None:
        self.trainer, self.batch = trainer, batch
        self.images = batch.images.to(trainer.device)
        self.targets = Targets(*(tensor.to(trainer.device) for tensor in batch.targets))

    def stages(self) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """Each with what has to come before it."""
        return {
            "images to the GPU": (lambda: self.batch.images.to(self.trainer.device), lambda: None),
            "forward": (self.forward, lambda: None),
            "losses (refine, match, mine)": (self.compute_losses, self.forward),
            "backward": (self.backward, lambda: (self.forward(), self.compute_losses())),
            "optimiser": (self.trainer.optimizer.step, lambda: None),
        }

    def forward(self) -> None:
        with torch.autocast(self.trainer.device.type, torch.float16, enabled=self.trainer.settings.amp):
            self.raw = self.trainer.model(self.images)

    def compute_losses(self) -> None:
        self.losses = self.trainer.criterion(self.raw, self.trainer.model.anchors, self.targets)

    def backward(self) -> None:
        self.trainer.scaler.scale(self.losses.total).backward()
