"""Videos in several containers, from the file to the annotated copy."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support.videos import make_video

from fuzz.engine import Target
from fuzz.units import damage_units
from refinedet.inference.video import detect_video
from refinedet.records import Detections

LIMIT = 1_000_000  # pixels of a frame: more than any seed has, and soon decoded
SUFFIXES = (".avi", ".mp4", ".mov", ".mkv", ".webm", ".flv", ".ts", ".mpg", ".asf", ".nut")


class Blind:
    """Finds nothing, at once: what is tried is the video."""

    def detect_batch(self, images: list[Any], *_: Any, **__: Any) -> list[Detections]:
        nothing = torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64)
        return [Detections(*nothing, [], None, image.shape[:2]) for image in images]


def make_seeds(folder: Path) -> list[Path]:
    return [make_video(folder / f"seed{suffix}", frames=4, size=(32, 24)) for suffix in SUFFIXES]


def read(file: Path) -> None:
    output = file.with_name("out.mp4")
    with patch.dict(os.environ, REFINEDET_MAX_PIXELS=str(LIMIT)):
        detect_video(Blind(), file, output)  # type: ignore[arg-type]
    output.unlink()


TARGET = Target(
    "videos", make_seeds, damage_units, read, count=500, ci_count=80, memory=lambda size: 2 * size + (96 << 20)
)
