"""What a network is made of, as text that goes with its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from refinedet.anchors import RATIO, check_ratio, parse_size
from refinedet.errors import CheckpointError, InputError, show
from refinedet.parsing import parse_json
from refinedet.preprocessing import Preprocessing
from refinedet.presets import OFFICIAL, Preset

TCB_CHANNELS = 256  # spec section 4
MOST_TCB_CHANNELS = 8192


@dataclass(frozen=True)
class ModelConfig:
    """All it takes to build the network again and to use it; kept with every checkpoint.

    Raises InputError for a value out of range, so that each one that there is can be saved and loaded.
    """

    backbone: str  # "vgg16", "resnet101", "squeezenet" or "timm:NAME"
    size: tuple[int, int]  # height, width of the input in pixels, multiples of 64
    classes: tuple[str, ...]  # foreground names: label k has name classes[k - 1]
    preset: Preset = OFFICIAL
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    tcb_channels: int = TCB_CHANNELS
    anchor_ratio: float = RATIO  # width / height of the wide anchors; the tall ones have its inverse
    clip_anchors: bool = False  # to the image, as the luuuyi port does (spec section 0, row 16)

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str):
            raise InputError(f"backbone is {show(self.backbone)}; give a name")
        parse_size(self.size)
        check_classes(self.classes)
        for name, kind in (("preset", Preset), ("preprocessing", Preprocessing)):
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(f"{name} is {show(value)}; give a {kind.__name__}")
        if type(self.tcb_channels) is not int or not 1 <= self.tcb_channels <= MOST_TCB_CHANNELS:
            raise InputError(
                f"tcb_channels is {show(self.tcb_channels)}; give a whole number from 1 to {MOST_TCB_CHANNELS} "
                "(256 in the paper)"
            )
        check_ratio(self.anchor_ratio)
        if type(self.clip_anchors) is not bool:
            raise InputError(f"clip_anchors is {show(self.clip_anchors)}; give True or False")

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
            values = parse_json(text)
            return cls(
                backbone=values["backbone"],
                size=_items(values, "size", int),
                classes=_items(values, "classes", str),
                preset=Preset(**_tuples(values["preset"])),
                preprocessing=Preprocessing(**_tuples(values["preprocessing"])),
                tcb_channels=values["tcb_channels"],
                anchor_ratio=values.get("anchor_ratio", RATIO),  # older files have none
                clip_anchors=values.get("clip_anchors", False),  # older files have none
            )
        except InputError as error:
            raise CheckpointError(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"not a model configuration ({show(error)}): {show(text)}; use a checkpoint of this package"
            ) from error


def check_classes(classes: Sequence[str]) -> None:
    """Raise InputError unless ``classes`` are different texts that a file can hold."""
    if isinstance(classes, str) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise InputError(f"classes is {show(classes)}; give a sequence of names, without the background")
    if len(set(classes)) != len(classes):
        raise InputError(f"classes is {show(classes)}; give a sequence of different names, without the background")
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"class name {show(name)} holds half of a surrogate pair; give text") from None


def _items(values: dict[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    """The list ``values[key]``, whose items are of that ``kind``, as a tuple: a text would be taken apart unnoticed."""
    items = values[key]
    if not isinstance(items, list) or not items or any(type(item) is not kind for item in items):
        raise TypeError(f"{key} is {show(items)}, not a list of {kind.__name__}")
    return tuple(items)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
