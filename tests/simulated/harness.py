"""Builds the driver of an operator (README.md) and talks to it. Needs a C++ compiler, ninja and numpy."""

import contextlib
import fcntl
import functools
import io
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import DTypeLike

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "simulated"
OPERATORS = sorted(path.name for path in CSRC.glob("ops/*"))
SAMPLES = "sample_kernels"  # the harness's own

# No contraction, as in the product: CPU and CUDA take the same decisions.
FLAGS = (
    "-std=c++20",
    "-g",
    "-fno-omit-frame-pointer",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",  # #pragma unroll
    '-DREFINEDET_CUDA_RUNTIME="cuda_on_cpu.h"',
)


@dataclass(frozen=True)
class Variant:
    """One way to compile and run the kernels. The scheduler gets the macro but not the instrumentation."""

    optimise: str
    instrument: tuple[str, ...] = ()
    macro: str | None = None
    environment: tuple[tuple[str, str], ...] = ()  # options of the sanitizer's run time


VARIANTS = {
    "plain": Variant("-O2"),
    "address": Variant(
        "-O1",
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        "CUDA_ON_CPU_ADDRESS_SANITIZER",
        (("ASAN_OPTIONS", "detect_leaks=0"),),
    ),
    "thread": Variant(
        "-O1",
        ("-fsanitize=thread",),
        "CUDA_ON_CPU_THREAD_SANITIZER",
        (("TSAN_OPTIONS", "halt_on_error=1:atexit_sleep_ms=0"),),
    ),
}


class LauncherError(RuntimeError):
    """The launcher refused the request: what it threw."""


class RequestError(ValueError):
    """The request does not fit the adapter."""


@dataclass(frozen=True)
class Result:
    """What a launcher wrote and did."""

    outputs: dict[str, np.ndarray]
    launches: int
    workspace_bytes: int
    report: str  # what the runtime has to say about the launches: ../ptx_on_cpu/README.md


# --- Building ---------------------------------------------------------------------------------------------------------


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def kernel_file(op: str, overlay: Path | None = None) -> Path:
    """Source of the kernels of `op`; the harness's own samples lie beside this file."""
    source = HERE / f"{SAMPLES}.cu" if op == SAMPLES else CSRC / "ops" / op / f"{op}_cuda.cu"
    changed = overlay / overlay_path(source) if overlay else source
    return changed if changed.exists() else source


def overlay_path(source: Path) -> Path:
    """Where the changed version of a source lies below an overlay."""
    return source.relative_to(CSRC if source.is_relative_to(CSRC) else HERE)


def flags(variant: str, overlay: Path | None, *, instrumented: bool = True) -> list[str]:
    chosen = VARIANTS[variant]
    includes = [f"-I{folder}" for folder in (overlay, CSRC, HERE) if folder]
    macros = [f"-D{chosen.macro}"] if chosen.macro else []
    return [*FLAGS, chosen.optimise, *macros, *(chosen.instrument if instrumented else ()), *includes]


