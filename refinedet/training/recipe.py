"""Training recipes: a TOML file, read strictly into frozen dataclasses."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from refinedet.choices import WEIGHTS_INPUTS
from refinedet.data.augment import AugmentConfig
from refinedet.errors import InputError, RecipeError
from refinedet.files import RECIPES
from refinedet.presets import PRESETS, Preset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SIZE_UNIT = 64  # input sides are multiples of the coarsest stride (spec section 2)


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
    size: int | tuple[int, int] = _setting(320, low=SIZE_UNIT)  # side, or [height, width], pixels
    preset: str = _setting("official", choices=tuple(PRESETS))
    objectness_threshold: float | None = _setting(None, low=0.0, high=1.0)  # 1 - theta; None = the preset's
    cascade: bool = True  # the ablations of the paper's Table 2
    tcb: bool = True
    tcb_channels: int = _setting(256, low=1)
    weights: str | None = None
    weights_input: str = _setting(
        "torchvision", choices=WEIGHTS_INPUTS
    )  # what a backbone file reads; not a checkpoint's

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def full_preset(self) -> Preset:
        """The preset with this recipe's changes."""
        changes: dict[str, Any] = {"cascade": self.cascade, "tcb": self.tcb}
        if self.objectness_threshold is not None:
            changes["objectness_threshold"] = self.objectness_threshold
        return dataclasses.replace(PRESETS[self.preset], **changes)


