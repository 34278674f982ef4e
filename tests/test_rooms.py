"""The rooms of the package: what may import what. The same table stands in CONTRIBUTING.md.

Read from the files, not by importing them: imports inside functions, under ``TYPE_CHECKING`` and names of modules in
strings (lazy maps, ``import_module``) count like any other. A room may also import itself; no circle is allowed there.
"""

import ast
import re
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.paths import ROOT

WORDS = {
    "anchors",
    "augmentation",
    "boxes",
    "choices",
    "classes",
    "errors",
    "files",
    "formats",
    "interchange",
    "interrupt",
    "parsing",
    "preprocessing",
    "presets",
    "progress",
    "protocols",
    "records",
    "silence",
}

# From the lowest room to the highest: the room, what is done there, and the rooms it may import.
ROOMS = {
    "words": ("what everyone speaks of", set()),
    "ops": ("the operators", {"words"}),
    "models": ("the networks", {"words", "ops"}),
    "data": ("data sets", {"words", "ops"}),
    "weights": ("checkpoints and foreign weights", {"words", "ops", "models"}),
    "runtimes": ("exported files, and what runs them", {"words", "ops", "models"}),
    "inference": ("from images to objects", {"words", "ops", "models", "data", "weights", "runtimes"}),
    "profiling": (
        "what kernels and networks need and cost",
        {"words", "ops", "models", "data", "weights", "runtimes", "inference"},
    ),
    "evaluation": ("from objects to metrics", {"words", "ops", "models", "data", "weights", "inference"}),
    "exporting": (
        "from a model to a file of another runtime",
        {"words", "ops", "models", "data", "weights", "runtimes", "inference", "profiling", "evaluation"},
    ),
    "training": ("from a recipe to weights", {"words", "ops", "models", "data", "weights", "inference", "evaluation"}),
    "refinedet": (
        "the names that users import",
        {"words", "ops", "models", "data", "weights", "inference", "exporting", "training"},
    ),
    "commands": ("the command line", {"*"}),
}


def room(module: str) -> str:
    """The room of ``refinedet.x.y``: that of x. The package's own ``__init__`` is a room too, with its lazy names."""
    _, _, rest = module.partition(".")
    top = rest.split(".")[0]
    if top in WORDS:
        return "words"
    return {"": "refinedet", "__main__": "commands"}.get(top, top)


def find_modules(package: Path) -> dict[str, Path]:
    """Dotted name: file, of every module of a package; a package itself stands for its ``__init__``."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, module: str, modules: Collection[str]) -> set[str]:
    """Which of ``modules`` the module in ``file`` imports."""

    def provider(origin: str, name: str) -> str:
        """What "from origin import name" imports: the module origin.name if there is one, else origin."""
        return f"{origin}.{name}" if f"{origin}.{name}" in modules else origin

    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + (file.name == "__init__.py")]
            origin = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            # The version stands in the first lines of the package: whoever wants it waits for nobody.
            found |= {provider(origin, alias.name) for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value if "." in node.value else "")  # "refinedet" alone is also just a word
    return found & set(modules) - {module}


def import_graph(package: Path) -> dict[str, set[str]]:
    """Which modules of the package each of its modules imports."""
    modules = find_modules(package)
    return {module: imports(file, module, modules) for module, file in modules.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, each the next one; empty when there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph(ROOT / "refinedet")


def test_the_table_goes_upwards():
    below = set()
    for name, (_, imports) in ROOMS.items():
        assert imports <= below | {"*"}, f"{name} imports a room that stands at its height or above"
        below.add(name)


def test_every_module_has_a_room(graph):
    homeless = [module for module in graph if room(module) not in ROOMS]
    assert not homeless, f"{homeless}: no room of this name; move the file or add the room to the table"


def test_no_import_from_a_lower_room_to_a_higher_one(graph):
    wrong = []
    for module, targets in graph.items():
        allowed = ROOMS[room(module)][1] | {room(module)}
        wrong += [f"{module} imports {target}" for target in targets if not {room(target), "*"} & allowed]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circles(graph):
    assert sum(map(len, graph.values())) > 100  # the graph is not empty
    assert circle(graph) == []


def test_contributing_shows_the_same_table():
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|:]*?)(?:: .*?)? \| (.*?) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    everything = {"*": "everything"}
    assert {name: (done, set(re.findall(r"\w+", imports))) for name, done, imports in rows} == {
        name: (done, {everything.get(other, other) for other in imports}) for name, (done, imports) in ROOMS.items()
    }


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("import house.kitchen", "house.kitchen"),
        ("from house.kitchen import spoon", "house.kitchen"),
        ("from house import kitchen", "house.kitchen"),
        ("from . import kitchen", "house.kitchen"),
        ("from .kitchen import spoon", "house.kitchen"),
        ("def cook():\n    from house.kitchen import spoon", "house.kitchen"),
        ("if TYPE_CHECKING:\n    from house.kitchen import spoon", "house.kitchen"),
        ("HOMES = {'spoon': 'house.kitchen'}", "house.kitchen"),
        ("import_module('house.kitchen')", "house.kitchen"),
        ("from house import table", "house"),
        ("from house import __version__", None),
        ("import os", None),
    ],
)
def test_kinds_of_imports(tmp_path, statement, target):
    house = tmp_path / "house"
    house.mkdir()
    for name, text in {"__init__": "", "kitchen": "spoon = 1", "cellar": statement}.items():
        (house / f"{name}.py").write_text(text)
    assert import_graph(house)["house.cellar"] == ({target} if target else set())


def test_a_circle_is_found(tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    for name, text in {
        "__init__": "from house.attic import a",
        "attic": "def f():\n    from house.cellar import c",
        "cellar": "if TYPE_CHECKING:\n    from house import attic",
    }.items():
        (house / f"{name}.py").write_text(text)
    found = circle(import_graph(house))
    assert found in (["house.attic", "house.cellar", "house.attic"], ["house.cellar", "house.attic", "house.cellar"])
