"""The harness that runs CUDA kernels on the CPU: right kernels give CUDA's results, and every planted bug is found."""

import re
from collections.abc import Iterator
from pathlib import Path

import mutate
import numpy as np
import pytest
from simulated.harness import HERE, VARIANTS, Harness, LauncherError, RequestError, Result

OP = "sample_kernels"
POISON = -875836469  # bytes 0xcb
FULL_WARP = np.arange(32)


def harness_of(variant: str) -> Iterator[Harness]:
    with Harness(OP, variant) as harness:
        yield harness


@pytest.fixture(scope="module")
def plain() -> Iterator[Harness]:
    yield from harness_of("plain")


@pytest.fixture(scope="module")
def address() -> Iterator[Harness]:
    yield from harness_of("address")


@pytest.fixture(scope="module")
def thread() -> Iterator[Harness]:
    yield from harness_of("thread")


@pytest.fixture(params=VARIANTS)
def harness(request: pytest.FixtureRequest) -> Harness:
    return request.getfixturevalue(request.param)


def run(
    harness: Harness,
    kernel: str,
    values: object = (0,),
    size: int = 1,
    *,
    block: int | tuple[int, int, int] = 32,
    grid: int | tuple[int, int, int] = 1,
    n: int | None = None,
    shared_bytes: int = 0,
    memset: int = 0xCB,
    workspace: int = 0,
    repeat: int = 1,
    **options: object,
) -> Result:
    """Launches a sample kernel on `values` with `size` outputs that start as bytes `memset`; `n` = number of values."""
    values = np.asarray(values, np.int32)
    dimensions = [(size, 1, 1) if isinstance(size, int) else size for size in (grid, block)]
    names = [f"{what}_{axis}" for what in ("grid", "block") for axis in "xyz"]
    scalars = {
        **dict(zip(names, np.ravel(dimensions), strict=True)),
        "n": len(values) if n is None else n,
        "shared_bytes": shared_bytes,
        "memset": memset,
        "workspace": workspace,
        "repeat": repeat,
    }
    return harness.run(kernel, {"in": values}, scalars, {"out": (np.int32, (size,))}, **options)


def output(harness: Harness, kernel: str, *arguments: object, **options: object) -> np.ndarray:
    return run(harness, kernel, *arguments, **options).outputs["out"]


def failure(harness: Harness, kernel: str, *arguments: object, **options: object) -> str:
    with pytest.raises(AssertionError) as caught:
        run(harness, kernel, *arguments, **options)
    return str(caught.value)


def marked_lines(kernel: str) -> set[int]:
    """Lines of sample_kernels.cu that race in `kernel`."""
    lines = (HERE / f"{OP}.cu").read_text().splitlines()
    found = {number for number, line in enumerate(lines, 1) if f"// race: {kernel}, " in line}
    assert found
    return found


# --- Right kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "grid"), [(32, 1), (64, 1), (64, 4), (256, 2)])
def test_block_reduction(harness: Harness, block: int, grid: int) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, block * grid - 7)
    for seed in range(5):
        assert output(harness, "sum", values, block=block, grid=grid, memset=0, seed=seed) == values.sum()


def test_dynamic_shared_memory(harness: Harness) -> None:
    values = np.arange(50)
    assert output(harness, "reverse", values, 50, block=64, shared_bytes=200).tolist() == values[::-1].tolist()


def test_warp_collectives(harness: Harness) -> None:
    values = np.random.default_rng(1).integers(-5, 6, 64)
    values[32:] = np.abs(values[32:]) + 1  # all votes of the second warp are yes
    found = output(harness, "warp", values, 8 * 64, block=64, n=37).reshape(2, 32, 8)
    for warp, results in zip(values.reshape(2, 32), found, strict=True):
        assert results[:, 0].tolist() == np.roll(warp, -1).tolist()
        assert results[:, 1].tolist() == [*warp[:3], *warp[:29]]
        assert results[:, 2].tolist() == [*warp[3:], *warp[29:]]
        assert results[:, 3].tolist() == warp[FULL_WARP ^ 5].tolist()
        assert (results[:, 4] == warp[37 % 32]).all()
        ballot = sum(1 << lane for lane in range(32) if warp[lane] > 0)
        assert (results[:, 5].view(np.uint32) == ballot).all()
        assert (results[:, 6] == (warp > 0).any()).all()
        assert (results[:, 7] == (warp > 0).all()).all()


