"""Machine code (SASS) of the CUDA kernels, per architecture: docs/kernels/sass.json and, for people, sass.md.

cuobjdump takes it out of an object file or an extension, nvdisasm prints it: the packages nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm, which need neither a driver nor a GPU. `tools/kernel_budget.py` writes the table.
"""

import importlib.util
import json
import re
import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ptxas

ABOUT = """\
# Machine code

What nvcc {nvcc} makes of the kernels, read out of the compiled code by nvdisasm {nvdisasm}, which knows no older
architecture than these. No kernel touches local memory. `tests/build/test_cuda_build.py` fails when a number of
instructions is off by more than 1 %, or any other number at all; `python tools/kernel_budget.py` writes them anew.
"""


@dataclass(frozen=True)
class MachineCode:
    """One kernel on one architecture."""

    kernel: str  # "score_anchors_kernel<Half>"
    architecture: str  # "9.0"
    instructions: int
    wide_global_loads: int  # of 128 bits
    wide_shared_loads: int
    loops: int
    uniform_loops: int  # whose end is decided on the uniform datapath, which is slow where a turn depends on the last
    moves_in_loops: int  # R2UR: values that loops bring to the uniform datapath
    local_accesses: int


@dataclass(frozen=True)
class Table:
    title: str
    cell: Callable[[MachineCode], str]


TABLES = (
    Table("Instructions", lambda row: f"{row.instructions}"),
    Table("128-bit loads: global + shared", lambda row: f"{row.wide_global_loads} + {row.wide_shared_loads}"),
    Table(
        "Loops: decided on the uniform datapath, of all (values that loops move to it by R2UR)",
        lambda row: f"{row.uniform_loops} of {row.loops} ({row.moves_in_loops})",
    ),
)


def program(name: str) -> Path:
    """cuobjdump or nvdisasm of the Python package.

    Raises RuntimeError when it is not installed.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    found = [path for folder in folders for path in folder.glob(f"*/bin/{name}")]
    if not found:
        raise RuntimeError(f"{name} is missing: run `pip install nvidia-cuda-{name}`")
    return found[0]


def version() -> str:
    done = subprocess.run([str(program("nvdisasm")), "--version"], capture_output=True, text=True, check=True)
    (number,) = re.findall(r"release .*V([\d.]+)", done.stdout)
    return str(number)


def table(binary: Path, architecture: str = "*") -> list[MachineCode]:
    """Of all kernels in an object file or shared library, on every architecture or on one like "9.0"."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program("cuobjdump")), "-xelf", "all", str(binary.resolve())]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        files = Path(folder).glob(f"*.sm_{architecture.replace('.', '')}.cubin")
        rows = [row for file in files for row in parse(_disassemble(file))]
    return sort(rows)


def sort(rows: Iterable[MachineCode]) -> list[MachineCode]:
    return sorted(rows, key=lambda row: (row.kernel, float(row.architecture)))