def ninja_file(variant: str, overlay: Path | None) -> str:
    """Builds `<op>` for every operator, and the harness's own samples; scheduler and driver are compiled once."""
    from ninja.ninja_syntax import Writer, escape

    text = io.StringIO()
    ninja = Writer(text)
    ninja.variable("cxx", escape(shlex.join(compiler())))
    ninja.variable("flags", escape(shlex.join(flags(variant, overlay))))
    ninja.variable("link_flags", escape(shlex.join(VARIANTS[variant].instrument)))
    command = "$cxx -MD -MF $out.d $flags -x c++ -c $in -o $out"
    ninja.rule("compile", command, depfile="$out.d", deps="gcc", description="compile $in")
    # In one step, so that a test that runs meanwhile finds the old driver or the new one.
    ninja.rule("link", "$cxx $link_flags $in -o $out.new && mv $out.new $out", description="link $out")
    plain_flags = {"flags": escape(shlex.join(flags(variant, overlay, instrumented=False)))}
    ninja.build("scheduler.o", "compile", str(HERE / "scheduler.cpp"), variables=plain_flags)
    ninja.build("driver.o", "compile", str(HERE / "driver.cpp"))
    for op in (*OPERATORS, SAMPLES):
        adapter, more = HERE / "adapt_operator.cpp", ["-include", f"ops/{op}/{op}_cuda.h", f"-DREFINEDET_OPERATOR={op}"]
        if op == SAMPLES:
            adapter, more = HERE / f"adapt_{op}.cpp", []
        flags_of_adapter = {"flags": f"$flags {shlex.join(more)}"}
        ninja.build(f"adapt_{op}.o", "compile", str(adapter), variables=flags_of_adapter)
        ninja.build(f"{op}.o", "compile", str(kernel_file(op, overlay)))
        ninja.build(op, "link", [f"{op}.o", f"adapt_{op}.o", "driver.o", "scheduler.o"])
    return text.getvalue()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from building in `folder` at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(op: str, variant: str, *, overlay: Path | None = None) -> Path:
    """The driver of `op`, compiled again where a file it depends on has changed.

    Files below `overlay` come before those of the same path below csrc/, and what is built of them lies there as well.
    """
    folder = (overlay or BUILD) / variant
    with locked(folder):
        text = ninja_file(variant, overlay)
        file = folder / "build.ninja"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j2", op]
        done = subprocess.run(ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the harness for {op} ({variant}) does not compile:\n{done.stdout}")
    return folder / op


# --- Talking ----------------------------------------------------------------------------------------------------------

OK, LAUNCHER_ERROR, REQUEST_ERROR = range(3)  # Status in driver.cpp

# Stack frames around a kernel, and the legend of AddressSanitizer: the same in every report.
SURROUNDINGS = re.compile(
    r"^ +#\d+ .*(?:\bstd::|refinedet::cuda::launch<|/(?:scheduler|driver|adapt_\w+)\.cpp:|_start_main).*\n"
    r"|^Shadow byte legend[\s\S]*",
    re.MULTILINE,
)


def encode_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("=I", len(data)) + data


def encode_array(name: str, dtype: np.dtype, shape: Sequence[int], offset: int) -> bytes:
    header = struct.pack(f"=II{len(shape)}qI", len(shape), dtype.itemsize, *shape, offset)
    return encode_string(name) + encode_string(dtype.str) + header


def read_exactly(stream: io.BufferedReader, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


@functools.cache
def at_fixed_addresses() -> list[str]:
    """Runs a command without address randomisation, if this machine lets us.

    ThreadSanitizer of GCC 13 and older dies where the kernel randomises more bits than it expects (google/sanitizers
    issue 1716).
    """
    command = ["setarch", "-R"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run([*command, "true"], check=True, stderr=subprocess.DEVNULL)
        return command
    return []


class Harness:
    """Runs the launchers of one operator, compiled as `variant`: "plain", "address" or "thread". Usable in `with`.

    Builds the driver unless one is given. It starts at the first request, and again after a crash, with `environment`
    added to that of this process. `timeout`, in seconds of processor time, is for requests that do not say.
    """

    def __init__(
        self,
        op: str,
        variant: str = "plain",
        *,
        driver: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: int = 60,
    ) -> None:
        self.op = op
        self.variant = variant
        self.timeout = timeout
        self._environment = {**os.environ, **(environment or {}), **dict(VARIANTS[variant].environment)}
        self._driver = driver or build(op, variant)
        self.last_result: Result | None = None  # of run(), for callers behind an operator's `launch`
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._end_process()
        self._errors.close()

    def run(
        self,
        launcher: str,
        arrays: Mapping[str, np.ndarray],
        scalars: Mapping[str, int | float],
        outputs: Mapping[str, tuple[DTypeLike, Sequence[int]]],
        *,
        seed: int = 0,
        misaligned: Collection[str] = (),
        timeout: int | None = None,
    ) -> Result:
        """Calls `launcher` of the adapter on copies of `arrays`; see README.md.

        `outputs` gives element type and shape of each output. Arrays named in `misaligned` start one element after an
        aligned address. `timeout` is in seconds of processor time. Raises AssertionError when the kernel has a bug,
        LauncherError when the launcher refuses, RequestError when the adapter and the request do not fit.
        """
        given = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
        wanted = {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in sorted(outputs.items())}
        reals = {name: value for name, value in scalars.items() if isinstance(value, float | np.floating)}
        integers = {name: value for name, value in scalars.items() if name not in reals}

        def offset(name: str, dtype: np.dtype) -> int:
            return dtype.itemsize if name in misaligned else 0

        seconds = self.timeout if timeout is None else timeout
        parts = [struct.pack("=QI", seed, seconds), encode_string(launcher)]
        for fields, code in ((integers, "q"), (reals, "d")):
            parts.append(struct.pack("=I", len(fields)))
            parts += [encode_string(name) + struct.pack(f"={code}", value) for name, value in fields.items()]
        parts.append(struct.pack("=I", len(given)))
        for name, array in given.items():
            parts += [encode_array(name, array.dtype, array.shape, offset(name, array.dtype)), array.tobytes()]
        parts.append(struct.pack("=I", len(wanted)))
        parts += [encode_array(name, dtype, shape, offset(name, dtype)) for name, (dtype, shape) in wanted.items()]
        try:
            return self._exchange(b"".join(parts), wanted)
        except (EOFError, BrokenPipeError):
            raise AssertionError(self._obituary(launcher, seed, seconds)) from None

    def _exchange(self, request: bytes, wanted: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> Result:
        process = self._start_process()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request)
        process.stdin.flush()

        def read(code: str) -> int:
            return struct.unpack(f"={code}", read_exactly(process.stdout, struct.calcsize(f"={code}")))[0]

        status = read("q")
        if status != OK:
            message = read_exactly(process.stdout, read("I")).decode()
            raise LauncherError(message) if status == LAUNCHER_ERROR else RequestError(message)
        launches, workspace_bytes = read("q"), read("q")
        report = read_exactly(process.stdout, read("I")).decode()
        results = {}
        for name, (dtype, shape) in wanted.items():
            data = read_exactly(process.stdout, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            results[name] = np.frombuffer(data, dtype).reshape(shape)
        self.last_result = Result(results, launches, workspace_bytes, report)
        return self.last_result

    def _start_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors.seek(0)
            self._errors.truncate()
            self._process = subprocess.Popen(
                [*(at_fixed_addresses() if self.variant == "thread" else []), str(self._driver)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=self._environment,
            )
        return self._process

    def _end_process(self) -> int | None:
        """Exit status; None if there was no process."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait()
        process.stdout.close()
        return status

    def _obituary(self, launcher: str, seed: int, seconds: int) -> str:
        status = self._end_process()
        self._errors.seek(0)
        text = SURROUNDINGS.sub("", self._errors.read().decode(errors="replace")).strip()
        reason = f"no end in {seconds} s of processor time" if status == -signal.SIGPROF else f"exit status {status}"
        return f"{self.op}.{launcher}, {self.variant}, seed {seed}: {reason}\n{text}"
