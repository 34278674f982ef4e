"""The peak of a process's memory, of one piece of work at a time."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
_RESET_PEAK = "5"


class PeakMemory:
    """From its making on: ``resident()``, the most bytes of this process that were in memory, where Linux tells it, and
    ``on_gpu()``, the most that torch had allocated on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset = False
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self._reset = True
        except OSError:  # another system, or a container that forbids it
            pass
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def resident(self) -> int | None:
        """None where nothing tells it."""
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE) if self._reset else None
        return int(found[1]) * 1024 if found else None

    def on_gpu(self) -> int | None:
        """None without a GPU."""
        if self._device.type != "cuda":
            return None
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device))
