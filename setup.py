"""Builds the compiled core: every csrc/**/*.cpp goes into one shared object, the module refinedet._C.

That object is at once a LibTorch Stable ABI operator library and a pybind11 module. Torch gives headers and the names
of its libraries only, so it is located but never imported, and the result runs with every torch from TORCH_TARGET on.
Ninja compiles in parallel and knows every header a file includes. CXX, CXXFLAGS and LDFLAGS are honoured:
CXXFLAGS=-Wno-error is the way past a warning that only a newer compiler knows.
"""

import fcntl
import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

TORCH_TARGET = "0x020a000000000000"  # torch 2.10: the oldest whose stable ABI has what the operators call

# No -march=native: a wheel runs on other machines. No FMA contraction: CPU and CUDA take the same IoU decisions.
# Without -fno-trapping-math GCC leaves most loops that compare floats scalar; it changes no value.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
]


def package_folder(name: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"refinedet: building the extension needs the package '{name}': install it, or build without "
            "--no-build-isolation"
        )
    return Path(spec.origin).parent


def environment_flags(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def compile_flags() -> list[str]:
    return CXX_FLAGS + environment_flags("CXXFLAGS")


def write_if_changed(path: Path, text: str) -> None:
    """Keeps the time stamp of an unchanged file, so that nothing is rebuilt for it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class BuildExtension(build_ext):
    """Compiles with ninja into build/<interpreter tag>, a folder that all ways of installing share."""

    def build_extension(self, ext: Extension) -> None:
        folder = ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}"
        folder.mkdir(parents=True, exist_ok=True)
        built = folder / "_C.so"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would share half-written objects
            write_if_changed(folder / "build_config.h", self.config_header())
            write_if_changed(folder / "build.ninja", self.ninja_file(folder, built, ext.sources))
            jobs = [f"-j{self.parallel}"] if self.parallel else []
            # -m finds the program beside whichever ninja package is importable, in an isolated build too
            ninja = subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs])
            if ninja.returncode != 0:
                raise CompileError("the compilation of refinedet._C failed: the compiler's messages are above")
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built), str(target))

    def ninja_file(self, folder: Path, built: Path, sources: list[str]) -> str:
        from ninja.ninja_syntax import Writer, escape

        torch = package_folder("torch")
        system_headers = [torch / "include", package_folder("pybind11") / "include", sysconfig.get_path("include")]
        includes = [f"-I{CSRC}", f"-I{folder}", *(f"-isystem{path}" for path in system_headers)]
        # libtorch_cpu is found by its name among the libraries that `import torch` has loaded: no rpath.
        link_flags = ["-Wl,--as-needed", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", *environment_flags("LDFLAGS")]
        text = io.StringIO()
        ninja = Writer(text)
        ninja.variable("cxx", escape(os.environ.get("CXX", "c++")))
        ninja.variable("flags", escape(shlex.join(compile_flags() + includes)))
        ninja.variable("link_flags", escape(shlex.join(link_flags)))
        compile_command = "$cxx -MD -MF $out.d $flags -c $in -o $out"
        ninja.rule("compile", compile_command, depfile="$out.d", deps="gcc", description="compile $in")
        ninja.rule("link", "$cxx -shared $in -o $out $link_flags", description="link $out")
        objects = []
        for source in sources:
            objects += ninja.build(str(folder / f"{source}.o"), "compile", str(ROOT / source))
        ninja.build(str(built), "link", objects)
        return text.getvalue()

    def config_header(self) -> str:
        """What only setup.py knows, for build_info() in csrc/bindings.cpp."""
        values = {
            "REFINEDET_VERSION": self.distribution.get_version(),
            "REFINEDET_CXX_FLAGS": shlex.join(compile_flags()),
        }
        return "#pragma once\n" + "".join(f"#define {name} {json.dumps(value)}\n" for name, value in values.items())


sources = sorted(str(path.relative_to(ROOT)) for path in CSRC.glob("**/*.cpp"))

setup(
    ext_modules=[Extension("refinedet._C", sources)],
    cmdclass={"build_ext": BuildExtension},
)
