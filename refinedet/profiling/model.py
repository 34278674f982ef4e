"""What is measured: a checkpoint's detector, or one of a network with random weights; and the images that it sees."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from refinedet.choices import BACKBONES, TIMM
from refinedet.data.images import decode_image, list_images
from refinedet.errors import DataError, InputError, suggestion
from refinedet.files import PACKAGE
from refinedet.formats import SUFFIXES
from refinedet.inference.detector import Detector, load
from refinedet.models import build
from refinedet.models.build import try_backbone
from refinedet.models.heads import Heads
from refinedet.ops.devices import choose_device
from refinedet.preprocessing import prepare
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.weights.checkpoint import shipped_names

SIZE = 320  # of a network without weights; the paper's other one is 512
VOC_CLASSES = 20
EXAMPLES = PACKAGE.parent / "examples" / "bccd"  # where the package lies in its repository
MOST_IMAGES = 64  # that are kept in memory, as files

SURVIVING = 0.02  # of a trained network's anchors, and of each
PAIRS = 1.16  # classes above the score threshold (tests/golden/detout; `refinedet.profiling.cost.Network`)

_BISECTIONS = 40
_SYNTHETIC_SIZE = (375, 500)  # height, width of most photographs of VOC


def open_detector(
    model: str,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
    device: str | None = None,
) -> tuple[Detector, bool]:
    """The detector of a checkpoint (a file or a shipped name), of an exported file, or of a backbone's name ("vgg16",
    "timm:NAME") with random weights, in eval mode, float32; and whether its weights are random. ``device``: as
    `refinedet.load` has it.

    ``size``: height and width in pixels to warp images to (default: the checkpoint's own, else `SIZE`). ``classes``:
    without background, for random weights only (default: VOC's).
    Raises InputError for a size that the network does not take and for a name of neither kind, CheckpointError for a
    damaged file.
    """
    if _is_network(model):
        side = size or (SIZE, SIZE)
        network = build(model, size=side, num_classes=1 + (VOC_CLASSES if classes is None else classes))
        return Detector(network.eval()).to(choose_device(device or "cpu")), True
    if classes is not None:
        raise InputError(f"--classes {classes} is for a network without weights; {model} has its own classes")
    if not os.path.exists(model) and model not in shipped_names() and not model.endswith((".safetensors", *SUFFIXES)):
        known = [*shipped_names(), *BACKBONES]
        raise InputError(
            f"model is {model!r};{suggestion(model, known)} give a .safetensors file, a shipped checkpoint "
            f"({', '.join(shipped_names())}), or a network to be built with random weights ({', '.join(BACKBONES)}, "
            f"{TIMM}NAME)"
        )
    detector = load(model, device)
    if size is not None and size != detector.size:
        if isinstance(detector.network, RuntimeNetwork):
            detector.network.anchors_for(size)  # says that a file has one size
        network = detector.trained_network
        try_backbone(network.config.backbone, size)
        network.config = replace(network.config, size=size)
        detector.to(detector.device)  # makes the anchors anew
    return detector, False


def _is_network(model: str) -> bool:
    return not os.path.exists(model) and (model in BACKBONES or model.startswith(TIMM))


@torch.no_grad()
def imitate_training(detector: Detector, image: np.ndarray) -> None:
    """Shift the biases of random heads until, of the BGR image [H,W,3], as much passes the thresholds as in trained
    networks: `SURVIVING` of the anchors, and `PAIRS` classes of each. Else nearly all would, and `detect` had far more
    to do than it has in use."""
    network, preset = detector.trained_network, detector.preset
    raw = detector.run(prepare(image, detector.size, detector.preprocessing)[None]).concatenate()
    logits = raw.odm_conf[0].float()
    if network.arm is not None and raw.arm_conf is not None:
        margins = raw.arm_conf[0, :, 1].float() - raw.arm_conf[0, :, 0].float()
        threshold = math.log(preset.objectness_threshold / (1 - preset.objectness_threshold))
        shift = threshold - margins.quantile(1 - SURVIVING)
        _shift_foreground(network.arm, float(shift))
        logits = logits[margins + shift >= threshold]
    _shift_foreground(network.odm, _balance(logits, preset.score_threshold))


def _balance(logits: Tensor, threshold: float) -> float:
    """What to add to all logits [n,C] but the background's, for `PAIRS` n of their probabilities to exceed the
    threshold. By bisection: more are added, more exceed it."""
    low, high = -2 * float(logits.abs().max()) - 20, 2 * float(logits.abs().max()) + 20
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        shifted = torch.cat([logits[:, :1], logits[:, 1:] + middle], dim=1)
        pairs = int((shifted.softmax(dim=1)[:, 1:] > threshold).sum())
        low, high = (low, middle) if pairs > PAIRS * len(logits) else (middle, high)
    return low


def _shift_foreground(heads: Heads, shift: float) -> None:
    for conv in heads.conf:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        conv.bias.view(-1, heads.num_classes)[:, 1:] += shift  # the classes of each anchor of a cell


@dataclass(frozen=True)
class Photographs:
    """Images as files in memory, and what they are, in words."""

    files: tuple[bytes, ...] = field(repr=False)
    names: tuple[str, ...]
    what: str

    def batch(self, number: int, size: int) -> list[int]:
        """The indices of the images of call ``number`` (0, 1, ...) with ``size`` images: all take turns."""
        return [(number * size + i) % len(self.files) for i in range(size)]

    def decode(self, index: int) -> np.ndarray:
        """The image as uint8 [H,W,3] BGR; DataError for one that cannot be decoded."""
        return decode_image(self.files[index], self.names[index], apply_exif=True)


def open_photographs(paths: Sequence[Path] = ()) -> Photographs:
    """The first `MOST_IMAGES` of ``paths``; without any those of `EXAMPLES`, else a synthetic one.

    Raises DataError for a file that cannot be read or decoded.
    """
    if paths:
        photographs = _read(paths[:MOST_IMAGES], "own")
    elif EXAMPLES.is_dir():
        photographs = _read(list_images(EXAMPLES), "examples of the shipped model, photographs of blood cells")
    else:
        photographs = Photographs((_synthesize(),), ("synthetic image",), "1, synthetic")
    shapes = [photographs.decode(index).shape for index in range(len(photographs.files))]
    sizes = {f"{width}x{height}" for height, width, _ in shapes}
    shown = next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes"
    return replace(photographs, what=f"{photographs.what}, {shown}")


def _read(paths: Sequence[Path], what: str) -> Photographs:
    files = []
    for path in paths:
        try:
            files.append(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return Photographs(tuple(files), tuple(map(str, paths)), f"{len(files)} {what}")


def _synthesize() -> bytes:
    """A JPEG with about the detail of a photograph: smooth noise of all scales, the same in every run."""
    height, width = _SYNTHETIC_SIZE
    generator = np.random.default_rng(0)
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        coarse = generator.random((cells, cells, 3), np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = 255 * (picture - picture.min()) / (picture.max() - picture.min())
    _, data = cv2.imencode(".jpg", picture.astype(np.uint8))
    return data.tobytes()