def test_last_warp_may_be_short(harness: Harness) -> None:
    found = output(harness, "short_warp", np.ones(40), 80, block=40).view(np.uint32).reshape(40, 2)
    assert (found[:32, 0] == 0xFFFFFFFF).all()
    assert (found[32:, 0] == 0xFF).all()
    assert (found[:, 1] == 1).all()


def test_parts_of_a_warp_exchange_on_their_own(harness: Harness) -> None:
    found = output(harness, "half_warp", FULL_WARP, 32)
    assert found.tolist() == [*(FULL_WARP[:16] ^ 1), *(FULL_WARP[16:] ^ 2)]


def test_atomics_and_early_exit(harness: Harness) -> None:
    values = np.random.default_rng(2).integers(1, 1000, 75)
    found = output(harness, "atomics", values, 8, block=32, grid=3, memset=0)
    assert found.tolist() == [values.sum(), values.max(), 0, np.bitwise_or.reduce(values), 1, 1, 1, 1]


def test_votes_of_a_block(harness: Harness) -> None:
    for votes in (np.zeros(64), np.ones(64), FULL_WARP.repeat(2) % 3):
        found = output(harness, "votes", votes, 3 * 64, block=64).reshape(64, 3)
        assert (found == [(votes > 0).sum(), (votes > 0).all(), (votes > 0).any()]).all()


def test_lanes_exchange_between_warp_barriers(harness: Harness) -> None:
    found = output(harness, "warp_rounds", np.arange(64), 64, block=64, n=3)
    assert found.tolist() == ((np.arange(64) ^ 1) + 3).tolist()


