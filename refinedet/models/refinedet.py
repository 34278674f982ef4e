"""The detector: backbone, anchor refinement module, transfer connection blocks, object detection module."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from refinedet.anchors import check_size, generate_anchors, parse_size
from refinedet.errors import CheckpointError, InputError
from refinedet.models.backbones.base import Backbone
from refinedet.models.heads import Heads
from refinedet.models.transfer import TransferConnection
from refinedet.preprocessing import Preprocessing
from refinedet.presets import OFFICIAL, Preset, get_preset
from refinedet.records import Detections, LevelOutput, RawOutput

if TYPE_CHECKING:
    from refinedet.inference.predict import Image

TCB_CHANNELS = 256  # spec section 4


@dataclass(frozen=True)
class ModelConfig:
    """All it takes to build the network again and to use it; kept with every checkpoint."""

    backbone: str  # "vgg16", "resnet101", "squeezenet" or "timm:NAME"
    size: tuple[int, int]  # height, width of the input in pixels, multiples of 64
    classes: tuple[str, ...]  # foreground names: label k has name classes[k - 1]
    preset: Preset = OFFICIAL
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    tcb_channels: int = TCB_CHANNELS

    @property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return len(self.classes) + 1

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Inverse of :meth:`to_json`; CheckpointError for any other text."""
        try:
            values = json.loads(text)
            return cls(
                backbone=values["backbone"],
                size=_items(values, "size", int),
                classes=_items(values, "classes", str),
                preset=Preset(**_tuples(values["preset"])),
                preprocessing=Preprocessing(**_tuples(values["preprocessing"])),
                tcb_channels=values["tcb_channels"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"not a model configuration ({error!r}): {str(text)[:80]}; use a checkpoint of this package"
            ) from error


def _items(values: dict[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    """The list ``values[key]``, whose items are of that ``kind``, as a tuple: a text would be taken apart unnoticed."""
    items = values[key]
    if not isinstance(items, list) or not items or any(type(item) is not kind for item in items):
        raise TypeError(f"{key} is {items!r}, not a list of {kind.__name__}")
    return tuple(items)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


class RefineDet(nn.Module):
    """RefineDet (paper section 3; spec sections 2 to 6); :func:`refinedet.build` makes one.

    ``anchors``: those of ``config.size``, [N,4] cx, cy, w, h in units of the image side.
    """

    anchors: Tensor
    arm: Heads | None
    tcb: TransferConnection | None

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        preset = config.preset
        block_norm = backbone.norm if backbone.head_bottleneck and preset.head_bottleneck else None
        if preset.tcb:
            self.arm = Heads(backbone.channels, 2, block_norm)
            self.tcb = TransferConnection(backbone.channels, config.tcb_channels, backbone.norm)
            odm_channels: Sequence[int] = [config.tcb_channels] * len(backbone.channels)
        else:
            self.arm = self.tcb = None
            odm_channels = backbone.channels
        self.odm = Heads(odm_channels, config.num_classes, block_norm)
        self.register_buffer("anchors", generate_anchors(config.size), persistent=False)
        self.to(memory_format=backbone.memory_format)

    def forward(self, images: Tensor, *, by_level: bool = False) -> RawOutput | LevelOutput:
        """Logits and offsets of preprocessed images [B,3,H,W] (``config.preprocessing``), float32 or under autocast.

        H and W may differ from ``config.size`` but must be multiples of 64 (else InputError); the anchors are then
        those of :meth:`anchors_for`. Returns tensors [B,N,*] in the order of the anchors, or with ``by_level`` those
        of each level, not concatenated, which is all that :func:`refinedet.ops.detect` needs.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images have shape {list(images.shape)}; give a batch [B,3,H,W]")
        check_size((images.shape[2], images.shape[3]))
        features = self.backbone(images)
        if self.arm is None or self.tcb is None:
            output = LevelOutput(None, None, *self.odm(features))
        else:
            output = LevelOutput(*self.arm(features), *self.odm(self.tcb(features)))
        return output if by_level else output.concatenate()

    def anchors_for(self, size: tuple[int, int]) -> Tensor:
        """Anchors [N,4] of an input of ``size`` = (height, width), on the model's device."""
        if tuple(size) == self.config.size:
            return self.anchors
        return generate_anchors(size).to(self.anchors)

    def detect(
        self,
        images: Image | Sequence[Image],
        *,
        score_threshold: float | None = None,
        batch_size: int = 8,
    ) -> list[Detections]:
        """Find the objects of paths, arrays or tensors; see :func:`refinedet.inference.predict.detect`."""
        from refinedet.inference.predict import detect

        return detect(self, images, score_threshold=score_threshold, batch_size=batch_size)


def build(
    backbone: str,
    size: int | tuple[int, int] = 320,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    preset: str | Preset = "official",
    weights: str | Path | None = None,
    weights_input: str = "torchvision",
    tcb_channels: int = TCB_CHANNELS,
) -> RefineDet:
    """Build a network with fresh parameters (spec sections 2 to 5), in training mode.

    ``backbone``: "vgg16", "resnet101", "squeezenet" or "timm:NAME". ``size``: side, or (height, width), of the input
    in pixels, multiples of 64. ``num_classes`` counts the background; ``classes`` names the foreground classes, and
    then ``num_classes`` may be left out. ``preset``: "official", "paper" or a Preset. ``weights``: ImageNet weights
    for the backbone (see its ``load_pretrained``); ``weights_input``: what they read, "torchvision" (RGB in 0..1,
    standardised) or "caffe" (BGR in 0..255 minus the mean). ``tcb_channels``: width of the transfer connection blocks,
    256 in the paper. Raises InputError for a bad argument and CheckpointError for a bad weights file.
    """
    height_width = parse_size((size, size) if isinstance(size, Integral) else size)
    if tcb_channels < 1:
        raise InputError(f"tcb_channels is {tcb_channels}; give at least 1 (256 in the paper)")
    names = _class_names(num_classes, classes)
    features = make_backbone(backbone)
    config = ModelConfig(backbone, height_width, names, get_preset(preset), features.preprocessing, tcb_channels)
    model = RefineDet(config, features)
    if weights is not None:
        features.load_pretrained(weights, weights_input)
    return model


def from_config(config: ModelConfig) -> RefineDet:
    """Build the network of ``config`` with fresh parameters."""
    parse_size(config.size)
    return RefineDet(config, make_backbone(config.backbone))


def make_backbone(name: str) -> Backbone:
    """Make the backbone of that name; InputError if there is none."""
    from refinedet.models.backbones.resnet import ResNet101
    from refinedet.models.backbones.squeezenet import SqueezeNet
    from refinedet.models.backbones.vgg import VGG16

    kinds: dict[str, Callable[[], Backbone]] = {"vgg16": VGG16, "resnet101": ResNet101, "squeezenet": SqueezeNet}
    if isinstance(name, str) and name.startswith("timm:"):
        from refinedet.models.backbones.timm import TimmBackbone

        return TimmBackbone(name.removeprefix("timm:"))
    if name not in kinds:
        raise InputError(f"backbone is {name!r}; choose {', '.join(kinds)} or timm:NAME")
    return kinds[name]()


def _class_names(num_classes: int | None, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        if not isinstance(num_classes, Integral) or num_classes < 2:
            raise InputError(f"num_classes is {num_classes!r}; give at least 2 (background and one class), or classes")
        return tuple(f"class{label}" for label in range(1, num_classes))
    if isinstance(classes, str) or not classes or len(set(classes)) != len(classes):
        raise InputError(f"classes is {classes!r}; give a sequence of different names, without the background")
    if num_classes not in (None, len(classes) + 1):
        raise InputError(
            f"num_classes is {num_classes}, but there are {len(classes)} classes and the background; "
            f"give {len(classes) + 1} or leave it out"
        )
    return tuple(classes)


def caffe_multipliers(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning-rate and weight-decay multipliers of every parameter, by name (spec sections 2 and 3).

    Biases of convolutions and deconvolutions: (2, 0). All else, weights, factors of L2Norm and both parameters of
    batch normalisation: (1, 1).
    """
    biases = {
        f"{name}.bias" for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    }
    return {name: (2.0, 0.0) if name in biases else (1.0, 1.0) for name, _ in model.named_parameters()}
