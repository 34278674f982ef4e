"""Compiles the extension in place, with the interpreter of the report, for the GPUs of this machine."""

import os
import subprocess
import sys
import time

from gpu_report import machine
from gpu_report.worker import Job

NEEDED = {"setuptools": 77, "pybind11": 3, "ninja": 1}  # and from which major version on, as pyproject.toml has it


def run(job: Job) -> None:
    lacking = missing()
    if lacking:
        wanted = " ".join(f"'{name}>={NEEDED[name]}'" for name in lacking)
        job.fail(
            f"the build needs {', '.join(lacking)}: pip install {wanted}; where there is no network, carry them as "
            f"wheels (pip download --no-deps {wanted}) and install those into a folder of PYTHONPATH"
        )
        return
    begin = time.perf_counter()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=machine.ROOT, env=environment(job.dry_run))
    if done.returncode != 0:
        raise RuntimeError("the build has failed; the compilers' messages are in parts/build.log")
    job.figure("setup.py build_ext", "time", time.perf_counter() - begin, "s")


def missing() -> list[str]:
    """What is absent or too old."""
    return [name for name, major in NEEDED.items() if not _major(machine.version(name)) >= major]


def _major(version: str) -> int:
    return 0 if version == "absent" else int(version.partition(".")[0])


def environment(dry_run: bool) -> dict[str, str]:
    """With a GPU: kernels or an error, and for the GPUs present alone. Containers ask for all others as well."""
    kept = dict(os.environ)
    if not dry_run:
        kept["REFINEDET_CUDA"] = "1"
        kept.pop("TORCH_CUDA_ARCH_LIST", None)
    return kept