def test_positions_in_three_dimensions(harness: Harness) -> None:
    grid, block = (2, 3, 4), (5, 2, 3)
    found = output(harness, "positions", size=24 * 30 * 12, block=block, grid=grid).reshape(24, 30, 4, 3)
    for number in range(24):
        assert (found[number, :, 1] == [number % 2, number // 2 % 3, number // 6]).all()
    for number in range(30):
        assert (found[:, number, 0] == [number % 5, number // 5 % 2, number // 10]).all()
    assert (found[:, :, 2] == block).all()
    assert (found[:, :, 3] == grid).all()


def test_memory_starts_poisoned(harness: Harness) -> None:
    assert output(harness, "first_bytes", size=4, block=1, shared_bytes=16).tolist() == [POISON] * 4


def test_launches_and_workspace_are_counted(harness: Harness) -> None:
    result = run(harness, "sum", [3], repeat=4, memset=0, workspace=1000)
    assert (result.launches, result.workspace_bytes) == (4, 1000)
    assert result.outputs["out"].tolist() == [12]
    assert run(harness, "sum", [3], memset=0).launches == 1


def test_a_seed_repeats_its_schedule(harness: Harness) -> None:
    def order(seed: int) -> list[int]:
        return output(harness, "order", size=1 + 96, block=32, grid=3, memset=0, seed=seed)[1:].tolist()

    orders = [order(seed) for seed in range(4)]
    assert orders == [order(seed) for seed in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(96)) for order in orders)
    assert len({tuple(np.array(order) // 32) for order in orders}) > 1  # blocks take turns as well


def run_raw(harness: Harness, values: np.ndarray, **scalars: int) -> Result:
    """The kernel `sum` with one thread."""
    names = [f"{what}_{axis}" for what in ("grid", "block") for axis in "xyz"]
    numbers = {
        **dict.fromkeys(names, 1),
        "n": 1,
        "shared_bytes": 0,
        "memset": 0,
        "workspace": 0,
        "repeat": 1,
        **scalars,
    }
    return harness.run("sum", {"in": values}, {**numbers, **scalars}, {"out": (np.int32, (1,))})


def test_fields_that_do_not_fit(plain: Harness) -> None:
    with pytest.raises(RequestError, match=r"^sum: array 'in' has type <f4, the adapter wants <i4$"):
        run_raw(plain, np.zeros(3, np.float32))
    with pytest.raises(RequestError, match=r"^sum: the adapter did not ask for 'extra'$"):
        run_raw(plain, np.zeros(3, np.int32), extra=1)
    with pytest.raises(RequestError, match=r"^refuse: no number 'n'$"):
        plain.run("refuse", {}, {}, {})
    with pytest.raises(RequestError, match=r"^sum: no array 'out'$"):
        plain.run("sum", {}, {"n": 1}, {})
    with pytest.raises(RequestError, match=r"^nothing: no such launcher$"):
        plain.run("nothing", {}, {}, {})


def test_launcher_may_refuse(harness: Harness) -> None:
    with pytest.raises(LauncherError, match=r"^n = 7 is too large$"):
        harness.run("refuse", {}, {"n": 7}, {})
    assert run(harness, "sum", [3], memset=0).launches == 1  # the process is still there


# --- Planted bugs -----------------------------------------------------------------------------------------------------

RACES = {
    "missing_barrier": {"block": 64},
    "missing_second_barrier": {"block": 64},
    "missing_syncwarp": {"block": 64},
    "shuffle_is_no_barrier": {"block": 64},
    "syncwarp_is_no_barrier": {"block": 64},
    "plain_counter": {"block": 64},
    "block_race": {"block": 64, "grid": 2},
}


@pytest.mark.parametrize("kernel", RACES)
@pytest.mark.parametrize("seed", range(3))
def test_races_are_reported_with_their_lines(thread: Harness, kernel: str, seed: int) -> None:
    report = failure(thread, kernel, np.arange(64), 64, seed=seed, **RACES[kernel])
    assert "ThreadSanitizer: data race" in report
    named = {int(line) for line in re.findall(rf"{OP}\.cu:(\d+)", report)}
    assert named == marked_lines(kernel)
    assert re.search(r"'block \d,0,0 thread \d+'", report)


def test_race_in_a_full_block(thread: Harness) -> None:
    assert "data race" in failure(thread, "missing_second_barrier", np.arange(256), 256, block=256)


@pytest.mark.parametrize("blocks", [2, 20])
def test_race_between_blocks_that_have_barriers(thread: Harness, blocks: int) -> None:
    assert "data race" in failure(thread, "plain_counter_of_blocks", size=1, block=64, grid=blocks)


@pytest.mark.parametrize(
    ("kernel", "right"),
    [
        ("missing_barrier", FULL_WARP[::-1]),
        ("missing_second_barrier", FULL_WARP[::-1]),
        ("missing_syncwarp", FULL_WARP ^ 1),
        ("syncwarp_is_no_barrier", np.arange(64)[::-1]),
    ],
)
def test_missing_barriers_change_results_of_some_seed(plain: Harness, kernel: str, right: np.ndarray) -> None:
    size = len(right)
    results = [output(plain, kernel, np.arange(size), size, block=size, seed=seed).tolist() for seed in range(5)]
    assert any(result != right.tolist() for result in results)


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        ("divergent_barrier", {}, r"lines \d+ and \d+: threads of one block wait at different barriers"),
        ("barrier_after_exit", {"n": 20}, r"line \d+: threads wait at a barrier, but thread 20 has left the kernel"),
        ("barrier_against_collective", {}, r"line \d+: thread \d+ waits for lane 5, which waits at a barrier"),
        ("exited_lane", {"n": 20}, r"line \d+: (thread \d+ waits for lane|lane) 20.* has left the kernel"),
        ("not_in_own_mask", {}, r"line \d+: lane \d+ is not in its own mask"),
        ("different_masks", {}, r"lines \d+ and \d+: lanes of one mask wait in different collectives"),
        ("different_sites", {}, r"lines \d+ and \d+: lanes of one mask wait in different collectives"),
        ("outside_mask", {}, r"line \d+: lane 8 reads lane 16, which is not in the mask"),
        ("much_shared", {"shared_bytes": 4}, r"49156 bytes of shared memory"),
        ("sum", {"block": 1025}, r"a block of 1025 x 1 x 1 threads"),
        ("sum", {"grid": 0}, r"a grid of 0 x 1 x 1 blocks"),
    ],
)
def test_what_cuda_leaves_undefined_is_an_error(harness: Harness, kernel: str, options: dict, message: str) -> None:
    assert re.search(f"cuda_on_cpu: kernel sample: {message}", failure(harness, kernel, FULL_WARP, 32, **options))


OVERRUNS = {
    "shared_overrun": {"n": 16},
    "dynamic_overrun": {"n": 16, "shared_bytes": 64},
    "write_overrun": {"n": 16},
}


@pytest.mark.parametrize(("kernel", "options"), [*OVERRUNS.items(), ("read_overrun", {})])
def test_accesses_out_of_bounds_are_reported_with_their_line(address: Harness, kernel: str, options: dict) -> None:
    report = failure(address, kernel, np.arange(16), 16, **options)
    assert "AddressSanitizer: heap-buffer-overflow" in report
    assert re.search(rf"#0 .*{kernel}_kernel.*{OP}\.cu:\d+", report)


@pytest.mark.parametrize("kernel", OVERRUNS)
def test_writes_out_of_bounds_are_noticed_afterwards(plain: Harness, kernel: str) -> None:
    report = failure(plain, kernel, np.arange(16), 16, **OVERRUNS[kernel])
    where = "array 'out' was written outside" if kernel == "write_overrun" else "a shared array of 64 bytes was written"
    assert where in report


def test_reads_out_of_bounds_find_poison(plain: Harness) -> None:
    assert output(plain, "read_overrun", np.zeros(16)) == POISON


def test_undefined_behaviour(address: Harness) -> None:
    overflow = failure(address, "signed_overflow", [2**31 - 1], n=1)
    assert re.search(rf"{OP}\.cu:\d+:\d+: runtime error: signed integer overflow", overflow)
    assert run(address, "misaligned_vector", np.zeros(4), 4).launches == 1
    for name in ("in", "out"):
        report = failure(address, "misaligned_vector", np.zeros(4), 4, misaligned=[name])
        assert re.search(rf"{OP}\.cu:\d+:\d+: runtime error: \w+ .*misaligned address", report)


def test_endless_kernel(harness: Harness) -> None:
    report = failure(harness, "endless", memset=0, block=1, timeout=1)
    assert report.startswith(f"{OP}.endless, {harness.variant}, seed 0: no end in 1 s of processor time")


def test_a_new_process_follows_a_crash(harness: Harness) -> None:
    failure(harness, "divergent_barrier")
    assert output(harness, "sum", [1, 2], memset=0).tolist() == [3]


# --- The mutation tool ------------------------------------------------------------------------------------------------

KERNEL = """
constexpr int kMost = 4 < 5 ? 1 : 2;
template <class T> __device__ T first(const T* values, int n) { return n > 0 ? values[0] : T{}; }
__device__ int declared(int n);
int host(int i, int n) { return i < n; }
template <class T>
__global__ void __launch_bounds__(256) add_kernel(T* out, int n) {  // i < n
  const int i = int{blockIdx.x * 8} + static_cast<int>(threadIdx.x);
  __syncthreads();
  const bool most = __syncthreads_count(i < n) >= n;
  if (i >= n || (first(out, n) < 0 && i % 2)) return;
  for (int k = 0; k < kMost; ++k) out[i] += 1;  // only saves work: a constant
  const int last = min(most ? i : n, n - 1);
  out[last] = i << 1 & 3;
}
"""


def test_places_that_mutants_change() -> None:
    text, mutants = mutate.instrument(KERNEL, "add.cu", first=7)
    assert [(mutant.number, mutant.function, mutant.kind, mutant.code, mutant.becomes) for mutant in mutants] == [
        (7, "first", "bounds", "n > 0", "false"),
        (8, "add_kernel", "barrier", "__syncthreads()", "nothing"),
        (9, "add_kernel", "barrier", "__syncthreads_count(i < n)", "i < n"),
        (10, "add_kernel", "bounds", "i < n", "true"),
        (11, "add_kernel", "bounds", "__syncthreads_count(i < n) >= n", "false"),
        (12, "add_kernel", "bounds", "i >= n", "false"),
        (13, "add_kernel", "bounds", "first(out, n) < 0", "true"),
        (14, "add_kernel", "bounds", "k < kMost", "true"),
        (15, "add_kernel", "bounds", "min(most ? i : n, n - 1)", "most ? i : n"),
        (16, "add_kernel", "bounds", "min(most ? i : n, n - 1)", "n - 1"),
    ]
    assert [mutant.number for mutant in mutants if mutant.exempt == "a constant"] == [14]
    for line in (
        "{ return (!::mutation::is(7) && (n > 0)) ? values[0] : T{}; }",
        "  (::mutation::is(8) ? void() : __syncthreads());",
        "  const bool most = (!::mutation::is(11) && ((::mutation::is(9) ? static_cast<int>(bool(i < n)) : "
        "__syncthreads_count((::mutation::is(10) || (i < n)))) >= n));",
        "  if ((!::mutation::is(12) && (i >= n)) || ((::mutation::is(13) || (first(out, n) < 0)) && i % 2)) return;",
        "  for (int k = 0; (::mutation::is(14) || (k < kMost)); ++k) out[i] += 1;  // only saves work: a constant",
        "  const int last = ::mutation::mutable_min(15, most ? i : n, n - 1);",
    ):
        assert line in text
    assert len(text.splitlines()) == len(KERNEL.splitlines())


def check_sum(harness: Harness) -> None:
    for seed in range(3):
        assert output(harness, "sum", np.arange(1, 91), block=64, grid=2, memset=0, seed=seed) == 4095


def run_sum(harness: Harness) -> None:
    run(harness, "sum", np.arange(90), block=64, grid=2, memset=0)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[mutate.Mutant]]:
    folder = tmp_path_factory.mktemp("mutants")
    return folder, mutate.write_overlay([HERE / f"{OP}.cu"], folder)


def test_mutants_are_caught_by_a_check_and_by_no_blind_one(overlay: tuple[Path, list[mutate.Mutant]]) -> None:
    folder, mutants = overlay
    of_sum = [mutant for mutant in mutants if mutant.function == "sum_kernel"]
    assert [mutant.kind for mutant in of_sum] == ["barrier"] * 2 + ["bounds"] * 3
    blind = mutate.trial(mutate.Operator(OP, run_sum, frozenset()), "plain", folder)
    careful = mutate.trial(mutate.Operator(OP, check_sum, frozenset()), "plain", folder)
    for mutant in mutants:
        mutate.judge(mutant, [blind])
    assert [mutant.reached for mutant in mutants] == [mutant in of_sum for mutant in mutants]
    assert not any(mutant.as_it_should_be for mutant in of_sum if mutant.kind == "barrier")
    for mutant in of_sum:
        mutate.judge(mutant, [careful])
    assert {mutant.caught_by for mutant in of_sum} == {f"{OP}, plain"}
    assert all(mutant.as_it_should_be for mutant in of_sum)
    report = mutate.report(mutants)
    assert f"| {OP}.cu | `sum_kernel` | 2 of 2 | 3 of 3 |  |" in report
    assert f"| {OP}.cu | `reverse_kernel` | 0 of 1 | 0 of 2 |  |" in report
    assert "| `__syncthreads()` | `nothing` | **NOT reached** |" in report
    of_sum[-1].exempt = "no reason"
    assert not of_sum[-1].as_it_should_be
    assert f"exempt: no reason (**yet caught**: {OP}, plain)" in mutate.report(mutants)


def test_a_check_that_rejects_the_unchanged_kernel_is_an_error(overlay: tuple[Path, list[mutate.Mutant]]) -> None:
    def reject(harness: Harness) -> None:
        raise AssertionError("always")

    with pytest.raises(SystemExit, match=rf"^{OP} fails unchanged, plain:\nAssertionError: always$"):
        mutate.trial(mutate.Operator(OP, reject, frozenset()), "plain", overlay[0])
