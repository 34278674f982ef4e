"""What the machine is, for whoever reads a measurement."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refinedet import __version__

if TYPE_CHECKING:
    import torch

_CPU_INFO, _DRIVER = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")  # of Linux
_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")


@dataclass(frozen=True)
class Machine:
    """Processor, versions and, where it is one, the GPU."""

    cpu: str
    cores: int  # that this process may use
    threads: int  # of torch, and so of the operators
    instructions: tuple[str, ...]  # of vectors, as Linux names them; empty elsewhere
    system: str
    python: str
    refinedet: str
    torch: str
    numpy: str
    opencv: str
    device: str  # "cpu" or the GPU's name
    cuda: str | None  # version that torch was built for
    cudnn: str | None
    driver: str | None
    load_average: float | None  # of the last minute: processes that wanted to run

    def text(self) -> str:
        """In two lines."""
        vectors = f", {' '.join(self.instructions)}" if self.instructions else ""
        processor = f"{self.cpu}, {self.cores} cores, torch on {self.threads}{vectors}"
        gpu = f"{self.device}, driver {self.driver}, CUDA {self.cuda}, cuDNN {self.cudnn}; "
        return (
            f"{'' if self.driver is None else gpu}{processor}\n"
            f"refinedet {self.refinedet}, torch {self.torch}, NumPy {self.numpy}, OpenCV {self.opencv}, "
            f"Python {self.python}, {self.system}"
        )


def describe(device: torch.device) -> Machine:
    """This machine, and ``device`` of it."""
    import cv2  # here, for `cpu_name` is asked where none of these can be imported
    import numpy as np
    import torch

    on_gpu = device.type == "cuda"
    return Machine(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instructions=_instructions(),
        system=platform.platform(),
        python=platform.python_version(),
        refinedet=__version__,
        torch=torch.__version__,
        numpy=np.__version__,
        opencv=cv2.__version__,
        device=torch.cuda.get_device_name(device) if on_gpu else device.type,
        cuda=torch.version.cuda if on_gpu else None,
        cudnn=str(torch.backends.cudnn.version()) if on_gpu else None,
        driver=_driver() if on_gpu else None,
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def cpu_name() -> str:
    """The processor's model."""
    found = re.search(r"^model name\s*:\s*(.*)$", _read(_CPU_INFO), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that this process may still take without swapping, by the machine and its control group; None where nothing
    tells."""
    free = re.search(r"^MemAvailable:\s*(\d+) kB$", _read(_MEMORY), re.MULTILINE)
    if free is None:
        return None
    limit, used = _read(_GROUP / "memory.max").strip(), _read(_GROUP / "memory.current").strip()
    group = int(limit) - int(used) if limit.isdigit() and used.isdigit() else int(free[1]) * 1024
    return max(0, min(int(free[1]) * 1024, group))


def _instructions() -> tuple[str, ...]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read(_CPU_INFO), re.MULTILINE)
    have = found[1].split() if found else []
    return tuple(name for name in _INSTRUCTIONS if name in have)


def _driver() -> str:
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _read(_DRIVER))
    return found[1] if found else "unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
