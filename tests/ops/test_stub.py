"""refinedet/_C.pyi against the compiled module: the same functions, and launchers that say what they take."""

import ast
import re
from types import ModuleType
from typing import Any

from support.paths import ROOT

from refinedet.ops import extension

STUB = ast.parse((ROOT / "refinedet" / "_C.pyi").read_text())
CLASSES = {item.name: item.body for item in STUB.body if isinstance(item, ast.ClassDef)}
CUDA_FIELDS = {"nvcc", "nvcc_flags", "architectures"}
CUDA_FUNCTIONS = {"kernel_resources", "driver_version"}


def functions(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}


def described(launcher: Any) -> list[str]:
    """Arguments by the docstring: "type, levels = [(...), ...], workspace unless it has no bytes, stream."."""
    text = launcher.__doc__.strip().splitlines()[-1].removesuffix(".")
    return re.sub(r" = \[.*\]| unless it has no bytes", "", text).split(", ")


def test_functions():
    module, names = extension.load(), {item.name for item in STUB.body if isinstance(item, ast.FunctionDef)}
    fields = {item.target.id for item in CLASSES["BuildInfo"] if isinstance(item, ast.AnnAssign)}
    if not extension.has_cuda():
        names, fields = names - CUDA_FUNCTIONS, fields - CUDA_FIELDS
    assert functions(module).keys() == names
    assert set(module.build_info()) == fields


def sizes_of(launcher: Any) -> dict[str, int]:
    """The arguments that a launcher asks for, one after the other."""
    sizes: dict[str, int] = {}
    while True:
        try:
            assert launcher(**sizes) >= 0
            return sizes
        except TypeError as error:
            (missing,) = re.findall(r"lacks the argument '(\w+)'", str(error))
            assert missing not in sizes
            sizes[missing] = 2


def test_launchers():
    """Each operator has two; sizes are among the fields that the docstring of the launcher lists."""
    launchers = functions(extension.load().launchers) if extension.has_cuda() else {}
    operators = [path.name for path in (ROOT / "csrc" / "ops").iterdir()] if extension.has_cuda() else []
    assert launchers.keys() == {name for op in operators for name in (op, f"{op}_workspace_bytes")}
    for op in operators:
        assert set(sizes_of(launchers[f"{op}_workspace_bytes"])) < set(described(launchers[op]))
