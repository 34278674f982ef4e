"""The table of kernel resources, from what the CUDA compilers print: registers, spills, memory and size of the blocks.

The build runs this file as a script, and the table becomes part of ``refinedet._C``; `refinedet.profiling.resources`
reads it there. It uses the standard library only, so that it also runs where nothing is installed yet::

    python -I tools/ptxas.py kernel_resources.h --ptxas detect.cu.o.log ... --ptx detect.ptx ...
"""

import argparse
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # the fields of refinedet.profiling.resources.KernelResources, by name


def parse(ptxas: Iterable[str], ptx: Iterable[str]) -> list[Row]:
    """The table from the output of ``nvcc -Xptxas -v`` and, for the size of the blocks, the kernels' PTX."""
    compiled = [row for text in ptxas for row in _COMPILED.findall(text)]
    blocks = [row for text in ptx for row in _BLOCK_SIZE.findall(text)]
    names = readable([mangled for mangled, *_ in compiled + blocks])
    threads = {names[mangled]: int(size) for mangled, size in blocks}
    rows = [_resources(names[mangled], threads[names[mangled]], *facts) for mangled, *facts in compiled]
    return sorted(rows, key=lambda row: (row["kernel"], float(row["architecture"])))


_COMPILED = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+)(\d)[af]?'(.*?)Used (\d+) registers(.*?)$", re.DOTALL | re.MULTILINE
)
_BLOCK_SIZE = re.compile(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)")


def _resources(kernel: str, threads: int, major: str, minor: str, properties: str, registers: str, used: str) -> Row:
    def count(what: str, text: str) -> int:
        found = re.search(rf"(\d+) bytes {what}", text)
        return int(found[1]) if found else 0

    return {
        "kernel": kernel,
        "architecture": f"{major}.{minor}",
        "registers": int(registers),
        "spills": count("spill stores", properties) + count("spill loads", properties),
        "stack": count("stack frame", properties),
        "shared": count("smem", used),
        "threads": threads,
    }


def readable(mangled: list[str]) -> dict[str, str]:
    """Mangled name -> ``score_anchors_kernel<Half>``. c++filt comes with every C++ compiler."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return dict(zip(mangled, map(_short, done.stdout.splitlines()), strict=True))


def _short(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\w+::", "", name).partition("(")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="write the table of kernel resources as a C++ string")
    parser.add_argument("header", type=Path)
    parser.add_argument("--ptxas", type=Path, nargs="+", required=True)
    parser.add_argument("--ptx", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    rows = parse((path.read_text() for path in arguments.ptxas), (path.read_text() for path in arguments.ptx))
    text = "[" + ",\n".join(json.dumps(row) for row in rows) + "]"
    header = f'#pragma once\n\ninline constexpr const char* kKernelResources = R"json({text})json";\n'
    if not arguments.header.exists() or arguments.header.read_text() != header:
        arguments.header.write_text(header)


if __name__ == "__main__":
    main()
