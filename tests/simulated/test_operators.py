"""The CUDA operators as torch calls them: argument checks, conversions, workspaces, sorting, launch.

The library is compiled once more with the harness (README.md), where every tensor is said to be on a GPU, so that a CPU
tensor goes the way of a CUDA tensor, through the same code and kernels. The tests of the operators run on it.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from simulated.harness import BUILD, CSRC, FLAGS, HERE, OPERATORS, ROOT, compiler, locked

pytestmark = pytest.mark.long

TESTS = ["simulated/operator_cases.py", *(f"ops/test_{op}.py" for op in OPERATORS)]


def ninja_file(folder: Path) -> str:
    import pybind11
    from ninja.ninja_syntax import Writer, escape

    torch_folder = Path(torch.__file__).parent
    headers = [pybind11.get_include(), torch_folder / "include", sysconfig.get_path("include")]
    (target,) = re.findall(r'TORCH_TARGET = "(\w+)"', (ROOT / "setup.py").read_text())
    flags = [
        *FLAGS,
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        f"-DTORCH_TARGET_VERSION={target}",
        *(f"-I{path}" for path in (CSRC, HERE, folder)),
        *(f"-isystem{path}" for path in headers),
    ]
    text = io.StringIO()
    ninja = Writer(text)
    ninja.variable("cxx", escape(shlex.join(compiler())))
    ninja.variable("flags", escape(shlex.join(flags)))
    ninja.variable("link_flags", escape(shlex.join([f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"])))
    command = "$cxx -MD -MF $out.d $flags $more -x c++ -c $in -o $out"
    ninja.rule("compile", command, depfile="$out.d", deps="gcc", description="compile $in")
    ninja.rule("link", "$cxx -shared $in -o $out $link_flags $more")
    with_cuda = [
        *(CSRC / "ops" / op / f"{op}.cpp" for op in OPERATORS),
        *CSRC.glob("ops/*/*.cu"),
        HERE / "torch_device.cpp",
    ]
    without_cuda = [
        CSRC / "library.cpp",
        HERE / "scheduler.cpp",
        *CSRC.glob("cpu/*.cpp"),
        *CSRC.glob("ops/*/*_cpu.cpp"),
    ]
    objects = []
    for sources, macro in ((with_cuda, "-DREFINEDET_WITH_CUDA"), (without_cuda, "")):
        for source in sorted(sources):
            name = str(source.relative_to(ROOT)).replace("/", "_")
            objects += ninja.build(f"{name}.o", "compile", str(source), variables={"more": macro})
    ninja.build("librefinedet.so", "link", objects, variables={"more": "-Wl,-soname,librefinedet.so"})
    module = ninja.build("bindings.o", "compile", str(CSRC / "python" / "bindings.cpp"))
    ninja.build("_C.so", "link", [*module, "librefinedet.so"], variables={"more": "'-Wl,-rpath,$$ORIGIN'"})
    return text.getvalue()


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


@pytest.fixture(scope="session")
def built() -> Path:
    """Folder of the two shared objects."""
    folder = BUILD / "operators"
    version = re.search(r'__version__ = "(.+)"', (ROOT / "refinedet" / "__init__.py").read_text())[1]
    with locked(folder):
        write_if_changed(
            folder / "build_config.h",
            f'#define REFINEDET_VERSION "{version}"\n#define REFINEDET_CXX_FLAGS ""\n',
        )
        write_if_changed(folder / "build.ninja", ninja_file(folder))
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j2"]
        done = subprocess.run(ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="session")
def package(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose operators are the CUDA ones."""
    root = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("*.so", "*.safetensors", "__pycache__")
    shutil.copytree(ROOT / "refinedet", root / "refinedet", ignore=ignored)
    (root / "refinedet" / "librefinedet.so").symlink_to(built / "librefinedet.so")
    (root / "refinedet" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").symlink_to(built / "_C.so")
    return root


@pytest.mark.parametrize("tests", TESTS)
def test_operator(tests: str, package: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        ROOT / "tests" / tests,
        "-m",
        "not simulated and not ptx and not gpu and not cpu_only",
    ]
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
