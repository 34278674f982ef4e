"""The interpreter of PTX: right kernels give CUDA's results, every planted bug is found and called by its name."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_budget import cuda_build
from ptx_on_cpu import harness as ptx_on_cpu
from simulated.harness import SAMPLES, Harness
from simulated.test_harness import (  # tests of right kernels, with the fixture `harness` of this file
    FULL_WARP,
    RACES,
    failure,
    marked_lines,
    output,
    run,
    test_atomics_and_early_exit,  # noqa: F401
    test_block_reduction,  # noqa: F401
    test_dynamic_shared_memory,  # noqa: F401
    test_lanes_exchange_between_warp_barriers,  # noqa: F401
    test_last_warp_may_be_short,  # noqa: F401
    test_parts_of_a_warp_exchange_on_their_own,  # noqa: F401
    test_votes_of_a_block,  # noqa: F401
    test_warp_collectives,  # noqa: F401
)

pytestmark = pytest.mark.ptx

HEADER = """
.version 9.0
.target sm_75
.address_size 64
.visible .entry _ZN6sample{length}{name}_kernelEPKiPii(
    .param .u64 in,
    .param .u64 out,
    .param .u32 n
)
.maxntid 256, 1, 1
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<99>;
    .reg .f32 %f<99>;
    .reg .b64 %rd<99>;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    ld.param.u32 %r1, [n];
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd3, %r2, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.u32 %r3, [%rd4];
"""


@pytest.fixture(scope="module", autouse=True)
def toolkit() -> cuda_build.Toolkit:
    try:
        return ptx_on_cpu.toolkit()
    except cuda_build.ToolkitError as error:
        pytest.skip(f"there is no PTX: {error}")


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with ptx_on_cpu.start(SAMPLES, counts="launches") as harness:
        yield harness


def written(folder: Path, body: str, name: str = "sum") -> Path:
    """A file with a kernel whose thread t has in[t] in %r3, the address of out[t] in %rd5, n in %r1 and t in %r2."""
    path = folder / "kernel.ptx"
    path.write_text(HEADER.format(length=len(f"{name}_kernel"), name=name) + body + "\n    ret;\n}\n")
    return path


def outcome(folder: Path, body: str, values: object = FULL_WARP, **options: object) -> np.ndarray:
    size = len(np.asarray(values))
    with ptx_on_cpu.start(SAMPLES, ptx=written(folder, body)) as harness:
        return output(harness, "sum", values, size, block=size, **options)


def message(folder: Path, body: str, values: object = FULL_WARP, **options: object) -> str:
    size = len(np.asarray(values))
    with ptx_on_cpu.start(SAMPLES, ptx=written(folder, body)) as harness:
        return failure(harness, "sum", values, size, block=size, **options)


# --- Right kernels ----------------------------------------------------------------------------------------------------


def test_seeds_shuffle_blocks_and_warps(harness: Harness) -> None:
    def order(seed: int) -> list[int]:
        return output(harness, "order", size=1 + 96, block=32, grid=3, memset=0, seed=seed)[1:].tolist()

    assert order(0) == list(range(96))
    orders = [order(seed) for seed in range(1, 9)]
    assert orders == [order(seed) for seed in range(1, 9)]
    assert all(sorted(order) == list(range(96)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_counts_of_a_kernel_known_by_heart(tmp_path: Path) -> None:
    """64 threads load 4 bytes each: two requests of four sectors; the branch that half of each warp takes diverges."""
    body = """
    and.b32 %r4, %r2, 1;
    setp.eq.s32 %p1, %r4, 1;
    @%p1 bra DONE;
    atom.global.add.u32 %r5, [%rd2], 0;
