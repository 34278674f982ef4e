"""From images to objects: read, prepare, run the network, decode, scale the boxes back (spec sections 1.2, 1.3, 8)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from refinedet import ops
from refinedet.boxes import to_pixels
from refinedet.errors import InputError
from refinedet.inference.pictures import Image, as_bgr, batches, list_pictures, path_of
from refinedet.inference.timing import timed
from refinedet.models import RefineDet
from refinedet.preprocessing import Preprocessing, prepare
from refinedet.presets import Preset
from refinedet.progress import show_progress
from refinedet.records import Detections, LevelOutput, RawOutput
from refinedet.weights.checkpoint import load_network


class Detector:
    """A network with all that makes detections of images: preprocessing, thresholds, class names, device.

    ``network``: a trained `RefineDet`. ``preset`` and ``preprocessing``: the network's own, unless given; both may be
    replaced later: ``detector.preset = replace(detector.preset, nms_iou=0.6)``.
    """

    def __init__(
        self, network: RefineDet, *, preset: Preset | None = None, preprocessing: Preprocessing | None = None
    ) -> None:
        self.network = network
        self.preset = preset or network.config.preset
        self.preprocessing = preprocessing or network.config.preprocessing

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels to which images are warped."""
        return self.network.config.size

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the foreground classes: label k has name ``classes[k - 1]``."""
        return self.network.config.classes

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes."""
        return self.network.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Detector:
        """Move the network to ``device`` and cast it to ``dtype``, where given; returns the detector itself."""
        self.network.to(device=device, dtype=dtype)
        return self

    def detect(
        self,
        images: Image | Iterable[Image],
        *,
        score_threshold: float | None = None,
        batch_size: int = 8,
        progress: bool = False,
    ) -> list[Detections]:
        """Find the objects of one image or of several; returns one `Detections` per image, in order.

        An image is a path, a numpy array or a torch tensor:

        * path: a file that OpenCV decodes, turned upright by its EXIF orientation, as cv2.imread does;
        * bytes, bytearray or memoryview: the content of such a file;
        * array: uint8 [H,W,3] in **BGR** order, as OpenCV reads it, or [H,W] / [H,W,1] grey;
        * tensor: [3,H,W] in **RGB** order (or [1,H,W] grey), uint8 0..255 or floating 0..1, as torchvision reads it.
          Floating values are rounded to 8 bits.

        Images of any size go together: each is warped to ``size``. Boxes are x1,y1,x2,y2 in pixels of the image as
        given, clipped to [0, W-1] x [0, H-1]; rows are sorted by descending score, above ``score_threshold`` (default:
        the preset's). ``progress``: a bar on stderr.

        Raises InputError for an argument of the wrong kind and DataError for a file that is absent or no image; both
        name the image, and (but for a damaged file) come before any image is processed.
        """
        items = list_pictures(images)
        found = self.detect_stream(items, score_threshold=score_threshold, batch_size=batch_size)
        detected = []
        with show_progress("detecting", "image", len(items), shown=progress) as bar:
            for detections in found:
                detected.append(detections)
                bar.update()
        return detected

    def detect_stream(
        self, images: Iterable[Image], *, score_threshold: float | None = None, batch_size: int = 8
    ) -> Iterator[Detections]:
        """As `detect`, lazily: at most ``batch_size`` images are in memory, so a folder may be of any length."""
        check_options(score_threshold, batch_size)
        return self._stream(images, score_threshold, batch_size)

    @torch.inference_mode()
    def run(self, images: Tensor) -> LevelOutput:
        """Raw output of prepared images [B,3,H,W] (``size``, ``preprocessing``) from any device.

        The network runs in eval mode without gradients; its modules are left in the modes they were in.
        """
        with eval_mode(self.network):
            raw: LevelOutput = self.network(images.to(self.device, self.dtype), by_level=True)
        return raw

    def select(self, raw: RawOutput | LevelOutput, score_threshold: float | None = None) -> ops.Detected:
        """Decode and suppress the raw output of images of ``size`` with the thresholds of the preset, but for
        ``score_threshold`` where given; boxes [B,K,4] are corners in units of the image side."""
        options = self.preset.detect_options()
        if score_threshold is not None:
            options["score_threshold"] = score_threshold
        arm_loc = raw.arm_loc if self.preset.cascade else None
        return ops.detect(arm_loc, raw.arm_conf, raw.odm_loc, raw.odm_conf, self.network.anchors, **options)

    def _stream(self, images: Iterable[Image], score_threshold: float | None, batch_size: int) -> Iterator[Detections]:
        for batch in batches(enumerate(images), batch_size):
            arrays = [as_bgr(image, index) for index, image in batch]
            yield from self.detect_batch(arrays, [path_of(image) for _, image in batch], score_threshold, {})

    @torch.inference_mode()
    def detect_batch(
        self,
        arrays: list[np.ndarray],
        paths: Sequence[str | None],
        score_threshold: float | None,
        seconds: dict[str, float],
    ) -> list[Detections]:
        """The objects of BGR images [H,W,3] uint8, all at once; the time of the stages load (preparing them), forward
        and select is added to ``seconds``."""
        with timed(seconds, "load"):
            prepared = torch.stack([prepare(array, self.size, self.preprocessing) for array in arrays])
        with timed(seconds, "forward", self.device):
            raw = self.run(prepared)
        with timed(seconds, "select", self.device):
            found = self.select(raw, score_threshold)
            boxes, scores, labels = found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()
        detections = []
        for i, (count, array, path) in enumerate(zip(found.counts.tolist(), arrays, paths, strict=True)):
            height, width = array.shape[:2]
            names = [self.classes[label - 1] for label in labels[i, :count].tolist()]
            pixels = to_pixels(boxes[i, :count], (height, width))
            detections.append(
                Detections(pixels, scores[i, :count].clone(), labels[i, :count].clone(), names, path, (height, width))
            )
        return detections


def load(path_or_name: str | os.PathLike[str]) -> Detector:
    """Detector of a checkpoint, in eval mode, float32, on the CPU; arguments and errors are those of
    `refinedet.weights.checkpoint.load_network`."""
    return Detector(load_network(path_or_name))


def check_options(score_threshold: float | None, batch_size: int) -> None:
    """Raise InputError unless the threshold, where given, is from 0 to 1 and a batch holds at least one image."""
    if score_threshold is not None and not 0.0 <= score_threshold <= 1.0:
        raise InputError(f"score_threshold is {score_threshold}; give a value from 0 to 1")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """``network`` in eval mode inside the block; after it every module is in the mode it was in, a frozen one too."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
