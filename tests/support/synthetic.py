"""Tiny synthetic images, data sets and checkpoints shared by the tests. Everything is a pure function of its seed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from refinedet.anchors import generate_anchors
from refinedet.boxes import encode
from refinedet.models import ModelConfig
from refinedet.preprocessing import Preprocessing
from refinedet.presets import OFFICIAL, Preset
from refinedet.records import RawOutput

CLASSES = ("disc", "square")
COLOURS = {"disc": (40, 40, 220), "square": (220, 60, 40)}  # BGR


def scene(
    seed: int, height: int = 96, width: int = 128, objects: int = 3
) -> tuple[np.ndarray, list[tuple[str, tuple[int, int, int, int]]]]:
    """A noisy grey uint8 BGR image [height, width, 3] with red discs and blue squares, and its objects as
    (class, (xmin, ymin, xmax, ymax)) in whole pixels, inside the image and not overlapping."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 150, (height, width, 3), dtype=np.uint8)
    found: list[tuple[str, tuple[int, int, int, int]]] = []
    for _ in range(200):
        if len(found) == objects:
            break
        side = int(rng.integers(min(height, width) // 6, min(height, width) // 3 + 1))
        x1, y1 = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        box = (x1, y1, x1 + side - 1, y1 + side - 1)
        if any(box[0] <= b[2] and b[0] <= box[2] and box[1] <= b[3] and b[1] <= box[3] for _, b in found):
            continue
        name = CLASSES[int(rng.integers(len(CLASSES)))]
        if name == "disc":
            cv2.circle(image, (x1 + side // 2, y1 + side // 2), side // 2, COLOURS[name], -1)
        else:
            cv2.rectangle(image, box[:2], box[2:], COLOURS[name], -1)
        found.append((name, box))
    return image, found


def make_voc(root: str | Path, splits: dict[str, int] | None = None, *, seed: int = 0, **scene_options) -> Path:
    """Write a VOC tree (JPEGImages, Annotations, ImageSets/Main) with `splits[name]` images per split (default
    train 4, val 2, test 2). Options of `scene` pass through. Returns the root."""
    root = Path(root)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in (splits or {"train": 4, "val": 2, "test": 2}).items():
        names = []
        for _ in range(count):
            image, objects = scene(seed, **scene_options)
            name = f"{seed:06d}"
            cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
            (root / "Annotations" / f"{name}.xml").write_text(_voc_xml(f"{name}.jpg", image.shape, objects))
            names.append(name)
            seed += 1
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def _voc_xml(filename: str, shape, objects) -> str:
    rows = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for name, (x1, y1, x2, y2) in objects
    )
    return (
        f"<annotation><filename>{filename}</filename><size><width>{shape[1]}</width><height>{shape[0]}</height>"
        f"<depth>3</depth></size>\n{rows}</annotation>\n"
    )


def make_coco(root: str | Path, splits: dict[str, int] | None = None, *, seed: int = 0, **scene_options) -> Path:
    """Write a COCO tree (`annotations/instances_SPLIT.json`, images in a folder named SPLIT); category ids are 3 and 7
    so that an id is never an index. Returns the root."""
    root = Path(root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    ids = dict(zip(CLASSES, (3, 7), strict=True))
    for split, count in (splits or {"train": 4, "val": 2}).items():
        (root / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for _ in range(count):
            image, objects = scene(seed, **scene_options)
            name = f"{seed:012d}.png"
            cv2.imwrite(str(root / split / name), image)
            images.append({"id": seed, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
            for label, (x1, y1, x2, y2) in objects:
                w, h = x2 - x1 + 1, y2 - y1 + 1
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": seed,
                        "category_id": ids[label],
                        "bbox": [x1, y1, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
            seed += 1
        categories = [{"id": number, "name": label} for label, number in ids.items()]
        (root / "annotations" / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


class FixedNetwork(nn.Module):
    """Has RefineDet's interface and finds the same objects in every image.

    ``boxes``: [n,4] corners in units of the image side; ``labels`` and ``scores`` (probabilities): [n]. The network's
    inputs, and whether the network was in training mode, are kept in ``inputs`` and ``modes``.
    """

    def __init__(
        self,
        boxes,
        labels,
        scores,
        *,
        size: tuple[int, int] = (64, 128),
        preset: Preset = OFFICIAL,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.config = ModelConfig("fixed", size, CLASSES, preset, preprocessing or Preprocessing(mean=(0.0, 0.0, 0.0)))
        self.anchors = anchors = generate_anchors(size)
        self.device, self.dtype = anchors.device, anchors.dtype
        rows = torch.arange(len(labels)) * 3  # any anchors will do
        probabilities = torch.full((len(anchors), len(CLASSES) + 1), 1e-9)
        probabilities[:, 0] = 1.0
        for row, label, score in zip(rows.tolist(), labels, scores, strict=True):
            probabilities[row, 0] = 1.0 - score
            probabilities[row, label] = score
        self.conf = probabilities.log()
        self.loc = torch.zeros_like(anchors)
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        self.loc[rows] = encode(corners, anchors[rows], preset.variances)
        self.objectness = torch.tensor([10.0, -10.0]).repeat(len(anchors), 1)
        self.objectness[rows] = torch.tensor([0.0, 5.0])
        self.inputs: list[torch.Tensor] = []
        self.modes: list[bool] = []
        self.eval()

    def forward(self, images: torch.Tensor, *, by_level: bool = False) -> RawOutput:
        self.inputs.append(images.clone())
        self.modes.append(self.training)
        repeat = (len(images), 1, 1)
        loc = self.loc.repeat(repeat)
        return RawOutput(torch.zeros_like(loc), self.objectness.repeat(repeat), loc, self.conf.repeat(repeat))


def tiny_model(size: int | tuple[int, int] = 64, *, classes: tuple[str, ...] = CLASSES, seed: int = 0):
    """A small SqueezeNet RefineDet with random weights, in eval mode; the same weights for the same seed."""
    import refinedet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return refinedet.build("squeezenet", size=size, classes=classes, tcb_channels=16).eval()


def tiny_checkpoint(path: str | Path, size: int | tuple[int, int] = 64, **options) -> Path:
    """Save `tiny_model(size, **options)` at `path` (safetensors). Returns the path."""
    from refinedet.weights.checkpoint import save_model

    save_model(tiny_model(size, **options), path)
    return Path(path)


def with_statistics(network: nn.Module) -> nn.Module:
    """``network`` in eval mode, with normalisations as after training: each channel with its own."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return network.eval()
