"""Registers, memory and occupancy of every CUDA kernel on every architecture it was compiled for.

The build writes the table, with tools/ptxas.py, into ``refinedet._C``; here it is read.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

WARP = 32
REGISTERS_PER_MULTIPROCESSOR = 65536  # 32-bit ones; of every architecture here
REGISTER_UNIT = 256  # registers are given to a warp in this unit
WARP_UNIT = 4  # a multiprocessor has four parts, each with a quarter of the registers


@dataclass(frozen=True)
class Multiprocessor:
    """What limits the blocks on a multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities")."""

    warps: int
    blocks: int
    shared_kib: int
    shared_unit: int = 128  # bytes; the shared memory of a block is rounded up to it
    shared_reserved: int = 1024  # bytes that the system takes for itself in every block


# Bytes that a launch asks for beside the static shared memory; of detect, with its default top_k and keep_top_k.
DYNAMIC_SHARED = {
    **{f"suppress_class_kernel<{element}>": 2 * 1024 * 8 for element in ("float", "Half", "BFloat16")},
    "merge_classes_kernel": 2 * 2048 * 8,
}

MULTIPROCESSORS = {
    "5.2": Multiprocessor(64, 32, 96, 256, 0),
    "6.1": Multiprocessor(64, 32, 96, 256, 0),
    "7.0": Multiprocessor(64, 32, 96, 256, 0),
    "7.5": Multiprocessor(32, 16, 64, 256, 0),
    "8.0": Multiprocessor(64, 32, 164),
    "8.6": Multiprocessor(48, 16, 100),
    "8.9": Multiprocessor(48, 24, 100),
    "9.0": Multiprocessor(64, 32, 228),
    "10.0": Multiprocessor(64, 32, 228),
    "12.0": Multiprocessor(48, 24, 100),
}


@dataclass(frozen=True)
class KernelResources:
    """One kernel on one architecture. Memory in bytes."""

    kernel: str  # "score_anchors_kernel<Half>"
    architecture: str  # "9.0"
    registers: int  # of a thread
    spills: int  # stored and loaded by a thread, because it has too few registers
    stack: int  # of a thread, spills included
    shared: int  # of a block, without DYNAMIC_SHARED
    threads: int  # of a block

    def blocks_per_multiprocessor(self) -> int:
        """Blocks that a multiprocessor holds at a time.

        Raises:
            KeyError: the architecture is not in MULTIPROCESSORS.
        """
        limits = MULTIPROCESSORS[self.architecture]
        warps = -(-self.threads // WARP)
        registers = _round_up(self.registers * WARP, REGISTER_UNIT)  # of a warp
        warps_with_registers = REGISTERS_PER_MULTIPROCESSOR // registers // WARP_UNIT * WARP_UNIT
        blocks = [limits.blocks, limits.warps // warps, warps_with_registers // warps]
        shared = self.shared + DYNAMIC_SHARED.get(self.kernel, 0)
        shared = _round_up(shared + limits.shared_reserved, limits.shared_unit)
        if shared > 0:
            blocks.append(limits.shared_kib * 1024 // shared)
        return min(blocks)

    def occupancy(self) -> float:
        """Share of the multiprocessor's warps that are in use when it is full of this kernel."""
        warps = -(-self.threads // WARP)
        return self.blocks_per_multiprocessor() * warps / MULTIPROCESSORS[self.architecture].warps


def table() -> list[KernelResources]:
    """Of the installed extension; empty where it has no CUDA kernels or cannot be used."""
    from refinedet.ops import extension

    return [KernelResources(**row) for row in json.loads(extension.kernel_resources())]


def summary(rows: Iterable[KernelResources]) -> str:
    """One line: "14 kernels, at most 64 registers, no spills, occupancy 50 to 100 %"."""
    rows = list(rows)
    spilling = sorted({row.kernel for row in rows if row.spills})
    shares = [row.occupancy() for row in rows if row.architecture in MULTIPROCESSORS]
    parts = [
        f"{len({row.kernel for row in rows})} kernels",
        f"at most {max(row.registers for row in rows)} registers",
        f"spills in {', '.join(spilling)}" if spilling else "no spills",
    ]
    if shares:
        parts.append(f"occupancy {min(shares):.0%} to {max(shares):.0%}")
    return ", ".join(parts)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