def _disassemble(cubin: Path) -> str:
    command = [str(program("nvdisasm")), "--print-code", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


_TARGET = re.compile(r"^\s*\.target\s+sm_(\d+)(\d)", re.MULTILINE)
_FUNCTION = re.compile(r"^\.text\.(\w+):$(.*?)(?=^//---|\Z)", re.MULTILINE | re.DOTALL)
_LABEL_OR_INSTRUCTION = re.compile(r"^(\.L_\w+):|^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;", re.MULTILINE)
_JUMP = re.compile(r"^(?:@!?(\w+) )?(\w+)(?:\.(\w+))?\b.*`\((\.L_\w+)\)")
_END = re.compile(r"^(?:BRA(?:\.U)? `|EXIT|RET|BRX|JMP)")  # without a predicate: what follows is reached from elsewhere


def parse(text: str) -> list[MachineCode]:
    """What nvdisasm prints of one architecture."""
    (target,) = _TARGET.findall(text)
    functions = _FUNCTION.findall(text)
    names = ptxas.readable([mangled for mangled, _ in functions])
    return [_count(names[mangled], ".".join(target), body) for mangled, body in functions]


def _count(kernel: str, architecture: str, body: str) -> MachineCode:
    labels: dict[str, int] = {}
    code: list[str] = []
    for label, instruction in _LABEL_OR_INSTRUCTION.findall(body):
        if label:
            labels[label] = len(code)
        else:
            code.append(instruction)
    loops = _loops(code, labels)
    inside = {i for loop in loops for i in loop}

    def number(pattern: str, lines: Iterable[int] = range(len(code))) -> int:
        return sum(bool(re.search(rf"(?<!\S){pattern}(?![A-Z0-9])", code[i])) for i in lines)

    return MachineCode(
        kernel,
        architecture,
        instructions=len(code) - number("NOP"),
        wide_global_loads=number(r"LDG\S*\.128"),
        wide_shared_loads=number(r"LDS\S*\.128"),
        loops=len(loops),
        uniform_loops=sum(_is_uniform([code[i] for i in loop]) for loop in loops),
        moves_in_loops=number("R2UR", inside),
        local_accesses=number("LDL") + number("STL"),
    )


def _loops(code: list[str], labels: dict[str, int]) -> list[range]:
    """From the target of a jump back to the jump, where there is no way to the jump but by its target.

    Other jumps back return from code that the compiler put behind the kernel, like votes of warps that have diverged.
    """
    jumps = {i: labels[found[4]] for i, line in enumerate(code) if (found := _JUMP.match(line))}
    ends = [i for i, line in enumerate(code) if i in jumps or _END.match(line)]
    return [
        range(target, jump + 1)
        for jump, target in jumps.items()
        if target < jump and not _reaches(jump, target, code, jumps, ends)
    ]


def _reaches(goal: int, avoided: int, code: list[str], jumps: dict[int, int], ends: list[int]) -> bool:
    """Is there a way from the start to `goal` that does not go through `avoided`?"""
    open_starts, seen = [0], {0}
    while open_starts:
        start = open_starts.pop()
        end = ends[bisect_left(ends, start)]
        if start <= avoided <= end:
            continue
        if end == goal:
            return True
        after = [jumps[end]] if end in jumps else []
        after += [] if _END.match(code[end]) else [end + 1]
        open_starts += [i for i in after if i not in seen]
        seen.update(after)
    return False


def _is_uniform(loop: list[str]) -> bool:
    """Does its last jump, back to the start, hang on the uniform datapath alone?"""
    *body, jump = loop
    if re.search(r"\bUP\d", jump):
        return True
    found = _JUMP.match(jump)
    predicate = found[1] if found else None
    setters = [line for line in body if re.search(rf"(?<!@)(?<!@!)\b{predicate}\b", line.partition(",")[0])]
    return bool(setters) and bool(re.search(r"\bU[RP]\d", setters[-1])) and not re.search(r"\bR\d", setters[-1])


def to_json(rows: Iterable[MachineCode], versions: dict[str, str]) -> str:
    kernels: dict[str, dict[str, Any]] = {}
    for row in rows:
        numbers = asdict(row)
        kernels.setdefault(numbers.pop("kernel"), {})[numbers.pop("architecture")] = numbers
    return json.dumps({**versions, "kernels": kernels}, indent=1) + "\n"


def from_json(budget: dict[str, Any]) -> list[MachineCode]:
    kernels = budget["kernels"].items()
    return [MachineCode(name, architecture, **row) for name, rows in kernels for architecture, row in rows.items()]


def to_markdown(budget: dict[str, Any]) -> str:
    rows = from_json(budget)
    architectures = sorted({row.architecture for row in rows}, key=float)
    parts = [ABOUT.format_map(budget)]
    for shown in TABLES:
        cells = {(row.kernel, row.architecture): shown.cell(row) for row in rows}
        lines = [["kernel", *(f"sm_{name.replace('.', '')}" for name in architectures)]]
        lines.append(["---", *["---:"] * len(architectures)])
        lines += [[f"`{name}`", *(cells[name, item] for item in architectures)] for name in budget["kernels"]]
        parts.append(f"\n## {shown.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "".join(parts)
