"""Strict reading of recipes: from the layers of their settings to frozen dataclasses, with every mistake named.

Nothing heavy is imported: a mistake is told before torch is loaded.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from refinedet.augmentation import AugmentConfig
from refinedet.choices import SIZE_STEP, check_backbone
from refinedet.classes import COCO_CLASSES, VOC_CLASSES
from refinedet.errors import InputError, RecipeError, show, suggestion
from refinedet.files import is_utf8, read_text
from refinedet.protocols import Protocol, get_protocol, parse_protocol
from refinedet.training.recipe import SECTIONS, Recipe
from refinedet.training.sources import Layer, read_layers, resolve

_CLASS_LISTS = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}
_PATHS = ("data.root", "model.weights")  # the texts that need not be UTF-8
_MOST_CLASSES = 65_535
_MOST_BATCH_BYTES = 16 << 30  # float32 pixels of a batch
_LARGEST_INT = 2**63 - 1  # as in TOML


def read_recipe(path_or_name: str | os.PathLike[str], settings: Sequence[Layer] = ()) -> Recipe:
    """Read a recipe from a TOML file or, by name, from those of the package; ``settings`` go before its own.

    Raises:
        RecipeError: no such recipe; not TOML; a circle of ``extends``; an unknown key (the message names the nearest
            valid one); a value of the wrong type or out of range. The file that holds the bad value is named.
    """
    path = resolve(path_or_name)
    return _parse_layers([*read_layers(path), *settings], name=path.stem, source=str(path))


def parse_recipe(content: Mapping[str, Any], *, name: str, source: str) -> Recipe:
    """Recipe of a parsed TOML document that extends none; ``source`` names it in errors.

    Raises:
        RecipeError: as `read_recipe`.
    """
    return _parse_layers([Layer(content, source)], name=name, source=source)


def with_settings(recipe: Recipe, settings: Sequence[Layer]) -> Recipe:
    """The recipe with other settings in place of its own; raises as `read_recipe`."""
    own = Layer(recipe.to_dict(), f"recipe {recipe.name}")
    return _parse_layers([own, *settings], name=recipe.name, source=own.source)


def _parse_layers(layers: Sequence[Layer], *, name: str, source: str) -> Recipe:
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, own in _parse_layer(layer).items():
            values[section].update(own)
    for section, kind in SECTIONS.items():
        for f in fields(kind):
            if f.name not in values[section] and f.default is dataclasses.MISSING:
                raise RecipeError(f"{source}: {section}.{f.name} is missing; every recipe must set it")
    recipe = Recipe(name=name, **{section: kind(**values[section]) for section, kind in SECTIONS.items()})
    _check_consistency(recipe, layers, source)
    return recipe


def _parse_layer(layer: Layer) -> dict[str, dict[str, Any]]:
    """The settings of a layer in the types of the fields, section by section."""
    _check_keys(layer.content, SECTIONS, f"{layer.source}: section ")
    return {section: _parse_section(section, values, layer) for section, values in layer.content.items()}


def _parse_section(section: str, values: Any, layer: Layer) -> dict[str, Any]:
    where = f"{layer.source}: {section}"
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} is {show(values)}; it must be a section, [{section}]")
    if section == "evaluate":
        values = _in_todays_words(values)
    known = {f.name: f for f in fields(SECTIONS[section])}
    _check_keys(values, known, f"{where}.")
    if section == "data" and isinstance(values.get("classes"), str):
        values = {**values, "classes": read_classes(values["classes"], layer.folder, f"{where}.classes")}
    if section == "evaluate" and "protocol" in values:
        values = {**values, "protocol": _read_protocol(values["protocol"], layer.folder, where)}
    settings = {key: _parse_value(known[key], value, f"{where}.{key}") for key, value in values.items()}
    if section == "augment":
        try:
            AugmentConfig(**settings)  # which checks each of its values by itself
        except InputError as error:
            raise RecipeError(f"{layer.source}: {error}") from error
    return settings


def _in_todays_words(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a run that began when ``use_07_metric`` was a setting of its own: such runs still resume."""
    today = dict(evaluate)
    if today.pop("use_07_metric", None) is True and today.get("metric", "voc") == "voc":
        today["metric"] = "voc07"
    return today


