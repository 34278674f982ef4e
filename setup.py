"""Builds the compiled core, two shared objects side by side.

refinedet/librefinedet.so has the operators: a LibTorch Stable ABI library, which programs without Python load as well.
refinedet/_C is the pybind11 module in front of it, of csrc/python. Torch gives headers and the names of its libraries
only, so it is located but never imported, and the result runs with every torch from TORCH_TARGET on. Ninja compiles in
parallel and knows every header a file includes. Environment variables that are honoured:

- CXX ("ccache g++" too), CXXFLAGS, LDFLAGS.
- MAX_JOBS: how many compilers run at a time; by default as many as there are processors.
- REFINEDET_WERROR=1: warnings are errors. CI sets it; an install does not stop because a newer compiler knows more.
- REFINEDET_CUDA: the CUDA kernels, csrc/ops/*/*.cu, are compiled where nvcc is found; 1 fails without it, 0 leaves them
  out. The machine needs neither a GPU nor a torch with CUDA. What else is honoured: cuda_build.py.
- REFINEDET_OPENCV: the distribution of OpenCV that the package depends on, one of OPENCV.
"""

import fcntl
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
PYTHON = CSRC / "python"  # the module; all other sources are the library's
LIBRARY = "librefinedet.so"
MODULE = "_C.so"  # while it is built; then its name has the interpreter's

sys.path.insert(0, str(ROOT))  # an isolated build does not have it
import cuda_build  # noqa: E402

# Four distributions bring the same module, cv2; installed together they overwrite each other's files. A package cannot
# depend on one or another, so a server without a screen chooses before the install: then `pip check` is right as well.
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")

# matplotlib, tensorboard and pycocotools are no extras: `refinedet train` and `evaluate` promise logs, curves and the
# metrics of COCO. With what they need they take 130 MB, torch takes 1 to 6 GB; `import refinedet` imports none of them.
DEPENDENCIES = [
    "torch>=2.10",
    "numpy",
    "pycocotools",
    "tqdm",
    "tensorboard",
    "safetensors",
    "matplotlib",
    "tomli; python_version < '3.11'",
]

TORCH_TARGET = "0x020a000000000000"  # torch 2.10: the oldest whose stable ABI has what the operators call

# No -march=native: a wheel runs on other machines. No FMA contraction: CPU and CUDA take the same IoU decisions.
# Without -fno-trapping-math GCC leaves most loops that compare floats scalar; it changes no value. -fopenmp-simd: short
# loops under `#pragma omp simd` become vectors; no OpenMP is linked.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
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


@dataclass(frozen=True)
class Cuda:
    toolkit: cuda_build.Toolkit
    architectures: list[str]


def find_cuda() -> Cuda | None:
    """What to compile the CUDA kernels with and for, as REFINEDET_CUDA says; None to leave them out."""
    wanted = choice("REFINEDET_CUDA", "auto", "1", "0")
    if wanted == "0":
        return None
    try:
        toolkit = cuda_build.find_toolkit(os.environ, package_folder("torch").parent)
        return Cuda(toolkit, cuda_build.choose_architectures(os.environ, toolkit))
    except cuda_build.ArchitectureError as error:
        raise SystemExit(f"refinedet: {error}") from None
    except cuda_build.ToolkitError as error:
        if wanted == "1":
            raise SystemExit(f"refinedet: the CUDA kernels cannot be compiled: {error}") from None
        print(f"refinedet: compiling without CUDA kernels: {error}", file=sys.stderr)
        return None


def choice(name: str, *values: str) -> str:
    """An environment variable that has one of these values; unset, the first."""
    value = os.environ.get(name, values[0])
    if value not in values:
        raise SystemExit(f"refinedet: {name} is {value!r}, expected {', '.join(values[:-1])} or {values[-1]}")
    return value


def words(name: str) -> list[str]:
    """An environment variable that a shell would split."""
    return shlex.split(os.environ.get(name, ""))


def warnings_are_errors() -> bool:
    return choice("REFINEDET_WERROR", "0", "1") == "1"


def compile_flags() -> list[str]:
    return [*CXX_FLAGS, *(["-Werror"] if warnings_are_errors() else []), *words("CXXFLAGS")]


def cxx() -> list[str] | None:
    """The C++ compiler of CXX, with the compiler cache in front of it; None where CXX is not set."""
    command = words("CXX")
    if command and not cuda_build.split_caches(command)[1]:
        raise SystemExit(f"refinedet: CXX is {os.environ['CXX']!r}, expected a compiler behind it: '{command[0]} g++'")
    return command or None


