"""Training recipes: what they can say, with bounds and defaults. `read` makes them from TOML files."""

import dataclasses
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from refinedet.augmentation import AugmentConfig
from refinedet.choices import DATA_FORMATS, MAX_SIDE, METRICS, SIZE_STEP, WEIGHTS_INPUTS
from refinedet.files import is_utf8
from refinedet.presets import PRESETS, Preset
from refinedet.protocols import Protocol


def _setting(
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """A recipe field with its bounds: low <= value <= high and above < value < below, item by item for a list."""
    bounds = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    return field(default=default, metadata=bounds)


@dataclass(frozen=True)
class ModelRecipe:
    """Which network. ``weights`` is the backbone's pretrained file or a refinedet checkpoint (fine-tuning)."""

    backbone: str
    size: int | tuple[int, int] = _setting(320, low=SIZE_STEP, high=MAX_SIDE)  # side, or [height, width], pixels
    preset: str = _setting("official", choices=tuple(PRESETS))
    objectness_threshold: float | None = _setting(None, low=0.0, high=1.0)  # 1 - theta; None = the preset's
    nms_iou: float | None = _setting(None, low=0.0, high=1.0)  # between detections of a class; None = the preset's
    cascade: bool = True  # the ablations of the paper's Table 2
    tcb: bool = True
    tcb_channels: int = _setting(256, low=1, high=4096)
    anchor_ratio: float = _setting(2.0, low=1.0, high=16.0)  # width / height of the wide anchors; more for thin objects
    weights: str | None = None
    # What a backbone file reads; not a checkpoint's.
    weights_input: str = _setting(WEIGHTS_INPUTS[0], choices=WEIGHTS_INPUTS)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def full_preset(self) -> Preset:
        """The preset with this recipe's changes."""
        changes: dict[str, Any] = {"cascade": self.cascade, "tcb": self.tcb}
        for name in ("objectness_threshold", "nms_iou"):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        return dataclasses.replace(PRESETS[self.preset], **changes)


@dataclass(frozen=True)
class DataRecipe:
    """Which images. A split is "NAME", or "FOLDER/NAME" for a data set in a folder of the root; a list is joined."""

    train_split: str | tuple[str, ...] = "train"
    test_split: str = "test"
    format: str | None = _setting(None, choices=DATA_FORMATS)  # None = recognised by the folder's content
    root: str | None = None  # usually given on the command line
    classes: tuple[str, ...] | None = None  # None = those of the annotations
    use_difficult: bool = True  # train on VOC "difficult" objects and COCO crowds (spec 7.1)
    cache: bool = False  # keep the decoded images in memory
    allow_outside: bool = False  # annotations and splits may name files that are not in the data folder

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The training splits as a tuple."""
        return (self.train_split,) if isinstance(self.train_split, str) else self.train_split


@dataclass(frozen=True)
class TrainRecipe:
    """How to optimise (spec 9.1). Steps are optimiser steps; ``batch_size`` is the number of images of each."""

    steps: int = _setting(low=1)
    batch_size: int = _setting(32, low=1)
    lr: float = _setting(1e-3, above=0.0, high=1e12)
    momentum: float = _setting(0.9, low=0.0, below=1.0)
    weight_decay: float = _setting(5e-4, low=0.0, high=1e3)
    milestones: tuple[int, ...] = _setting((), low=1)
    gamma: float = _setting(0.1, above=0.0, high=1.0)
    warmup_steps: int = _setting(0, low=0)
    warmup_factor: float = _setting(0.0, low=0.0, high=1.0)
    backbone_lr_mult: float = _setting(1.0, low=0.0, high=1e3)  # 1 = official
    clip_norm: float = _setting(0.0, low=0.0)  # largest norm of the whole gradient; 0 = off
    normalize_groups: int = _setting(1, low=1)  # GPUs to emulate in the loss's normaliser (spec 7.4)
    ema_decay: float = _setting(0.0, low=0.0, below=1.0)  # moving average of the weights; 0 = off
    amp: bool = False
    half_checkpoint: bool = False  # store the final model's convolutions as float16
    seed: int = _setting(0, low=0)
    workers: int = _setting(2, low=0, high=1024)
    checkpoint_every: int = _setting(1000, low=1)
    log_every: int = _setting(10, low=1)


@dataclass(frozen=True)
class EvaluateRecipe:
    """Evaluation on the test split every so many steps and at the end; ``every`` 0 = never."""

    every: int = _setting(0, low=0)
    metric: str = _setting("voc", choices=METRICS)
    protocol: Protocol | None = None  # how images are tested; None = once, at model.size, with the preset's thresholds
    batch_size: int = _setting(8, low=1)


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training run; ``name`` is the file's, the other fields are its sections."""

    name: str
    model: ModelRecipe
    data: DataRecipe
    train: TrainRecipe
    augment: AugmentConfig
    evaluate: EvaluateRecipe

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every setting of every section but those that are None; `read.parse_recipe` gives the same recipe back."""
        sections = {section: _values(getattr(self, section)) for section in SECTIONS}
        return {s: {k: v for k, v in values.items() if v is not None} for s, values in sections.items()}

    def to_toml(self) -> str:
        """`to_dict` of the `writable` recipe as TOML."""
        return "\n".join(
            "".join([f"[{section}]\n", *(f"{key} = {_toml(value)}\n" for key, value in values.items())])
            for section, values in self.writable().to_dict().items()
        )

    def writable(self) -> "Recipe":
        """The recipe as a file can hold it: a path whose name is not UTF-8 is left out, and is to be given again."""
        data, model = self.data, self.model
        if not is_utf8(data.root or ""):
            data = dataclasses.replace(data, root=None)
        if not is_utf8(model.weights or ""):
            model = dataclasses.replace(model, weights=None)
        return dataclasses.replace(self, data=data, model=model)

    def without_folders(self) -> "Recipe":
        """The recipe as it goes with a model to other machines: no data folder, only the name of the weights file."""
        weights = self.model.weights and Path(self.model.weights).name
        return dataclasses.replace(
            self,
            data=dataclasses.replace(self.data, root=None),
            model=dataclasses.replace(self.model, weights=weights),
        )


SECTIONS: dict[str, type] = {
    "model": ModelRecipe,
    "data": DataRecipe,
    "train": TrainRecipe,
    "augment": AugmentConfig,
    "evaluate": EvaluateRecipe,
}


def _values(section: Any) -> dict[str, Any]:
    values = {f.name: getattr(section, f.name) for f in fields(section)}
    return {name: value.to_toml() if isinstance(value, Protocol) else value for name, value in values.items()}


def _toml(value: Any) -> str:
    """Tables in one line; of strings, numbers and booleans the JSON text, but for one character that TOML escapes."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def differences(old: Recipe, new: Recipe) -> dict[str, str]:
    """The settings in which two recipes differ: "section.key" to "old value, now new value"."""
    return {
        f"{section}.{f.name}": f"{before!r}, now {after!r}"
        for section, kind in SECTIONS.items()
        for f in fields(kind)
        if (before := getattr(getattr(old, section), f.name)) != (after := getattr(getattr(new, section), f.name))
    }