@dataclass(frozen=True)
class DataRecipe:
    """Which images. A split is "NAME", or "FOLDER/NAME" for a data set in a folder of the root; a list is joined."""

    train_split: str | tuple[str, ...] = "train"
    test_split: str = "test"
    format: str | None = _setting(None, choices=("voc", "coco"))  # None = recognised by the folder's content
    root: str | None = None  # usually given on the command line
    classes: tuple[str, ...] | None = None  # None = those of the annotations
    use_difficult: bool = True  # train on VOC "difficult" objects and COCO crowds (spec 7.1)
    cache: bool = False  # keep the decoded images in memory

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The training splits as a tuple."""
        return (self.train_split,) if isinstance(self.train_split, str) else self.train_split


@dataclass(frozen=True)
class TrainRecipe:
    """How to optimise (spec 9.1). Steps are optimiser steps; ``batch_size`` is the number of images of each."""

    steps: int = _setting(low=1)
    batch_size: int = _setting(32, low=1)
    lr: float = _setting(1e-3, above=0.0)
    momentum: float = _setting(0.9, low=0.0, below=1.0)
    weight_decay: float = _setting(5e-4, low=0.0)
    milestones: tuple[int, ...] = _setting((), low=1)
    gamma: float = _setting(0.1, above=0.0, high=1.0)
    warmup_steps: int = _setting(0, low=0)
    warmup_factor: float = _setting(0.0, low=0.0, high=1.0)
    backbone_lr_mult: float = _setting(1.0, low=0.0)  # 1 = official
    clip_norm: float = _setting(0.0, low=0.0)  # largest norm of the whole gradient; 0 = off
    normalize_groups: int = _setting(1, low=1)  # GPUs to emulate in the loss's normaliser (spec 7.4)
    ema_decay: float = _setting(0.0, low=0.0, below=1.0)  # moving average of the weights; 0 = off
    amp: bool = False
    half_checkpoint: bool = False  # store the final model's convolutions as float16
    seed: int = _setting(0, low=0)
    workers: int = _setting(2, low=0)
    checkpoint_every: int = _setting(1000, low=1)
    log_every: int = _setting(10, low=1)


@dataclass(frozen=True)
class EvaluateRecipe:
    """Evaluation on the test split every so many steps and at the end; ``every`` 0 = never."""

    every: int = _setting(0, low=0)
    metric: str = _setting("voc", choices=("voc", "coco"))
    use_07_metric: bool = False  # 11-point AP, as VOC 2007
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
        """Every setting of every section but those that are None; `parse_recipe` gives the same recipe back."""
        sections = {section: dataclasses.asdict(getattr(self, section)) for section in _SECTIONS}
        return {s: {k: v for k, v in values.items() if v is not None} for s, values in sections.items()}

    def to_toml(self) -> str:
        """`to_dict` as TOML."""
        # JSON text of strings, numbers, booleans and flat lists is valid TOML.
        return "\n".join(
            "".join([f"[{section}]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in values.items())])
            for section, values in self.to_dict().items()
        )


_SECTIONS: dict[str, type] = {
    "model": ModelRecipe,
    "data": DataRecipe,
    "train": TrainRecipe,
    "augment": AugmentConfig,
    "evaluate": EvaluateRecipe,
}


def read_recipe(path_or_name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a TOML file or, by name, from those of the package.

    Raises:
        RecipeError: no such recipe; not TOML; an unknown key (the message names the nearest valid one); a value of the
            wrong type or out of range.
    """
    path = _resolve(path_or_name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as TOML: {error}") from error
    return parse_recipe(content, name=path.stem, source=str(path))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def parse_recipe(content: Mapping[str, Any], *, name: str, source: str) -> Recipe:
    """Recipe of a parsed TOML document; ``source`` names it in errors.

    Raises:
        RecipeError: as `read_recipe`.
    """
    _check_keys(content, _SECTIONS, f"{source}: section ")
    recipe = Recipe(name=name, **{s: _parse_section(s, content.get(s, {}), source) for s in _SECTIONS})
    _check_consistency(recipe, source)
    return recipe


def differences(old: Recipe, new: Recipe) -> dict[str, str]:
    """The settings in which two recipes differ: "section.key" to "old value, now new value"."""
    return {
        f"{section}.{f.name}": f"{before!r}, now {after!r}"
        for section, kind in _SECTIONS.items()
        for f in fields(kind)
        if (before := getattr(getattr(old, section), f.name)) != (after := getattr(getattr(new, section), f.name))
    }


def _resolve(path_or_name: str | os.PathLike[str]) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = RECIPES / f"{path.name}.toml"
    if not path.suffix and path.parent == Path(".") and shipped.is_file():
        return shipped
    raise RecipeError(
        f"there is no recipe {str(path)!r};{_suggestion(path.stem, recipe_names())} give a TOML file or one of: "
        f"{', '.join(recipe_names())}"
    )


def _suggestion(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    return f" did you mean {close[0]!r}?" if close else ""


def _check_keys(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key in values:
        if key not in known:
            raise RecipeError(f"{where}{key} is unknown;{_suggestion(key, list(known))} valid are {', '.join(known)}")


def _parse_section(section: str, values: Any, source: str) -> Any:
    if not isinstance(values, Mapping):
        raise RecipeError(f"{source}: {section} is {values!r}; it must be a section, [{section}]")
    known = {f.name: f for f in fields(_SECTIONS[section])}
    _check_keys(values, known, f"{source}: {section}.")
    for key, f in known.items():
        if key not in values and f.default is dataclasses.MISSING:
            raise RecipeError(f"{source}: {section}.{key} is missing; every recipe must set it")
    settings = {key: _parse_value(known[key], value, f"{source}: {section}.{key}") for key, value in values.items()}
    try:
        return _SECTIONS[section](**settings)
    except InputError as error:
        raise RecipeError(f"{source}: {error}") from error


def _parse_value(f: dataclasses.Field[Any], value: Any, where: str) -> Any:
    alternatives = get_args(f.type) if get_origin(f.type) is UnionType else (f.type,)
    options = [option for option in alternatives if option is not NoneType]
    converted = next((c for option in options if (c := _convert(option, value)) is not None), None)
    if converted is None:
        raise RecipeError(f"{where} is {value!r}; it must be {' or '.join(map(_describe, options))}")
    if f.metadata:
        for item in converted if isinstance(converted, tuple) else (converted,):
            _check_bounds(item, f.metadata, where)
    return converted


def _convert(option: Any, value: Any) -> Any:
    """``value`` as ``option`` (str, int, float, bool or a tuple of one of them); None when it is not one."""
    if get_origin(option) is tuple:
        item_type, *others = get_args(option)
        fixed_length = None if others == [...] else 1 + len(others)
        if not isinstance(value, (list, tuple)) or fixed_length not in (None, len(value)):
            return None
        items = tuple(_convert(item_type, item) for item in value)
        return None if None in items else items
    if option is float and type(value) is int:
        return float(value)
    return value if type(value) is option else None  # not isinstance: True is no whole number


_DESCRIPTIONS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _describe(option: Any) -> str:
    if get_origin(option) is not tuple:
        return _DESCRIPTIONS[option]
    item_type, *others = get_args(option)
    length = "items" if others == [...] else f"{1 + len(others)} items"
    return f"a list of {length}, each {_DESCRIPTIONS[item_type]}"


def _check_bounds(value: Any, bounds: Mapping[str, Any], where: str) -> None:
    if bounds["choices"] and value not in bounds["choices"]:
        raise RecipeError(f"{where} is {value!r}; choose one of {', '.join(bounds['choices'])}")
    if isinstance(value, str):
        return
    if not (bounds["low"] <= value <= bounds["high"] and bounds["above"] < value < bounds["below"]):
        signs = {"low": ">=", "above": ">", "high": "<=", "below": "<"}
        limits = " and ".join(f"{sign} {bounds[key]:g}" for key, sign in signs.items() if math.isfinite(bounds[key]))
        raise RecipeError(f"{where} is {value}; it must be {limits} and finite")


def _check_consistency(recipe: Recipe, source: str) -> None:
    """Bounds that tie several settings together."""
    train = recipe.train
    if any(side % SIZE_UNIT for side in recipe.model.input_size):
        raise RecipeError(f"{source}: model.size is {recipe.model.size}; sides must be multiples of {SIZE_UNIT}")
    if list(train.milestones) != sorted(set(train.milestones)):
        raise RecipeError(f"{source}: train.milestones is {list(train.milestones)}; give them in ascending order")
    if train.batch_size % train.normalize_groups:
        raise RecipeError(
            f"{source}: train.batch_size is {train.batch_size}; give a multiple of train.normalize_groups, "
            f"{train.normalize_groups}"
        )
    if not recipe.data.train_splits:
        raise RecipeError(f"{source}: data.train_split is empty; name at least one split")