def max_jobs() -> int:
    """How many compilers may run at a time."""
    text = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    if not re.fullmatch("[1-9][0-9]*", text):
        raise SystemExit(f"refinedet: MAX_JOBS is {text!r}, expected a number from 1 on")
    return int(text)


def write_if_changed(path: Path, text: str) -> None:
    """Keeps the time stamp of an unchanged file, so that nothing is rebuilt for it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class BuildExtension(build_ext):
    """Compiles with ninja into a folder of build/ that all ways of installing share.

    The interpreter and whether there are CUDA kernels name it: to try the CPU alone compiles nothing twice.
    """

    def build_extension(self, ext: Extension) -> None:
        cuda = find_cuda()
        folder = ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}{'' if cuda else '-cpu'}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would share half-written objects
            write_if_changed(folder / "build_config.h", self.config_header(cuda))
            write_if_changed(folder / "build.ninja", ninja_file(folder, ext.sources, cuda))
            run_ninja(folder, self.parallel or max_jobs())
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(folder / LIBRARY), beside(target))
            self.copy_file(str(folder / MODULE), str(target))

    # The library goes wherever the module goes, and is listed where it is.

    def copy_extensions_to_source(self) -> None:
        for built, in_source in self.get_output_mapping().items():
            self.copy_file(built, in_source)

    def get_output_mapping(self) -> dict[str, str]:
        modules = super().get_output_mapping()
        return modules | {beside(built): beside(in_source) for built, in_source in modules.items()}

    def get_outputs(self) -> list[str]:
        return sorted({path for module in super().get_outputs() for path in (module, beside(module))})

    def config_header(self, cuda: Cuda | None) -> str:
        """What only setup.py knows, for build_info() in csrc/python/bindings.cpp."""
        values = {
            "REFINEDET_VERSION": self.distribution.get_version(),
            "REFINEDET_CXX_FLAGS": shlex.join(compile_flags()),
        }
        if cuda is not None:
            values |= {
                "REFINEDET_NVCC_VERSION": cuda.toolkit.version,
                "REFINEDET_ARCHITECTURES": " ".join(cuda.architectures),
                "REFINEDET_NVCC_FLAGS": shlex.join(cuda_build.flags(warnings_are_errors=warnings_are_errors())),
            }
        return "#pragma once\n" + "".join(f"#define {name} {json.dumps(value)}\n" for name, value in values.items())


def beside(module: str | Path) -> str:
    """The library of a module: where the module's run path looks for it."""
    return str(Path(module).with_name(LIBRARY))


def run_ninja(folder: Path, jobs: int) -> None:
    # Not in the ninja file: to compile with more or fewer threads changes nothing that is compiled.
    environment = os.environ | {"NVCC_THREADS": str(cuda_build.nvcc_threads(jobs, len(cuda_sources())))}
    # -m finds the program beside whichever ninja package is importable, in an isolated build too
    command = [sys.executable, "-m", "ninja", "-C", str(folder), f"-j{jobs}"]
    if subprocess.run(command, env=environment).returncode != 0:
        raise CompileError("the compilation of refinedet failed: the compiler's messages are above")


