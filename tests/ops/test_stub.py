"""refinedet/_C.pyi against the compiled module: the same functions with the same parameters."""

import ast
from collections.abc import Iterable
from types import ModuleType

from support.paths import ROOT

from refinedet.ops import extension

STUB = ast.parse((ROOT / "refinedet" / "_C.pyi").read_text())
CLASSES = {item.name: item.body for item in STUB.body if isinstance(item, ast.ClassDef)}
CUDA_FIELDS = {"nvcc", "nvcc_flags", "architectures"}
CUDA_FUNCTIONS = {"kernel_resources", "driver_version"}

Signatures = dict[str, tuple[list[str], list[str]]]


def parameters(function: ast.FunctionDef) -> tuple[list[str], list[str]]:
    """Names of the positional and of the keyword-only parameters."""
    positional = [argument.arg for argument in function.args.args if argument.arg != "self"]
    return positional, [argument.arg for argument in function.args.kwonlyargs]


def declared(body: Iterable[ast.stmt]) -> Signatures:
    return {item.name: parameters(item) for item in body if isinstance(item, ast.FunctionDef)}


def compiled(module: ModuleType) -> Signatures:
    """Read from the first line of every docstring, where pybind11 writes the signature."""
    functions = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    signatures = {name: function.__doc__.splitlines()[0] for name, function in functions.items()}
    return {name: parameters(ast.parse(f"def {text}: ...").body[0]) for name, text in signatures.items()}


def test_stub_and_module_agree():
    module, expected = extension.load(), declared(STUB.body)
    fields = {item.target.id for item in CLASSES["BuildInfo"] if isinstance(item, ast.AnnAssign)}
    if extension.has_cuda():
        assert compiled(module.launchers) == declared(CLASSES["_Launchers"])
        assert len(compiled(module.launchers)) >= 9
    else:
        expected = {name: value for name, value in expected.items() if name not in CUDA_FUNCTIONS}
        fields -= CUDA_FIELDS
    assert compiled(module) == expected
    assert set(module.build_info()) == fields
