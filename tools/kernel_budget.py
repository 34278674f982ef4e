"""The budget of the CUDA kernels: registers, shared memory and occupancy per architecture, docs/kernels/resources.json,
and what their machine code consists of, sass.json.

``python tools/kernel_budget.py`` compiles all kernels and writes both anew, with resources.md and sass.md, for
people.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nvrtc
import ptxas
import sass

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of cuda_build, which is part of no package

import cuda_build  # noqa: E402
from refinedet.files import write_text  # noqa: E402
from refinedet.profiling.resources import DYNAMIC_SHARED, KernelResources  # noqa: E402

CSRC = ROOT / "csrc"
SOURCES = sorted(CSRC.glob("ops/*/*.cu"))
FOLDER = ROOT / "docs" / "kernels"
BUDGET = FOLDER / "resources.json"
TABLE = FOLDER / "resources.md"
CODE = FOLDER / "sass.json"
CODE_TABLE = FOLDER / "sass.md"
OLD_ARCHITECTURES = ("5.2", "6.1", "7.0")  # Titan X (Maxwell), Titan X (Pascal), V100

ABOUT = """\
# Registers, shared memory, occupancy

What the compilers make of the kernels: registers of a thread, and in brackets the share of a multiprocessor's warps
that is in use when it is full of the kernel. No kernel spills on any architecture. `tests/build/test_cuda_build.py`
fails when a kernel needs more than this, two registers excepted; `python tools/kernel_budget.py` writes the table anew.
NVRTC {nvrtc} compiled for sm_52, sm_61 and sm_70, nvcc {nvcc} for the others.

"""


@dataclass(frozen=True)
class Compiled:
    """What a compiler says: the table, its warnings, and what nvdisasm says of the code where it can read it."""

    rows: list[KernelResources]
    warnings: list[str]
    code: list[sass.MachineCode]


def site_packages() -> Path:
    import torch

    return Path(torch.__file__).parents[1]


def table(logs: Iterable[str], ptx: Iterable[str]) -> list[KernelResources]:
    return [KernelResources(**row) for row in ptxas.parse(logs, ptx)]


def with_nvcc(toolkit: cuda_build.Toolkit) -> Compiled:
    """For every default architecture that nvcc knows. Warnings are errors."""
    architectures = cuda_build.gencode_flags(cuda_build.default_architectures(toolkit))
    flags = [toolkit.nvcc, *toolkit.flags(warnings_are_errors=True), f"-I{CSRC}"]

    def compile_source(source: Path) -> tuple[str, str, list[sass.MachineCode]]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / source.stem
            ptx = [*flags, "-arch=compute_75", "-ptx", str(source), "-o", str(output)]
            subprocess.run(ptx, check=True, capture_output=True)
            text = output.read_text()
            code = [*flags, *architectures, "-c", str(source), "-o", str(output)]
            done = subprocess.run(code, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
            return done.stderr, text, sass.table(output)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs, ptx, code = zip(*pool.map(compile_source, SOURCES), strict=True)
    return Compiled(table(logs, ptx), [], sass.sort(row for rows in code for row in rows))


def with_nvrtc() -> Compiled:
    """For the architectures that nvcc has dropped."""
    logs, ptx = zip(
        *(nvrtc.compile_kernels(source, name, CSRC) for source in SOURCES for name in OLD_ARCHITECTURES), strict=True
    )
    warnings = [line for log in logs for line in log.splitlines() if "warning" in line]
    return Compiled(table(logs, ptx), [line for line in warnings if "Architectures prior to" not in line], [])


def to_json(rows: list[KernelResources], versions: dict[str, str]) -> str:
    kernels: dict[str, dict[str, Any]] = {}
    for row in rows:
        kernel = kernels.setdefault(
            row.kernel,
            {"threads": row.threads, "shared": row.shared + DYNAMIC_SHARED.get(row.kernel, 0), "architectures": {}},
        )
        kernel["architectures"][row.architecture] = {"registers": row.registers, "occupancy": row.occupancy()}
    return json.dumps({**versions, "kernels": kernels}, indent=1) + "\n"


def to_markdown(budget: dict[str, Any]) -> str:
    """The table of the budget for people."""
    architectures = list(next(iter(budget["kernels"].values()))["architectures"])
    header = ["kernel", "threads", "shared bytes", *(f"sm_{name.replace('.', '')}" for name in architectures)]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, kernel in budget["kernels"].items():
        cells = (kernel["architectures"][architecture] for architecture in architectures)
        numbers = (f"{cell['registers']} ({cell['occupancy']:.0%})" for cell in cells)
        lines.append([f"`{name}`", str(kernel["threads"]), str(kernel["shared"]), *numbers])
    return ABOUT.format_map(budget) + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    toolkit = cuda_build.find_toolkit(os.environ, site_packages())
    old, new = with_nvrtc(), with_nvcc(toolkit)
    rows = sorted(old.rows + new.rows, key=lambda row: (row.kernel, float(row.architecture)))
    resources = to_json(rows, {"nvcc": toolkit.version, "nvrtc": nvrtc.version()})
    code = sass.to_json(new.code, {"nvcc": toolkit.version, "nvdisasm": sass.version()})
    write_text(BUDGET, resources)
    write_text(TABLE, to_markdown(json.loads(resources)))
    write_text(CODE, code)
    write_text(CODE_TABLE, sass.to_markdown(json.loads(code)))


if __name__ == "__main__":
    main()