def ninja_file(folder: Path, sources: list[str], cuda: Cuda | None) -> str:
    from ninja.ninja_syntax import Writer, escape

    torch = package_folder("torch")
    flags = [*compile_flags(), f"-I{CSRC}", f"-I{folder}"]
    # libtorch_cpu is found by its name among the libraries that the process has loaded: no run path.
    library_flags = [f"-Wl,-soname,{LIBRARY}", "-Wl,--as-needed", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    if cuda is not None:
        flags += ["-DREFINEDET_WITH_CUDA", f"-isystem{cuda.toolkit.include}"]
        # The runtime of the toolkit that compiled the kernels, for us alone: torch comes with one of its own.
        library_flags += [
            str(cuda.toolkit.cudart),
            "-Wl,--exclude-libs,libcudart_static.a",
            "-lpthread",
            "-ldl",
            "-lrt",
        ]
    # pybind11 before torch, whose older releases carry one that refuses to be used beside the stable ABI.
    python_headers = [package_folder("pybind11") / "include", sysconfig.get_path("include")]
    text = io.StringIO()
    ninja = Writer(text)
    ninja.variable("cxx", escape(shlex.join(cxx() or ["c++"])))
    ninja.variable("flags", escape(shlex.join(flags)))
    ninja.variable("torch_headers", escape(shlex.join(isystem(torch / "include"))))
    ninja.variable("python_headers", escape(shlex.join(isystem(*python_headers))))
    ninja.variable("ldflags", escape(shlex.join(words("LDFLAGS"))))
    compile_command = "$cxx -MD -MF $out.d $flags $headers -c $in -o $out"
    ninja.rule("compile", compile_command, depfile="$out.d", deps="gcc", description="compile $in")
    ninja.rule("link", "$cxx -shared $in -o $out $link_flags $ldflags", description="link $out")
    kernels, generated = [], []
    if cuda is not None:
        kernels, generated = add_cuda_kernels(ninja, folder, cuda)
        sources = relative_paths(CUDA.glob("*.cpp")) + sources

    def compiled(chosen: list[str], headers: str) -> list[str]:
        objects = []
        for source in chosen:
            target, variables = str(folder / f"{source}.o"), {"headers": headers}
            objects += ninja.build(target, "compile", str(ROOT / source), order_only=generated, variables=variables)
        return objects

    of_module = [
        source for source in sources if PYTHON in (ROOT / source).parents
    ]  # one takes longest: not last, alone
    module = compiled(of_module, "$python_headers $torch_headers")
    library = compiled([source for source in sources if source not in of_module], "$torch_headers")
    library_path = str(folder / LIBRARY)
    link_flags = {"link_flags": escape(shlex.join(library_flags))}
    ninja.build(library_path, "link", [*library, *kernels], variables=link_flags)
    link_flags = {"link_flags": escape(shlex.quote("-Wl,-rpath,$ORIGIN"))}
    ninja.build(str(folder / MODULE), "link", [*module, library_path], variables=link_flags)
    return text.getvalue()


def isystem(*folders: str | Path) -> list[str]:
    """Flags: no warnings of headers there."""
    return [f"-isystem{folder}" for folder in folders]


def add_cuda_kernels(ninja: "Writer", folder: Path, cuda: Cuda) -> tuple[list[str], list[str]]:  # noqa: F821
    """The object of every .cu file, and the header with the table of what their kernels need."""
    from ninja.ninja_syntax import escape

    flags = cuda.toolkit.flags(warnings_are_errors=warnings_are_errors())
    nvcc = [*cuda_build.nvcc_command(cuda.toolkit, cxx()), *flags, f"-I{CSRC}"]
    ninja.variable("nvcc", escape(shlex.join(nvcc)))
    ninja.variable("gencode", escape(shlex.join(cuda_build.gencode_flags(cuda.architectures))))
    ninja.variable("ptx_architecture", re.sub(r"\.|\+PTX", "", cuda.architectures[0]))
    compile_command = "$nvcc $gencode --threads=$$NVCC_THREADS -MD -MF $out.d -c $in -o $out > $out.log 2>&1"
    ninja.rule(
        "compile_cuda",
        # What ptxas says is for the table; people see errors and warnings.
        f"{compile_command} || {{ cat $out.log; exit 1; }}; ! grep -q warning $out.log || cat $out.log",
        depfile="$out.d",
        deps="gcc",
        description="compile $in",
    )
    ninja.rule(
        "ptx",
        "$nvcc -arch=compute_$ptx_architecture -MD -MF $out.d -ptx $in -o $out",
        depfile="$out.d",
        deps="gcc",
        description="block sizes of $in",
    )
    script = ROOT / "tools" / "ptxas.py"
    command = shlex.join([sys.executable, "-I", str(script)])
    ninja.rule(
        "resources",
        f"{escape(command)} $out --ptxas $logs --ptx $ptx",
        restat=True,  # an unchanged table stays as it is
        description="table of kernel resources",
    )
    objects, ptx = [], []
    for source in cuda_sources():
        objects += ninja.build(str(folder / f"{source}.o"), "compile_cuda", str(ROOT / source))
        ptx += ninja.build(str(folder / f"{source}.ptx"), "ptx", str(ROOT / source))
    table = ninja.build(
        str(folder / "kernel_resources.h"),
        "resources",
        implicit=[*objects, *ptx, str(script)],
        variables={"logs": escape(shlex.join(f"{path}.log" for path in objects)), "ptx": escape(shlex.join(ptx))},
    )
    return objects, table


def cuda_sources() -> list[str]:
    return relative_paths(CSRC.glob("ops/*/*.cu"))


def relative_paths(paths: Iterable[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in paths)


setup(
    install_requires=[*DEPENDENCIES, choice("REFINEDET_OPENCV", *OPENCV)],
    ext_modules=[Extension("refinedet._C", relative_paths({*CSRC.glob("**/*.cpp")} - {*CUDA.glob("*.cpp")}))],
    cmdclass={"build_ext": BuildExtension},
)
