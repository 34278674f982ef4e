"""From images to objects: read, prepare, run the network, decode, scale the boxes back (spec sections 1.2, 1.3, 8)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError, show
from refinedet.inference.pictures import Image, as_bgr, batches, list_pictures, path_of
from refinedet.inference.scales import Rows, Size, group_by_input, make_inputs, merge, to_images
from refinedet.inference.selection import select
from refinedet.inference.timing import Seconds, timed
from refinedet.models import RefineDet
from refinedet.models.build import try_backbone
from refinedet.models.optimized import eval_mode, optimized, run_in_parts
from refinedet.ops.devices import choose_device
from refinedet.preprocessing import PIXELS, Preprocessing, normalize
from refinedet.presets import Preset
from refinedet.progress import Progress, show_progress
from refinedet.protocols import Protocol, Scale, Thresholds, get_protocol, of_preset
from refinedet.records import Detections, LevelOutput, RawOutput
from refinedet.runtimes import is_exported, open_network
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.weights.checkpoint import load_network

Threshold: TypeAlias = float | None  # in `Detector`, float is a method
Testing: TypeAlias = str | os.PathLike[str] | Protocol | None  # a protocol, or where to find it
OnScale: TypeAlias = Callable[[str], object]

Network: TypeAlias = RefineDet | RuntimeNetwork

_ANCHORS: WeakKeyDictionary[Network, dict[tuple[tuple[int, int], torch.device], Tensor]] = WeakKeyDictionary()


class Detector:
    """A network with all that makes detections of images: preprocessing, thresholds, class names, device.

    ``network``: a trained `RefineDet`, or one of an exported file (`refinedet.runtimes`). ``preset`` and
    ``preprocessing``: the network's own, unless given; both may be replaced later: ``detector.preset =
    replace(detector.preset, nms_iou=0.6)``. ``optimize``: a copy of the network that is made for inference runs in
    its place, faster and with the same objects: on the CPU in float32 by `refinedet.models.optimized`, else by
    `refinedet.models.folded`. It is made at the first image and after changes of the network. It may be set later, too.
    """

    def __init__(
        self,
        network: Network,
        *,
        preset: Preset | None = None,
        preprocessing: Preprocessing | None = None,
        optimize: bool = True,
    ) -> None:
        self.network = network
        self.preset = preset or network.config.preset
        self.preprocessing = preprocessing or network.config.preprocessing
        self.optimize = optimize

    @property
    def trained_network(self) -> RefineDet:
        """The network with its layers; InputError where an exported file runs, which shows none."""
        if isinstance(self.network, RefineDet):
            return self.network
        raise InputError(
            f"the model is an exported file ({self.network.description.choices.format}), whose layers are not to be "
            "seen; give the checkpoint it was made of"
        )

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

    def to(self, *arguments: Any, **options: Any) -> Detector:
        """Move or cast the network, as ``torch.nn.Module.to`` does; returns the detector itself, like those below.

        In any dtype images are prepared and boxes decoded in float32; the network between them computes in its own.
        """
        self.network.to(*arguments, **options)
        return self

    def cpu(self) -> Detector:
        """Move the network to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | torch.device | None = None) -> Detector:
        """Move the network to a GPU, the current one unless given."""
        return self.to(torch.device("cuda", device) if isinstance(device, int) else device or "cuda")

    def half(self) -> Detector:
        """Cast the network to float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> Detector:
        """Cast the network to bfloat16."""
        return self.to(torch.bfloat16)

    def float(self) -> Detector:
        """Cast the network to float32."""
        return self.to(torch.float32)

    def double(self) -> Detector:
        """Cast the network to float64."""
        return self.to(torch.float64)

    def train(self, mode: bool = True) -> Detector:
        """Set the mode of the network; `detect` computes in eval mode whatever it is."""
        self.network.train(mode)
        return self

    def eval(self) -> Detector:
        """Set the network to eval mode."""
        return self.train(False)

    def detect(
        self,
        images: Image | Iterable[Image],
        *,
        protocol: Testing = None,
        score_threshold: Threshold = None,
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

        ``protocol``: a testing protocol of `refinedet.protocols`, its name or a TOML file, in place of the preset's
        thresholds at ``size``. ``score_threshold`` then stands for its own, but not for a higher one of a single scale;
        of boxes that are voted it is asked in the end. A batch has no more pixels than ``batch_size`` images of
        ``size``, but always an image with its mirror image.

        Raises InputError for an argument of the wrong kind and DataError for a file that is absent or no image; both
        name the image, and (but for a damaged file) come before any image is processed.
        """
        items = list_pictures(images)
        testing = get_protocol(protocol) if protocol is not None else None
        check_options(score_threshold, batch_size)
        detected = []
        with show_progress("detecting", "image", len(items), shown=progress) as bar:
            for detections in self._stream(items, score_threshold, batch_size, testing, scale_teller(bar)):
                detected.append(detections)
                bar.update()
        return detected

    def detect_stream(
        self,
        images: Iterable[Image],
        *,
        protocol: Testing = None,
        score_threshold: Threshold = None,
        batch_size: int = 8,
    ) -> Iterator[Detections]:
        """As `detect`, lazily: at most ``batch_size`` images are in memory, so a folder may be of any length."""
        check_options(score_threshold, batch_size)
        return self._stream(
            images, score_threshold, batch_size, get_protocol(protocol) if protocol is not None else None
        )

    @torch.inference_mode()
    def run(self, images: Tensor) -> RawOutput | LevelOutput:
        """Raw output of prepared images [B,3,H,W] (``size``, ``preprocessing``) from any device.

        The network runs in eval mode without gradients; its modules are left in the modes they were in.
        """
        made = optimized(self.network) if self.optimize and len(images) else None
        with eval_mode(self.network):
            images = images.to(self.device, self.dtype)
            raw: RawOutput | LevelOutput = run_in_parts(made, images) if made else self.network(images, by_level=True)
        return raw

    def select(self, raw: RawOutput | LevelOutput, score_threshold: Threshold = None) -> ops.Detected:
        """Decode and suppress the raw output of images of ``size`` with the thresholds of the preset, but for
        ``score_threshold`` where given; boxes [B,K,4] are corners in units of the image side. Soft-NMS, which takes
        boxes in pixels, comes after it."""
        return select(raw, self.network.anchors, self.preset, Thresholds.of(self.preset), score_threshold)

    def _stream(
        self,
        images: Iterable[Image],
        score_threshold: Threshold,
        batch_size: int,
        protocol: Protocol | None,
        on_scale: OnScale | None = None,
    ) -> Iterator[Detections]:
        for batch in batches(enumerate(images), batch_size):
            arrays = [as_bgr(image, index) for index, image in batch]
            paths = [path_of(image) for _, image in batch]
            yield from self.detect_batch(arrays, paths, score_threshold, protocol=protocol, on_scale=on_scale)

    def detect_batch(
        self,
        arrays: list[np.ndarray],
        paths: Sequence[str | None],
        score_threshold: Threshold,
        seconds: Seconds | None = None,
        protocol: Protocol | None = None,
        on_scale: OnScale | None = None,
    ) -> list[Detections]:
        """The objects of BGR images [H,W,3] uint8, all at once; the times of the stages from prepare to download
        (`refinedet.inference.timing.STAGES`) are added to ``seconds``, where given, and a GPU is waited for after each.
        ``on_scale`` is told which scale of several comes next."""
        found = self._find(arrays, score_threshold, protocol or of_preset(self.preset), seconds, on_scale)
        with timed(seconds, "download"):
            return self._download(found, arrays, paths)

    def _download(
        self, found: ops.Detected, arrays: Sequence[np.ndarray], paths: Sequence[str | None]
    ) -> list[Detections]:
        boxes, scores, labels = found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()
        detections = []
        for i, (count, array, path) in enumerate(zip(found.counts.tolist(), arrays, paths, strict=True)):
            names = [self.classes[label - 1] for label in labels[i, :count].tolist()]
            rows = [column[i, :count].clone() for column in (boxes, scores, labels)]  # no views of the whole batch
            detections.append(Detections(rows[0], rows[1], rows[2], names, path, array.shape[:2]))
        return detections

    @torch.inference_mode()
    def _find(
        self,
        arrays: list[np.ndarray],
        score_threshold: Threshold,
        protocol: Protocol,
        seconds: Seconds | None,
        on_scale: OnScale | None,
    ) -> ops.Detected:
        """The merged rows of all scales, in pixels. A batch has as many inputs of ``size`` as there are images."""
        self._make_anchors(protocol)
        with timed(seconds, "prepare"):
            normalized = [normalize(array, self.preprocessing) for array in arrays]
        sizes = [array.shape[:2] for array in arrays]
        looks: list[list[Rows]] = [[] for _ in arrays]
        for number, scale in enumerate(protocol.scales, 1):
            for size, members in group_by_input(scale, sizes, self.size, len(arrays)):
                if on_scale is not None and protocol.looks > 1:
                    on_scale(f"scale {number} of {len(protocol.scales)}, {size[0]}x{size[1]}")
                with timed(seconds, "prepare"):
                    images = [normalized[i] for i in members]
                    inputs = make_inputs(images, size, scale.flips, self.preprocessing)
                with timed(seconds, "upload", self.device):
                    inputs = self._upload(inputs)
                with timed(seconds, "network", self.device):
                    raw = self.run(inputs)
                with timed(seconds, "detect", self.device):
                    thresholds = scale.thresholds or protocol.thresholds
                    lowest = _lowest_score(scale, protocol, score_threshold)
                    selected = select(raw, self._anchors_for(size), self.preset, thresholds, lowest)
                    rows = to_images(selected, scale, [sizes[i] for i in members])
                for k, i in enumerate(members):
                    looks[i].append(Rows(*(column[k] for column in rows)))
        with timed(seconds, "detect", self.device):
            return merge(looks, sizes, protocol, score_threshold)

    def _upload(self, inputs: Tensor) -> Tensor:
        """The inputs where the network is. From pinned memory the copy to a GPU runs while the host goes on."""
        if self.device.type == "cuda":
            inputs = inputs.pin_memory()
        return inputs.to(self.device, non_blocking=True)

    def _make_anchors(self, protocol: Protocol) -> None:
        """Those of every scale, before any image is run; InputError where the backbone does not take its size."""
        for number, scale in enumerate(protocol.scales, 1):
            for image in ((1, 2), (2, 1)):  # wider than high, and the others
                try:
                    self._anchors_for(scale.input_size(image, self.size))
                except InputError as error:
                    raise InputError(f"protocol {protocol.name}, scale {number}: {error}") from error

    def _anchors_for(self, size: Size) -> Tensor:
        """Those of the network, made once for each size and device."""
        known = _ANCHORS.setdefault(self.network, {})
        if size == self.size:
            return self.network.anchors
        if (size, self.device) not in known:
            if isinstance(self.network, RefineDet):
                try_backbone(self.network.config.backbone, size)
            known[size, self.device] = self.network.anchors_for(size)
        return known[size, self.device]