def _check_keys(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key in values:
        if key not in known:
            shown = key if key.isidentifier() and len(key) < 80 else show(key)
            raise RecipeError(f"{where}{shown} is unknown;{suggestion(key, known)} valid are {', '.join(known)}")


def read_classes(text: str, folder: Path, where: str) -> Sequence[str]:
    """The classes that one text stands for: those of a benchmark, or those of a file with one name per line."""
    if text in _CLASS_LISTS:
        return _CLASS_LISTS[text]
    path = folder / text
    if not os.path.isfile(path):
        raise RecipeError(
            f"{where} is {show(text)}, and there is no file {show(str(path))}; give "
            f"{' or '.join(map(repr, _CLASS_LISTS))}, a file with one name per line, or a list of names"
        )
    try:
        lines = read_text(path).splitlines()
    except ValueError as error:
        raise RecipeError(f"{where} is {text!r}, but {path} cannot be read as text: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise RecipeError(f"{where} is {text!r}, but {path} is empty; write one name per line")
    return names


def _read_protocol(value: Any, folder: Path, where: str) -> Protocol:
    """The protocol that a text stands for, a shipped one's name or a file, or that a table says."""
    try:
        return parse_protocol(value, "own") if isinstance(value, Mapping) else get_protocol(value, folder)
    except InputError as error:
        raise RecipeError(f"{where}: {error}") from None


def _parse_value(f: dataclasses.Field[Any], value: Any, where: str) -> Any:
    for item in value if isinstance(value, (list, tuple)) else (value,):
        _check_item(item, where)
    alternatives = get_args(f.type) if get_origin(f.type) is UnionType else (f.type,)
    options = [option for option in alternatives if option is not NoneType]
    converted = next((c for option in options if (c := _convert(option, value)) is not None), None)
    if converted is None:
        raise RecipeError(f"{where} is {show(value)}; it must be {' or '.join(map(_describe, options))}")
    if f.metadata:
        for item in converted if isinstance(converted, tuple) else (converted,):
            _check_bounds(item, f.metadata, where)
    return converted


def _check_item(item: Any, where: str) -> None:
    """What no setting may be, whatever its type."""
    if isinstance(item, int) and abs(item) > _LARGEST_INT:
        raise RecipeError(f"{where} is {show(item)}; whole numbers go up to 2**63 - 1")
    if isinstance(item, str) and "\0" in item:
        raise RecipeError(f"{where} is {show(item)}, which holds a NUL character; take it out")
    if isinstance(item, str) and not is_utf8(item) and not where.endswith(_PATHS):
        raise RecipeError(f"{where} is {show(item)}, which is not UTF-8; give it in UTF-8")


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


def _check_consistency(recipe: Recipe, layers: Sequence[Layer], source: str) -> None:
    """Bounds that tie several settings together."""

    def where(section: str, *keys: str) -> str:
        """The last source that sets one of the keys."""
        setters = [layer.source for layer in layers if not layer.content.get(section, {}).keys().isdisjoint(keys)]
        return f"{setters[-1] if setters else source}: {section}.{keys[0]}"

    train = recipe.train
    try:
        check_backbone(recipe.model.backbone)
    except InputError as error:
        raise RecipeError(f"{where('model', 'backbone').removesuffix('backbone')}{error}") from None
    if any(side % SIZE_STEP for side in recipe.model.input_size):
        size = where("model", "size")
        raise RecipeError(f"{size} is {recipe.model.size}; sides must be multiples of {SIZE_STEP}")
    if list(train.milestones) != sorted(set(train.milestones)):
        milestones = where("train", "milestones")
        raise RecipeError(f"{milestones} is {list(train.milestones)}; give them in ascending order")
    if train.batch_size % train.normalize_groups:
        raise RecipeError(
            f"{where('train', 'batch_size', 'normalize_groups')} is {train.batch_size}; give a multiple of "
            f"train.normalize_groups, {train.normalize_groups}"
        )
    for section, batch_size in (("train", train.batch_size), ("evaluate", recipe.evaluate.batch_size)):
        if 12 * batch_size * math.prod(recipe.model.input_size) > _MOST_BATCH_BYTES:
            raise RecipeError(
                f"{where(section, 'batch_size')} is {batch_size}, whose images of model.size {recipe.model.size} take "
                f"more than {_MOST_BATCH_BYTES >> 30} GiB; give fewer or smaller ones"
            )
    for key, splits in (("train_split", recipe.data.train_splits), ("test_split", (recipe.data.test_split,))):
        if not all(split.rpartition("/")[2].strip() for split in splits or ("",)):
            raise RecipeError(f"{where('data', key)} is empty; name at least one split")
    if recipe.data.classes is not None:
        _check_classes(recipe.data.classes, where("data", "classes"))


def _check_classes(names: Sequence[str], where: str) -> None:
    """Names that can be told apart, of what there is to detect."""
    if not names:
        raise RecipeError(f"{where} is empty; name at least one class")
    if len(names) > _MOST_CLASSES:
        raise RecipeError(f"{where} has {len(names)} names; give at most {_MOST_CLASSES}")
    seen: set[str] = set()
    for name in names:
        if not name.isprintable() or not name.strip():
            raise RecipeError(f"{where} has {show(name)}; a name has letters, and no control characters")
        if name in seen:
            raise RecipeError(f"{where} has {show(name)} twice; name each class once")
        if name.lower() == "background":
            raise RecipeError(f"{where} has {show(name)}, which is no class to detect; take it out")
        seen.add(name)
