"""What setup.py knows about CUDA: where nvcc is, which architectures to compile for, how to call it.

nvcc is called directly, not through torch.utils.cpp_extension, which refuses to compile CUDA code where torch is a
build for the CPU. CUDA_HOME (or CUDA_PATH) and TORCH_CUDA_ARCH_LIST are honoured, and so are the variables that nvcc
itself reads, like NVCC_APPEND_FLAGS.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Every generation from Turing on; the machine code of 10.0 also runs on 10.3, that of 12.0 on 12.1. That of 8.0 does
# not run on 8.7: a Jetson takes only its own.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")

# No FMA contraction, on either side: CPU and CUDA take the same IoU decisions. Line numbers let Nsight Compute show the
# source and cost nothing at run time. Compiling for an architecture that the next CUDA drops is no mistake.
FLAGS = [
    "-O3",
    "-fmad=false",
    "-lineinfo",
    "-Wno-deprecated-gpu-targets",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-ffp-contract=off",
    "-Xptxas=-v",
    "-Xfatbin=-compress-all",
]
WARNINGS_ARE_ERRORS = "--Werror=all-warnings"

# They keep what nvcc compiled as well as what a C++ compiler did.
COMPILER_CACHES = ("ccache", "sccache")

_ITEM = re.compile(r"\d+\.\d[af]?(\+PTX)?")


class ToolkitError(Exception):
    """Why the CUDA kernels cannot be compiled here."""


class ArchitectureError(Exception):
    """What is wrong with TORCH_CUDA_ARCH_LIST."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile the kernels."""

    nvcc: str  # program
    version: str  # "13.0.88"
    architectures: tuple[str, ...]  # for which it compiles, ascending: "7.5"
    include: Path  # has cuda_runtime_api.h
    cudart: Path  # libcudart_static.a

    def flags(self, *, warnings_are_errors: bool) -> list[str]:
        """Flags of every compilation, without architectures."""
        standard = "c++20" if _major(self.version) >= 12 else "c++17"
        return [f"-std={standard}", *flags(warnings_are_errors=warnings_are_errors), f"-isystem={self.include}"]


def flags(*, warnings_are_errors: bool) -> list[str]:
    """What is the same with every toolkit."""
    return [*FLAGS, WARNINGS_ARE_ERRORS] if warnings_are_errors else FLAGS


