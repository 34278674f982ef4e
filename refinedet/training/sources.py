"""Where the settings of a recipe come from: its TOML file, the recipes it extends, and the command line.

Nothing heavy is imported: the command line lists the shipped recipes and reads ``--set`` before torch is loaded.
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from refinedet.errors import RecipeError, show
from refinedet.files import RECIPES, read_text
from refinedet.parsing import parse_toml

EXTENDS = "extends"
_TOML_STARTS = "\"'[{"  # of a text, a list, a table; what else is not TOML is a bare word


class Layer(NamedTuple):
    """The settings of one source, not checked yet. Of several layers the last one that has a key gives its value."""

    content: Mapping[str, Any]  # section -> key -> value
    source: str  # names it in errors: a file, or an option of the command line
    folder: Path = Path()  # file names in it are relative to this folder


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def resolve(path_or_name: str | os.PathLike[str], folder: Path = Path()) -> Path:
    """The TOML file of a recipe, from a path (relative to ``folder``) or the name of a shipped one.

    Raises:
        RecipeError: there is no such file or name; the message has the nearest name.
    """
    path = folder / path_or_name
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return path
    name, names = Path(path_or_name), recipe_names()
    if str(name) in names:
        return RECIPES / f"{name}.toml"
    shown = show(str(path_or_name))
    if os.path.isdir(path):
        raise RecipeError(f"recipe {shown} is a folder; give a TOML file or one of: {', '.join(names)}")
    known = {**dict(zip(names, names, strict=True)), **_neighbours(name, folder)}
    near = get_close_matches(name.stem, known, n=1, cutoff=0.5)
    hint = f" did you mean {known[near[0]]!r}?" if near else ""
    raise RecipeError(f"there is no recipe {shown};{hint} give a TOML file or one of: {', '.join(names)}")


def read_layers(path: Path) -> list[Layer]:
    """The layers of a recipe's file: those of the recipe that it extends, then its own.

    Raises:
        RecipeError: a file is not TOML, or extends what is not there or itself.
    """
    layers: list[Layer] = []
    chain: list[Path] = []
    while True:
        if any(path.samefile(other) for other in chain):
            circle = " extends ".join(map(str, [*chain, path]))
            raise RecipeError(f"recipes extend each other in a circle: {circle}; take one `{EXTENDS}` out")
        chain.append(path)
        content = _read_toml(path)
        extended = content.pop(EXTENDS, None)
        layers.insert(0, Layer(content, str(path), path.parent))
        if extended is None:
            return layers
        path = _resolve_extended(extended, path)


def setting(name: str, value: Any, source: str) -> Layer:
    """The layer of one setting ``name``, "section.key"."""
    section, _, key = name.partition(".")
    return Layer({section: {key: value}}, source)


def parse_setting(text: str, source: str = "--set") -> Layer:
    """The layer of one setting "section.key=value", whose value is read as TOML; a bare word is a text.

    Raises:
        RecipeError: it has another form, or its value is no TOML.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    section, _, key = name.partition(".")
    if not (equals and section and key):
        raise RecipeError(f"{source} is {show(text)}; give SECTION.KEY=VALUE, such as train.lr=1e-3")
    return setting(name, _parse_value(value, f"{source}: {name}"), source)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path))
    except ValueError as error:
        raise RecipeError(f"{path} cannot be read as TOML: {error}") from error


def _neighbours(name: Path, folder: Path) -> dict[str, str]:
    """The TOML files in the folder of a file that is not there: their stems, and what would have given them."""
    try:
        files = [Path(file) for file in os.listdir((folder / name).parent) if file.endswith(".toml")]
    except (OSError, ValueError):
        return {}
    return {file.stem: str(name.parent / file) for file in files}


def _resolve_extended(extended: Any, path: Path) -> Path:
    if not isinstance(extended, str):
        raise RecipeError(f"{path}: {EXTENDS} is {show(extended)}; it must be a text, the name or file of a recipe")
    try:
        return resolve(extended, path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: {EXTENDS} is {show(extended)}: {error}") from None


def _parse_value(text: str, where: str) -> Any:
    try:
        content = parse_toml(f"value = {text}")
    except ValueError as error:
        if text and text[0] not in _TOML_STARTS:
            return text
        raise RecipeError(f"{where} is {show(text)}, which cannot be read as TOML: {error}") from None
    if len(content) > 1:  # a line of its own after the value
        raise RecipeError(f"{where} is {show(text)}; give one value")
    return content["value"]