DONE:"""
    with ptx_on_cpu.start(SAMPLES, ptx=written(tmp_path, body), counts="launches") as harness:
        (counts,) = ptx_on_cpu.launches_of(run(harness, "sum", np.arange(64), 64, block=64, memset=0))
    assert (counts["kernel"], counts["blocks"], counts["threads"]) == ("sum_kernel", [1, 1], 64)
    assert (counts["global_requests"], counts["global_sectors"]) == (4, 2 * 4 + 2 * 1)
    assert counts["global_bytes"] == 64 * 4 + 32 * 4
    assert (counts["divergent_branches"], counts["atomics"], counts["atomic_collisions"]) == (2, 32, 30)
    assert counts["warp_instructions"] == 2 * (10 + 3 + 1 + 1)
    assert counts["thread_instructions"] == 64 * (10 + 3 + 1) + 32


def bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))


NAN = bits(float("nan"))


@pytest.mark.parametrize(
    ("code", "value", "expected"),  # %r4 of %r3
    [
        ("add.s32 %r4, %r3, 1;", 2**31 - 1, -(2**31)),
        ("mul.lo.s32 %r4, %r3, %r3;", 65537, 131073),
        ("mul.hi.u32 %r4, %r3, %r3;", -1, -2),
        ("mad.lo.s32 %r4, %r3, -3, 5;", 7, -16),
        ("div.u32 %r4, %r3, 0;", 7, -1),
        ("div.s32 %r4, %r3, -2;", -7, 3),
        ("rem.s32 %r4, %r3, 4;", -7, -3),
        ("shl.b32 %r4, %r3, 32;", 7, 0),
        ("shr.s32 %r4, %r3, 77;", -7, -1),
        ("shr.u32 %r4, %r3, 1;", -2, 2**31 - 1),
        ("brev.b32 %r4, %r3;", 1, -(2**31)),
        ("clz.b32 %r4, %r3;", 0, 32),
        ("bfind.shiftamt.u32 %r4, %r3;", 1, 31),
        ("bfind.u32 %r4, %r3;", 0, -1),
        ("popc.b32 %r4, %r3;", -1, 32),
        ("bfi.b32 %r4, %r3, 0, 28, 9;", 0x1F, -(2**28)),
        ("bfe.u32 %r4, %r3, 4, 8;", 0x12345, 0x34),
        ("min.s32 %r4, %r3, 0;", -7, -7),
        ("min.u32 %r4, %r3, 0;", -7, 0),
        ("selp.b32 %r4, 1, 2, %p1;", 0, 2),
        ("mov.b32 {%rs1, %rs2}, %r3; mov.b32 %r4, {%rs2, %rs1};", 0x00010002, 0x00020001),
        ("cvt.s64.s32 %rd6, %r3; shr.s64 %rd6, %rd6, 40; cvt.u32.u64 %r4, %rd6;", -5, -1),
        ("cvt.u16.u32 %rs1, %r3; cvt.s32.s16 %r4, %rs1;", 0x18000, -32768),
        ("mov.b32 %f1, %r3; max.f32 %f2, %f1, 0f3F800000; mov.b32 %r4, %f2;", NAN, bits(1)),
        ("mov.b32 %f1, %r3; max.f32 %f2, %f1, 0f00000000; mov.b32 %r4, %f2;", bits(-0.0), 0),
        ("mov.b32 %f1, %r3; setp.neu.f32 %p2, %f1, %f1; selp.b32 %r4, 1, 0, %p2;", NAN, 1),
        ("mov.b32 %f1, %r3; setp.ne.f32 %p2, %f1, %f1; selp.b32 %r4, 1, 0, %p2;", NAN, 0),
        ("mov.b32 %f1, %r3; cvt.rzi.s32.f32 %r4, %f1;", bits(-3e9), -(2**31)),
        ("mov.b32 %f1, %r3; cvt.rzi.s32.f32 %r4, %f1;", NAN, 0),
        ("mov.b32 %f1, %r3; fma.rn.f32 %f2, %f1, %f1, 0fBF800002; mov.b32 %r4, %f2;", bits(1 + 2**-23), bits(2**-46)),
        ("mov.b32 %f1, %r3; div.rn.f32 %f2, %f1, 0f40400000; mov.b32 %r4, %f2;", bits(1), bits(1 / 3)),
        ("cvt.rn.f32.u32 %f1, %r3; mov.b32 %r4, %f1;", -1, bits(2**32)),
    ],
)
def test_instructions_at_their_edges(tmp_path: Path, code: str, value: int, expected: int) -> None:
    lines = "\n".join(f"    {statement.strip()};" for statement in code.strip(";").split(";"))
    body = f"    setp.ne.s32 %p1, %r3, 0;\n{lines}\n    st.global.u32 [%rd5], %r4;"
    assert outcome(tmp_path, body, [value]).tolist() == [expected]


# --- Planted bugs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", RACES)
@pytest.mark.parametrize("seed", range(3))
def test_races_are_reported_with_their_lines(harness: Harness, kernel: str, seed: int) -> None:
    report = failure(harness, kernel, np.arange(64), 64, seed=seed, **RACES[kernel])
    # A reader that comes before the writer finds memory that nobody has written.
    race = r"race in (shared|global) memory: (write|read) after (write|read)|uninitialised shared memory is read"
    assert re.search(rf"{kernel}_kernel: ({race})", report)
    named = {int(line) for line in re.findall(rf"{SAMPLES}\.cu:(\d+)", report)}
    assert named <= marked_lines(kernel)
    assert named


@pytest.mark.parametrize(
    ("kernel", "options", "expected"),
    [
        ("plain_counter_of_blocks", {"block": 64, "grid": 2}, "race in global memory"),
        ("divergent_barrier", {}, "divergent barrier: other lanes of the warp wait at another"),
        ("barrier_after_exit", {"n": 20}, "deadlock: a barrier waits for threads that have left the kernel"),
        (
            "barrier_against_collective",
            {},
            "deadlock: lanes wait for others of their member mask that wait at a barrier",
        ),
        ("exited_lane", {"n": 20}, "the member mask names lanes that have left the kernel"),
        ("not_in_own_mask", {}, "wrong member mask: the lane is not in its own"),
        ("different_masks", {}, "wrong member mask: lanes disagree"),
        ("outside_mask", {}, "a shuffle reads a lane outside of the member mask"),
        ("first_bytes", {"shared_bytes": 16}, "uninitialised shared memory is read"),
        ("shared_overrun", {"n": 16}, "access out of bounds in shared memory: byte 64 of 64"),
        ("dynamic_overrun", {"n": 16, "shared_bytes": 64}, "access out of bounds in shared memory: byte 64 of 64"),
        ("write_overrun", {"n": 32}, "access out of bounds in global memory"),
        ("read_overrun", {}, "access out of bounds in global memory"),
        ("misaligned_vector", {"misaligned": ["in"]}, "misaligned access in global memory"),
        ("reverse", {"shared_bytes": (48 << 10) + 4}, "more than 48 KiB of shared memory"),
        ("sum", {"block": 1025}, "wrong launch shape"),
        ("positions", {"block": (8, 2, 1), "size": 9999}, "blocks of two dimensions are not supported"),
    ],
)
def test_bugs_are_called_by_their_names(harness: Harness, kernel: str, options: dict, expected: str) -> None:
    size = options.pop("size", 33) if kernel != "write_overrun" else 32
    options = {"block": 33 if kernel == "write_overrun" else 32, **options}
    assert expected in failure(harness, kernel, FULL_WARP, size, **options)


def test_endless_kernel(harness: Harness) -> None:
    assert "no end in 1 s of processor time" in failure(harness, "endless", memset=0, block=1, timeout=1)


def test_uninitialised_registers(tmp_path: Path) -> None:
    found = message(tmp_path, "    add.s32 %r4, %r3, %r50;\n    st.global.u32 [%rd5], %r4;")
    assert "sum_kernel: an uninitialised register is read\n  add.s32 %r4, %r3, %r50" in found
    some = message(tmp_path, "    setp.gt.s32 %p1, %r2, 3;\n    @%p1 mov.u32 %r4, 1;\n    st.global.u32 [%rd5], %r4;")
    assert "an uninitialised register is read" in some
    assert "lanes 0x0000000f" in some
    decides = message(tmp_path, "    @%p4 bra DONE;\nDONE:")
    assert "an uninitialised register decides" in decides


def test_misaligned_access_in_shared_memory(tmp_path: Path) -> None:
    body = "    .shared .align 4 .b8 buffer[8];\n    mov.u32 %r4, buffer;\n    st.shared.u32 [%r4+2], %r3;"
    assert "misaligned access in shared memory at 2" in message(tmp_path, body, [1])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sin.approx.f32 %f1, %f2;", "unknown instruction: sin.approx.f32"),
        ("add.sat.s32 %r4, %r3, %r3;", "unknown instruction: add.sat.s32 %r4, %r3, %r3"),
        ("ld.local.u32 %r4, [%rd4];", "state space .local is not supported"),
        ("bar.sync 1;", "only barrier 0 is supported"),
        ("mov.u32 %r4, %clock;", "unknown register %clock"),
        ("mov.u32 %r4, nowhere;", "unknown operand nowhere"),
        ("bra NOWHERE;", "no label NOWHERE"),
        ("atom.global.dec.u32 %r4, [%rd4], %r3;", "unknown instruction: atom.global.dec.u32"),
    ],
)
def test_what_the_reader_does_not_know_is_an_error(tmp_path: Path, line: str, expected: str) -> None:
    assert expected in message(tmp_path, f"    {line}")


def test_a_race_that_no_barrier_separates(tmp_path: Path) -> None:
    """There is no barrier in the whole kernel, and the lanes are of one warp."""
    body = """
    .shared .align 4 .b8 buffer[4];
    mov.u32 %r4, buffer;
    setp.eq.s32 %p1, %r2, 3;
    @%p1 st.shared.u32 [%r4], %r3;
    ld.shared.u32 %r5, [%r4];
    st.global.u32 [%rd5], %r5;"""
    assert "race in shared memory: read after write" in message(tmp_path, body)
    ordered = body.replace("    ld.shared", "    bar.warp.sync 0xffffffff;\n    ld.shared")
    assert outcome(tmp_path, ordered, FULL_WARP + 10).tolist() == [13] * 32
