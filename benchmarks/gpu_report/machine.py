"""What a report says of its machine. Standard library only."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "triton", "numpy", "pytest")  # whose versions matter
CUDA_PROGRAMS = "/usr/local/cuda/bin"


def gpu() -> dict[str, str] | None:
    """The first GPU as nvidia-smi describes it; None where there is none."""
    names = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm")
    output = _output("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    values = output.splitlines()[0].split(", ") if output else []
    if len(values) != len(names):
        return None
    return dict(zip(("device", "driver", "capability", "memory", "largest clock"), values, strict=True))


def describe(commit: str | None) -> dict[str, str]:
    """Device, driver, versions, commit. ``commit``: where the tree has no git."""
    facts = gpu() or {"device": "none", "driver": "none"}
    facts |= {"processor": processor(), "processor cores": str(len(os.sched_getaffinity(0)))}
    facts |= {"system": platform.platform(), "python": platform.python_version()}
    facts |= {name: version(name) for name in PACKAGES}
    facts["nvcc"] = _nvcc()
    facts["commit"] = commit or _commit()
    facts["kernels"] = sources_hash()
    return facts


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def has_package(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def find_program(name: str) -> str | None:
    """Of the CUDA toolkit, which is often not on PATH."""
    return shutil.which(name) or shutil.which(name, path=CUDA_PROGRAMS)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def sources_hash() -> str:
    """Of csrc: equal numbers are of equal kernels, with or without git."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _nvcc() -> str:
    nvcc = find_program("nvcc")
    found = re.search(r"release .*V([\d.]+)", _output(nvcc, "--version") or "") if nvcc else None
    return found[1] if found else "absent"


def _commit() -> str:
    if not (ROOT / ".git").exists():
        return "unknown"
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return f"{commit} with changes" if _output("git", "-C", str(ROOT), "status", "--porcelain") else commit


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
