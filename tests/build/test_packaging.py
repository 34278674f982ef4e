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

SHIPPED = ("*.py", "*.pyi", "*.toml", "*.safetensors", "*.json")  # of the package
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
    for folder in ("csrc", "refinedet", "tests", "tools"):
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
    assert _files("csrc", "*.cpp", "*.cu", "*.h") | _files("refinedet", *SHIPPED) <= names
    assert {"setup.py", "cuda_build.py", "pyproject.toml", "LICENSE", "README.md", "refinedet/py.typed"} <= names
    assert {name for name in names if name.startswith("tools/")} == {"tools/ptxas.py"}
    assert not [name for name in names if name.startswith(("tests/", "build/")) or name.endswith(".so")]


def test_wheel_contains_the_package_and_nothing_else(wheel_names):
    expected = _files("refinedet", *SHIPPED, "py.typed")
    library, module = sorted((name for name in wheel_names if name.endswith(".so")), reverse=True)
    metadata = {name for name in wheel_names if name.startswith(f"refinedet-{refinedet.__version__}.dist-info/")}
    assert library == "refinedet/librefinedet.so"
    assert module.startswith("refinedet/_C.cpython-")
    assert wheel_names - metadata - {library, module} == expected


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
from refinedet.profiling import cost
assert cost.detect(cost.NETWORKS[0], 1).launches == 4
print(json.dumps([extension.__file__, extension.build_info()["version"], kept.tolist()]))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [
        str(tmp_path / "refinedet" / "ops" / "extension.py"),
        refinedet.__version__,
        [1, 2],
    ]


def _names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def test_lists_of_requirements_agree(wheel):
    """Doctor looks for every dependency, and the Makefile installs all that a build without isolation needs."""
    dependencies = _names(_dependencies(wheel)) - {"tomli"}  # of Python 3.10 only
    assert dependencies == {"torch", *doctor.REQUIRED, *doctor.REQUIRED_UNIMPORTED}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    (torch,) = re.findall(r"^TORCH \?= (.*)", makefile, re.MULTILINE)
    (others,) = re.findall(r"pip install ('setuptools.*)", makefile)
    assert set(project["build-system"]["requires"]) <= set(shlex.split(f"{torch} {others}"))


def _dependencies(wheel: Path) -> list[str]:
    """Without those of extras."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = re.findall(r"^Requires-Dist: (.*)", archive.read(metadata).decode(), re.MULTILINE)
    return [line for line in lines if "extra ==" not in line]


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A clone in a folder named refinedet, with next to nothing to compile."""
    tree = tmp_path / "a folder with spaces" / "refinedet"
    for folder in ("csrc", "refinedet"):
        (tree / folder).mkdir(parents=True)
    for file in ("setup.py", "cuda_build.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    (tree / "refinedet" / "__init__.py").write_text('__version__ = "1.0"\n')
    (tree / "csrc" / "one.cpp").write_text("int one() { return 1; }\n")
    (tree / "csrc" / "two.cpp").write_text("int two() { return 2; }\n")
    return tree


def _build(tree: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"REFINEDET_CUDA": "0"} | environment
    return subprocess.run([sys.executable, *command], cwd=tree, env=settings, capture_output=True, text=True)


def _build_wheel(tree: Path, kind: str, **environment: str) -> Path:
    """kind: wheel, or editable."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    done = _build(tree, "-c", code, **environment)
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.whl")
    return archive


def test_editable_install_is_found_from_everywhere(small_tree: Path):
    """In the folder above, refinedet is the name of the clone's folder, which Python takes for a namespace package."""
    site = small_tree / "site"
    with zipfile.ZipFile(_build_wheel(small_tree, "editable")) as archive:
        archive.extractall(site)

    def imported(statement: str, folder: Path) -> str:
        # -S: without the site-packages of this Python, which may have an editable install as well
        code = f"import site; site.addsitedir({str(site)!r}); {statement}"
        done = subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True)
        return done.stdout + done.stderr

    package = small_tree / "refinedet"
    for folder in (small_tree.parent, small_tree, Path("/")):
        assert imported("import refinedet; print(refinedet.__file__)", folder) == f"{package / '__init__.py'}\n"

    other = small_tree / "another tree"  # has no module `extra`: that of the installed tree must not stand in for it
    shutil.copytree(package, other / "refinedet")
    (package / "extra.py").touch()
    assert imported("import refinedet.extra", small_tree.parent) == ""
    assert "No module named 'refinedet.extra'" in imported("import refinedet.extra", other)


