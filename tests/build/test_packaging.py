"""What a user receives: the sdist is enough to build the wheel, and the wheel is enough to run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

import refinedet
from refinedet.commands import doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOT_SOURCES = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")


def _files(folder: str, *patterns: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / folder).rglob(pattern)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """An sdist of a copy of the tree that has never been built: what an earlier build left cannot slip in."""
    tree = tmp_path_factory.mktemp("tree")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    for folder in ("csrc", "refinedet", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=NOT_SOURCES)
    output = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(output)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (archive,) = output.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """A wheel built from the sdist alone, unoptimised and without CUDA kernels to be quick."""
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", sdist]
    environment = os.environ | {"CXXFLAGS": "-O0", "REFINEDET_CUDA": "0"}
    subprocess.run([*command, "--wheel-dir", output], env=environment, check=True, capture_output=True)
    (archive,) = output.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel_names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_sdist_contains_every_source(sdist):
    prefix = f"refinedet-{refinedet.__version__}/"
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(prefix) for member in archive.getmembers() if member.isfile()}
    expected = _files("csrc", "*.cpp", "*.cu", "*.h") | _files("refinedet", "*.py", "*.pyi", "*.toml", "*.safetensors")
    assert expected <= names
    assert {"setup.py", "cuda_build.py", "pyproject.toml", "LICENSE", "README.md", "refinedet/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "build/")) or name.endswith(".so")]


def test_wheel_contains_the_package_and_nothing_else(wheel_names):
    expected = _files("refinedet", "*.py", "*.pyi", "*.toml", "*.safetensors", "py.typed")
    (compiled,) = {name for name in wheel_names if name.endswith(".so")}
    metadata = {name for name in wheel_names if name.startswith(f"refinedet-{refinedet.__version__}.dist-info/")}
    assert compiled.startswith("refinedet/_C.cpython-")
    assert wheel_names - metadata - {compiled} == expected


def test_wheel_metadata(wheel, wheel_names):
    folder = f"refinedet-{refinedet.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{folder}/METADATA").decode()
        assert "refinedet = refinedet.commands.main:main" in archive.read(f"{folder}/entry_points.txt").decode()
    assert f"{folder}/licenses/LICENSE" in wheel_names
    assert "License-Expression: BSD-3-Clause\n" in metadata
    assert "Requires-Dist: torch>=2.10\n" in metadata
    assert "Provides-Extra: timm\n" in metadata


def test_wheel_runs(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = """
import json, torch
from refinedet import ops
from refinedet.ops import extension
kept = ops.nms(torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]]), torch.tensor([0.5, 0.9, 0.7]), 0.5)
print(json.dumps([extension.__file__, extension.build_info()["version"], kept.tolist()]))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [str(tmp_path / "refinedet" / "extension.py"), refinedet.__version__, [1, 2]]


def _names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def test_lists_of_requirements_agree():
    """Doctor looks for every dependency, and the Makefile installs all that a build without isolation needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dependencies = _names(project["project"]["dependencies"]) - {"tomli"}  # of Python 3.10 only
    assert dependencies == {"torch", *doctor.REQUIRED, *doctor.REQUIRED_UNIMPORTED}
    (base,) = re.findall(r"pip install '(torch.*)", (ROOT / "Makefile").read_text())
    assert set(project["build-system"]["requires"]) <= set(shlex.split("'" + base))


def test_compiler_is_told_of_changed_headers(tmp_path):
    """Two builds: the second, after one header changed, compiles what includes it and nothing else."""
    tree = tmp_path / "a folder with spaces"
    csrc = tree / "csrc"
    csrc.mkdir(parents=True)
    (tree / "refinedet").mkdir()
    shutil.copy(ROOT / "setup.py", tree)
    shutil.copy(ROOT / "cuda_build.py", tree)
    (csrc / "one.h").write_text("inline int one() { return 1; }\n")
    (csrc / "with.cpp").write_text('#include "one.h"\nint uses_one() { return one(); }\n')
    (csrc / "without.cpp").write_text("int uses_none() { return 0; }\n")

    def compiled() -> list[str]:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        environment = os.environ | {"REFINEDET_CUDA": "0"}
        done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
        return sorted(Path(line.rstrip("'")).name for line in done.stdout.splitlines() if "] compile " in line)

    assert compiled() == ["with.cpp", "without.cpp"]
    assert compiled() == []
    (csrc / "one.h").write_text("inline int one() { return 2; }\n")
    assert compiled() == ["with.cpp"]
