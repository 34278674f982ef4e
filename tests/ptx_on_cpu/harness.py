"""Builds the driver of an operator whose kernels are PTX (README.md). Needs nvcc, a C++ compiler, ninja and numpy."""

import functools
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kernel_budget
import nvrtc
from kernel_budget import cuda_build
from simulated import harness as simulated
from simulated.harness import CSRC, OPERATORS, ROOT, SAMPLES, Harness, Result, kernel_file, locked

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "ptx_on_cpu"

NVCC_ARCHITECTURES = ("7.5", "9.0", "12.0")  # that read different source: __CUDA_ARCH__ in csrc
NVRTC_ARCHITECTURE = "5.2"  # which nvcc 13 has dropped
ARCHITECTURES = (NVRTC_ARCHITECTURE, *NVCC_ARCHITECTURES)

# Of the interpreter: what executes is worth optimising.
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")


@functools.cache
def toolkit() -> cuda_build.Toolkit:
    """Raises cuda_build.ToolkitError where there is no nvcc."""
    return cuda_build.find_toolkit(os.environ, kernel_budget.site_packages())


def ptx_file(op: str, architecture: str) -> Path:
    """Where the PTX of an operator lies once `build` has been there."""
    return BUILD / f"{op}.{architecture}.ptx"


def ninja_file() -> str:
    """Builds `<op>`, for every operator and the harness's samples, and the PTX of all architectures of nvcc."""
    from ninja.ninja_syntax import Writer, escape

    nvcc = [*cuda_build.nvcc_command(toolkit(), simulated.compiler()), *toolkit().flags(warnings_are_errors=True)]
    text = io.StringIO()
    ninja = Writer(text)
    ninja.variable("cxx", escape(shlex.join(simulated.compiler())))
    ninja.variable("nvcc", escape(shlex.join([*nvcc, f"-I{CSRC}", f"-I{simulated.HERE}"])))
    ninja.variable("flags", escape(shlex.join(FLAGS)))
    driver_flags = {"flags": escape(shlex.join(simulated.flags("plain", None)))}
    includes = [f"-I{CSRC}", f"-I{simulated.HERE}", f"-isystem{toolkit().include}"]
    ninja.rule("compile", "$cxx -MD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
    ninja.rule("host", "$nvcc -MD -MF $out.d $arch -c $in -o $out", depfile="$out.d", deps="gcc")
    ninja.rule("ptx", "$nvcc -MD -MF $out.d $arch -ptx $in -o $out", depfile="$out.d", deps="gcc")
    ninja.rule("link", "$cxx $in -o $out.new && mv $out.new $out")
    interpreter = []
    for source in sorted(HERE.glob("*.cpp")):
        interpreter += ninja.build(f"{source.stem}.o", "compile", str(source))
    ninja.build("driver.o", "compile", str(simulated.HERE / "driver.cpp"), variables=driver_flags)
    for op in (*OPERATORS, SAMPLES):
        adapter = simulated.HERE / ("adapt_operator.cpp" if op != SAMPLES else f"adapt_{SAMPLES}.cpp")
        more = [*includes, "-include", f"ops/{op}/{op}_cuda.h", f"-DREFINEDET_OPERATOR={op}"]
        if op == SAMPLES:  # launches kernels itself
            ninja.build(f"adapt_{op}.o", "host", str(adapter), variables={"arch": f"-x cu {_virtual('7.5')}"})
        else:
            ninja.build(f"adapt_{op}.o", "compile", str(adapter), variables={"flags": f"$flags {shlex.join(more)}"})
        kernels = str(kernel_file(op))
        ninja.build(f"{op}.o", "host", kernels, variables={"arch": _virtual("7.5")})
        for architecture in NVCC_ARCHITECTURES:
            name = ptx_file(op, architecture).name
            ninja.build(name, "ptx", kernels, variables={"arch": _virtual(architecture)})
        ninja.build(op, "link", [f"{op}.o", f"adapt_{op}.o", "driver.o", *interpreter])
    return text.getvalue()


def _virtual(architecture: str) -> str:
    """The flag for PTX alone."""
    number = architecture.replace(".", "")
    return f"-arch=compute_{number} -code=compute_{number}"


def build(op: str, architecture: str) -> tuple[Path, Path]:
    """The driver of `op` and its PTX, compiled again where a file they depend on has changed."""
    targets = [op]
    if architecture in NVCC_ARCHITECTURES:
        targets.append(ptx_file(op, architecture).name)
    with locked(BUILD):
        text, file = ninja_file(), BUILD / "build.ninja"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        ninja = [sys.executable, "-m", "ninja", "-C", str(BUILD), "-j2", *targets]
        done = subprocess.run(ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the interpreter for {op} does not compile:\n{done.stdout}")
        if architecture == NVRTC_ARCHITECTURE:
            _, ptx = nvrtc.compile_kernels(kernel_file(op), architecture, CSRC)
            ptx_file(op, architecture).write_text(ptx)
    return BUILD / op, ptx_file(op, architecture)


def start(
    op: str,
    architecture: str = "7.5",
    *,
    ptx: Path | None = None,
    counts: str = "",
    timeout: int = 120,
) -> Harness:
    """A harness (../simulated) whose launchers run the PTX of `architecture`, or that of the file `ptx`.

    `counts`: "launches" for the counts of each launch (`launches_of`), "lines" for those of each line of the source.
    Seed 0 runs blocks and warps in their order, every other one shuffled.
    """
    driver, own = build(op, architecture)
    environment: Mapping[str, str] = {"PTX_FILE": str(ptx or own), "PTX_COUNTS": counts}
    return Harness(op, "plain", driver=driver, environment=environment, timeout=timeout)


def launches_of(result: Result) -> list[dict[str, Any]]:
    """The counts of a request's launches, in order: the fields of counters.h, kernel, blocks, threads and
    longest_block_cycles (timing.h); with "lines" a list of places and their counts."""
    return json.loads(result.report) if result.report else []
