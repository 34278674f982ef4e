"""refinedet/_C.pyi against the compiled module: the same functions with the same parameters."""

import ast
import re
from types import ModuleType
from typing import Any

import pytest
from support.paths import ROOT

from refinedet.ops import extension

STUB = ast.parse((ROOT / "refinedet" / "_C.pyi").read_text())
CLASSES = {item.name: item.body for item in STUB.body if isinstance(item, ast.ClassDef)}
CUDA_FIELDS = {"nvcc", "nvcc_flags", "architectures"}
CUDA_FUNCTIONS = {"kernel_resources", "driver_version"}


def keywords(body: list[ast.stmt]) -> dict[str, list[str]]:
    """Functions of the stub with their parameters, which have to be given by name."""
    functions = [item for item in body if isinstance(item, ast.FunctionDef)]
    return {function.name: [argument.arg for argument in function.args.kwonlyargs] for function in functions}


def functions(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}


def described(launcher: Any) -> list[str]:
    """Parameters by the docstring: "type, levels = [(...), ...], workspace unless it has no bytes, stream."."""
    text = launcher.__doc__.strip().splitlines()[-1].removesuffix(".")
    return re.sub(r" = \[.*\]| unless it has no bytes", "", text).split(", ")


def test_functions():
    module, names = extension.load(), set(keywords(STUB.body))
    fields = {item.target.id for item in CLASSES["BuildInfo"] if isinstance(item, ast.AnnAssign)}
    if not extension.has_cuda():
        names, fields = names - CUDA_FUNCTIONS, fields - CUDA_FIELDS
    assert functions(module).keys() == names
    assert set(module.build_info()) == fields


def test_launchers():
    stub = keywords(CLASSES["_Launchers"])
    launchers = functions(extension.load().launchers) if extension.has_cuda() else {}
    assert launchers.keys() == (stub.keys() if extension.has_cuda() else set())
    for name, launcher in launchers.items():
        if name.endswith("_workspace_bytes"):
            sizes = dict.fromkeys(stub[name], 2)
            assert launcher(**sizes) >= 0
            for missing in sizes:
                with pytest.raises(TypeError, match=missing):
                    launcher(**{size: value for size, value in sizes.items() if size != missing})
        else:
            parameters = described(launcher)
            assert stub[name] in (parameters, [one for one in parameters if one != "workspace"])