def test_choice_of_opencv(small_tree: Path):
    """`pip check` compares with what the wheel says."""
    archive = _build_wheel(small_tree, "wheel", REFINEDET_OPENCV="opencv-python-headless")
    assert [name for name in _names(_dependencies(archive)) if "opencv" in name] == ["opencv-python-headless"]
    done = _build(small_tree, "setup.py", "--version", REFINEDET_OPENCV="opencv")
    assert done.stderr.splitlines()[-1] == (
        "refinedet: REFINEDET_OPENCV is 'opencv', expected opencv-python, opencv-python-headless, "
        "opencv-contrib-python or opencv-contrib-python-headless"
    )


BUILD = ("setup.py", "build_ext", "--inplace")


def test_warnings_are_errors_on_demand(small_tree: Path):
    """They stop CI, not the install of a user with a newer compiler. build_info says which it was."""
    (small_tree / "csrc" / "one.cpp").write_text("int one() { int unused; return 1; }\n")
    done = _build(small_tree, *BUILD, REFINEDET_WERROR="1")
    assert done.returncode != 0
    assert "error: unused variable" in done.stdout
    (header,) = small_tree.glob("build/*/build_config.h")
    assert "-Werror" in header.read_text()
    done = _build(small_tree, *BUILD, REFINEDET_WERROR="0")
    assert done.returncode == 0
    assert "warning: unused variable" in done.stdout
    assert "-Werror" not in header.read_text()
    done = _build(small_tree, *BUILD, REFINEDET_WERROR="yes")
    assert done.stderr.splitlines()[-1] == "refinedet: REFINEDET_WERROR is 'yes', expected 0 or 1"


# A compiler that takes a moment, and says when another one runs.
SLOW_COMPILER = """#!/bin/sh
mkdir "$0.running" 2> /dev/null || {{ touch "$0.overlapped"; exec c++ "$@"; }}
for i in $(seq {patience}); do [ -e "$0.overlapped" ] || sleep 0.1; done
rmdir "$0.running"
exec c++ "$@"
"""


@pytest.mark.parametrize(("jobs", "patience"), [("1", 3), ("2", 200)])
def test_max_jobs(small_tree: Path, jobs: str, patience: int):
    compiler = small_tree / "compiler"
    compiler.write_text(SLOW_COMPILER.format(patience=patience))
    compiler.chmod(0o755)
    done = _build(small_tree, *BUILD, CXX=f"'{compiler}'", MAX_JOBS=jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (small_tree / "compiler.overlapped").exists() == (jobs == "2")


@pytest.mark.parametrize("jobs", ["0", "-1", "2.5", "all"])
def test_bad_max_jobs(small_tree: Path, jobs: str):
    done = _build(small_tree, *BUILD, MAX_JOBS=jobs)
    assert done.stderr.splitlines()[-1] == f"refinedet: MAX_JOBS is {jobs!r}, expected a number from 1 on"


def test_compiler_cache_without_compiler(small_tree: Path):
    done = _build(small_tree, *BUILD, CXX="ccache")
    assert done.stderr.splitlines()[-1] == ("refinedet: CXX is 'ccache', expected a compiler behind it: 'ccache g++'")


def test_compiler_is_told_of_changed_headers(small_tree: Path):
    """Two builds: the second, after one header changed, compiles what includes it and nothing else."""
    csrc = small_tree / "csrc"
    (csrc / "one.h").write_text("inline int one() { return 1; }\n")
    (csrc / "with.cpp").write_text('#include "one.h"\nint uses_one() { return one(); }\n')
    (csrc / "without.cpp").write_text("int uses_none() { return 0; }\n")
    for file in ("one.cpp", "two.cpp"):
        (csrc / file).unlink()

    def compiled() -> list[str]:
        done = _build(small_tree, *BUILD)
        assert done.returncode == 0, done.stdout + done.stderr
        return sorted(Path(line.rstrip("'")).name for line in done.stdout.splitlines() if "] compile " in line)

    assert compiled() == ["with.cpp", "without.cpp"]
    assert compiled() == []
    (csrc / "one.h").write_text("inline int one() { return 2; }\n")
    assert compiled() == ["with.cpp"]
