"""Format ``aoti``: the program of ``torch`` compiled by AOTInductor to machine code, which libtorch runs alone."""

from __future__ import annotations

from pathlib import Path

import torch

from refinedet.errors import ExportError
from refinedet.exporting.job import Job
from refinedet.exporting.torch_program import trace
from refinedet.runtimes.description import KEY


def write(job: Job, path: Path) -> None:
    """Compile the program and write it with its description among its metadata, under `KEY`.

    ExportError where the compiler fails, which AOTInductor calls: as a rule because there is none.
    """
    settings = {"aot_inductor.metadata": {KEY: job.description.to_json()}}
    try:
        torch._inductor.aoti_compile_and_package(trace(job), package_path=str(path), inductor_configs=settings)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{path.name} not written: AOTInductor cannot compile the network ({reason})") from error
