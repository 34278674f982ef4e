"""Instructions of the CPU operators, counted by callgrind in a program without torch: operators.cpp.

valgrind does not know AVX-512, so it counts the AVX2 clones. It shows every program the same processor, and the program
gets no environment, so that the counts are the same at every run.
"""

import ast
import contextlib
import fcntl
import io
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from guard.baseline import Measured, Values
from guard.processes import GuardError, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "guard"
DRIVER = HERE / "operators.cpp"

INSTALL = "valgrind is not on PATH; install it (apt-get install valgrind, dnf install valgrind)"
FUNCTION = "measured"  # of the driver
TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)
SECONDS = 300
FAILURE = "valgrind could not count the operators"


# --- Building ---------------------------------------------------------------------------------------------------------


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def product_flags() -> list[str]:
    """Those of CXX_FLAGS in setup.py, which cannot be imported. What is computed there is for torch."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "CXX_FLAGS":
            assert isinstance(statement.value, ast.List)
            return [str(item.value) for item in statement.value.elts if isinstance(item, ast.Constant)]
    raise GuardError("setup.py has no list CXX_FLAGS; the operators are counted as it compiles them")


def sources(overlay: Path | None = None) -> list[Path]:
    """The operators of the CPU and what they share, but for what needs torch. A file below `overlay` comes before that
    of the same path below csrc."""
    found = [*CSRC.glob("ops/*/*_cpu.cpp"), *CSRC.glob("cpu/*.cpp")]
    changed = [overlay / path.relative_to(CSRC) if overlay else path for path in sorted(found)]
    chosen = [new if new.exists() else old for new, old in zip(changed, sorted(found), strict=True)]
    return [path for path in chosen if "#include <torch/" not in path.read_text()]


def ninja_file(overlay: Path | None) -> str:
    from ninja.ninja_syntax import Writer, escape

    text = io.StringIO()
    ninja = Writer(text)
    includes = [f"-I{folder}" for folder in (overlay, CSRC, HERE) if folder]
    ninja.variable("cxx", escape(shlex.join(compiler())))
    ninja.variable("flags", escape(shlex.join([*product_flags(), *includes])))
    ninja.rule("compile", "$cxx -MD -MF $out.d $flags $more -c $in -o $out", depfile="$out.d", deps="gcc")
    # Now: otherwise the first call of each function of a library is looked up while it is counted.
    ninja.rule("link", "$cxx $in -o $out -Wl,-z,now")
    objects: list[str] = []
    for source in sources(overlay):
        objects += ninja.build(f"{source.stem}.o", "compile", str(source))
    objects += ninja.build("driver.o", "compile", str(DRIVER), variables={"more": "-O1"})  # it is not counted
    ninja.build(DRIVER.stem, "link", objects)
    return text.getvalue()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from building in `folder` at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(overlay: Path | None = None) -> Path:
    """The program that calls the operators, compiled again where something has changed."""
    folder = overlay / "build" if overlay else BUILD
    with locked(folder):
        (folder / "build.ninja").write_text(ninja_file(overlay))
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder)]
        done = subprocess.run(ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise GuardError(f"the operators do not compile into the program that is counted:\n{done.stdout}")
    return folder / DRIVER.stem


# --- Counting ---------------------------------------------------------------------------------------------------------


def count(program: Path, *operators: str, environment: Mapping[str, str] | None = None) -> Values:
    """Instructions of every case, or of those of one operator: each is dumped into a file as its call ends."""
    valgrind = find_valgrind()
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--toggle-collect={FUNCTION}", f"--dump-after={FUNCTION}", "--callgrind-out-file=counts"]
        command = [valgrind, "--tool=callgrind", *options, str(program), *operators]
        printed = run(command, FAILURE, SECONDS, cwd=folder, env=dict(environment or {}))
        cases = [line.split("\t") for line in printed.splitlines()]
        dumps = [Path(folder, f"counts.{number}") for number in range(1, len(cases) + 1)]
        if not cases or not all(dump.exists() for dump in dumps):
            raise GuardError(f"{FAILURE}: it wrote no counts")
        values: Values = {}
        for (operator, case), dump in zip(cases, dumps, strict=True):
            total = TOTAL.search(dump.read_text())
            if total is None:
                raise GuardError(f"callgrind did not count {operator}, {case}")
            values.setdefault(operator, {})[case] = int(total[1])
    return values


def first_line(command: list[str]) -> str:
    return run(command, f"{command[0]} does not say its version").splitlines()[0]


def compiler_name(version: str) -> str:
    """GCC says what it was called by: c++, g++ and g++-12 may be the same."""
    return re.sub(r"^\S*[cg]\+\+\S* (?=\()", "GCC ", version)


def find_valgrind() -> str:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise GuardError(INSTALL)
    return valgrind


def measure() -> Measured:
    """Raises GuardError where there is no valgrind, or the operators do not compile."""
    valgrind = find_valgrind()
    values = count(build())
    made_with = {
        "compiler": compiler_name(first_line([*compiler(), "--version"])),
        "C library": " ".join(platform.libc_ver()),
        "valgrind": first_line([valgrind, "--version"]),
        "machine": platform.machine(),
    }
    return Measured(values, made_with)
