"""What a network is made of, as text that goes with its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from refinedet.errors import CheckpointError
from refinedet.preprocessing import Preprocessing
from refinedet.presets import OFFICIAL, Preset

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