def find_toolkit(environ: Mapping[str, str], site_packages: Path) -> Toolkit:
    """The toolkit of CUDA_HOME, of the nvcc on PATH, or in /usr/local/cuda.

    Headers and libraries that it lacks are taken from the wheels that CUDA builds of torch depend on.
    """
    nvcc = _find_nvcc(environ)
    try:
        (version,) = re.findall(r"release .*V([\d.]+)", _run(nvcc, "--version"))
        names = re.findall(r"compute_(\d+)(\d)\b", _run(nvcc, "--list-gpu-arch"))
        variables = dict(re.findall(r"^#\$ (\w+)=(.*)", _run(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.M))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise ToolkitError(f"{nvcc} does not work ({error})") from None
    top = Path(variables.get("TOP", Path(nvcc).parent.parent)).resolve()  # nvcc may be a script that calls the real one
    wheels = site_packages / "nvidia" / (f"cu{_major(version)}" if _major(version) >= 13 else "cuda_runtime")
    includes = [*_folders("-I", variables.get("INCLUDES", "")), top / "include", wheels / "include"]
    libraries = [*_folders("-L", variables.get("LIBRARIES", "")), top / "lib64", top / "lib", wheels / "lib"]
    return Toolkit(
        nvcc=nvcc,
        version=version,
        architectures=tuple(sorted({f"{major}.{minor}" for major, minor in names}, key=_order)),
        include=_folder_with("cuda_runtime_api.h", includes),
        cudart=_folder_with("libcudart_static.a", libraries) / "libcudart_static.a",
    )


def choose_architectures(environ: Mapping[str, str], toolkit: Toolkit) -> list[str]:
    """Architectures in the notation of TORCH_CUDA_ARCH_LIST: ``["7.5", "8.0", "9.0+PTX"]``.

    TORCH_CUDA_ARCH_LIST if set; else those of the GPUs that nvidia-smi finds; else DEFAULT_ARCHITECTURES as far as nvcc
    knows them, with the PTX of the newest, which the driver translates for later ones.
    """
    requested = environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if requested:
        return _check_requested(requested, toolkit)
    gpus = visible_gpus()
    if not gpus:
        return default_architectures(toolkit)
    chosen = {code for gpu in gpus if (code := _code_for(gpu, toolkit))}
    if not chosen:
        raise ToolkitError(
            f"CUDA {toolkit.version} compiles for {toolkit.architectures[0]} and later, and the GPU here is {gpus[0]}: "
            "use an older CUDA toolkit"
        )
    return sorted(chosen, key=lambda code: _order(code.removesuffix("+PTX")))


def default_architectures(toolkit: Toolkit) -> list[str]:
    """Where no GPU is in sight."""
    known = [name for name in DEFAULT_ARCHITECTURES if name in toolkit.architectures]
    return [*known[:-1], f"{known[-1]}+PTX"]


def visible_gpus() -> list[str]:
    """Compute capabilities of the GPUs of this machine, without torch and without loading the driver here."""
    try:
        output = _run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(set(re.findall(r"^\d+\.\d$", output, re.M)), key=_order)


def nvcc_command(toolkit: Toolkit, cxx: list[str] | None) -> list[str]:
    """nvcc with the C++ compiler of CXX, split into words; None leaves it to nvcc.

    nvcc takes a program for its C++ compiler (-ccbin), no command: of ``ccache g++ -m64`` it gets g++, and -m64 for it.
    ccache goes in front of nvcc.
    """
    if cxx is None:
        return [toolkit.nvcc]
    caches, (compiler, *options) = split_caches(cxx)
    return [*caches, toolkit.nvcc, f"-ccbin={compiler}", *(f"-Xcompiler={option}" for option in options)]


def split_caches(cxx: list[str]) -> tuple[list[str], list[str]]:
    """``ccache g++ -m64`` -> the compiler caches in front, the compiler with its options."""
    count = next((index for index, word in enumerate(cxx) if Path(word).name not in COMPILER_CACHES), len(cxx))
    return cxx[:count], cxx[count:]


def nvcc_threads(jobs: int, sources: int) -> int:
    """Architectures that each nvcc compiles at a time, so that all of them together are at most ``jobs`` processes.

    Beside the nvcc of every source one more may run, which writes its PTX.
    """
    return max(1, jobs // max(1, sources) - 1)


def gencode_flags(architectures: list[str]) -> list[str]:
    """The nvcc flags for architectures as `choose_architectures` gives them."""
    flags = []
    for name in architectures:
        number = name.removesuffix("+PTX").replace(".", "")
        code = f"[sm_{number},compute_{number}]" if name.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def _find_nvcc(environ: Mapping[str, str]) -> str:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            named = Path(environ[name]) / "bin" / "nvcc"
            if not named.exists():
                raise ToolkitError(f"there is no {named}: {name} must name the folder of a CUDA toolkit")
            return str(named)
    nvcc = shutil.which("nvcc", path=environ.get("PATH")) or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise ToolkitError("nvcc is not on PATH: install the CUDA toolkit, or set CUDA_HOME to its folder")
    return nvcc


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _folders(option: str, flags: str) -> list[Path]:
    return [Path(folder) for folder in re.findall(rf'{option}([^"]+)"', flags)]


def _folder_with(file: str, folders: list[Path]) -> Path:
    for folder in folders:
        if (folder / file).exists():
            return folder.resolve()
    raise ToolkitError(f"the CUDA toolkit is incomplete: {file} is in none of {', '.join(map(str, folders))}")


def _check_requested(requested: list[str], toolkit: Toolkit) -> list[str]:
    for item in requested:
        if not _ITEM.fullmatch(item):
            raise ArchitectureError(f"TORCH_CUDA_ARCH_LIST contains {item!r}, expected items like 8.6 or 9.0+PTX")
        if re.sub(r"[af]?(\+PTX)?$", "", item) not in toolkit.architectures:
            known = " ".join(toolkit.architectures)
            raise ArchitectureError(
                f"TORCH_CUDA_ARCH_LIST contains {item}, but CUDA {toolkit.version} compiles for {known} only"
            )
    return requested


def _code_for(gpu: str, toolkit: Toolkit) -> str | None:
    """What runs on a GPU: its machine code, or PTX where nvcc is older than the GPU; None where it has dropped it."""
    older = [name for name in toolkit.architectures if _order(name) <= _order(gpu)]
    if not older:
        return None
    return gpu if gpu in older else f"{older[-1]}+PTX"


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _order(name: str) -> tuple[int, int]:
    major, minor = name.split(".")
    return int(major), int(minor)
