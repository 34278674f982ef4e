"""The operator library in a program without Python: without_python.cpp, compiled with the libtorch of torch's wheel."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

import refinedet
from refinedet import ops

TORCH = Path(torch.__file__).parent


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "without_python"
    source = Path(__file__).with_name("without_python.cpp")
    library = [
        f"-L{TORCH / 'lib'}",
        f"-Wl,-rpath,{TORCH / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
    ]
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++20", f"-isystem{TORCH / 'include'}", str(source)]
    subprocess.run([*command, "-o", str(path), *library], check=True)
    return path


@pytest.fixture(scope="module")
def printed(program) -> list[str]:
    command = [program, ops.library_path()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_version(printed):
    assert f"version {refinedet.__version__}" in printed


def test_every_operator_is_registered(printed):
    """With the schemas that they have in Python."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("refinedet::")]
    schemas = {str(torch._C._get_schema(*f"{name}.".split(".")[:2])) for name in names}
    assert {f"refinedet::{path.name}" for path in (ROOT / "csrc" / "ops").iterdir()} <= set(names)
    assert {line.removeprefix("schema ") for line in printed if line.startswith("schema ")} == schemas


def test_operators_run(printed):
    assert printed[-6:] == [
        "nms 1 2",
        "boxes 0.375 0.25 0.625 0.75",
        "scores 0.999877",
        "labels 1",
        "indices 0",
        "counts 1",
    ]


def test_no_python_is_loaded(program):
    for file in (program, ops.library_path()):
        environment = os.environ | {"LD_LIBRARY_PATH": str(TORCH / "lib")}
        needed = subprocess.run(["ldd", file], env=environment, capture_output=True, text=True, check=True).stdout
        assert "libtorch_cpu.so" in needed
        assert "libpython" not in needed
        assert "not found" not in needed