def load(path_or_name: str | os.PathLike[str], device: str | torch.device | None = None) -> Detector:
    """Detector of a checkpoint, in eval mode, float32, or of an exported file (.onnx, .xml, .pt2, .mnn), which runs in
    its own runtime.

    ``device``: a checkpoint's is the CPU unless given, "auto" a GPU where there is one; an exported file runs on the
    device that it was exported for, and no other. Other arguments and errors are those of
    `refinedet.weights.checkpoint.load_network`, `refinedet.runtimes.open_network` and
    `refinedet.ops.devices.choose_device`.
    """
    if is_exported(path_or_name):
        detector = Detector(open_network(path_or_name), preprocessing=PIXELS)
        return detector if device in (None, "auto") else detector.to(choose_device(str(device)))
    chosen = choose_device("cpu" if device is None else str(device))
    return Detector(load_network(path_or_name)).to(chosen)


def scale_teller(bar: Progress) -> OnScale:
    """Shows which scale the images of a batch are at."""

    def tell(text: str) -> None:
        bar.set_postfix_str(text, refresh=True)
        bar.update(0)  # a line, where that is due

    return tell


def _lowest_score(scale: Scale, protocol: Protocol, asked: Threshold) -> float:
    """What boxes at a scale have to pass: its own threshold, or the one asked for, which only a higher one of this
    scale withstands. A vote has every box."""
    common = protocol.thresholds.score_threshold
    own = common if scale.thresholds is None else scale.thresholds.score_threshold
    if asked is None or protocol.merge in ("vote", "soft_vote"):
        return own
    return max(own, asked) if own > common else asked


def check_options(score_threshold: Threshold, batch_size: int) -> None:
    """Raise InputError unless the threshold, where given, is from 0 to 1 and a batch holds at least one image."""
    number = isinstance(score_threshold, Real) and not isinstance(score_threshold, bool)  # NumPy's float32, too
    if score_threshold is not None and not (number and 0.0 <= score_threshold <= 1.0):
        raise InputError(f"score_threshold is {show(score_threshold)}; give a value from 0 to 1")
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f"batch_size is {show(batch_size)}; give at least 1, a whole number")
