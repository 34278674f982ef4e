"""What the benchmarks share: one thread, alternating timing of ours and a peer, and a table at the end.

``make benchmark`` times; without --benchmark-enable every benchmark only checks that both sides agree.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from support.gpu import skip_without_gpu

CALLS_PER_TURN = 3

_LINES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_gpu(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[_LINES]:
        terminalreporter.section("medians of alternating runs, one thread, CPU time")
        for line in config.stash[_LINES]:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Callable[..., None]:
    """``compare(ours, peer, at_least=1.0, rounds=30)``: time both, and demand a ratio of their medians.

    The two take turns, so that a change in the machine's speed meets both. A turn is the best of three calls in CPU
    time, which leaves out what other processes take and the caches they have emptied. pytest-benchmark then records
    ours, with the ratio, for comparison between commits.
    """

    def run(ours: Callable[[], object], peer: Callable[[], object], at_least: float = 1.0, rounds: int = 30) -> None:
        if benchmark.enabled:
            ratio = _ratio(ours, peer, rounds)
            benchmark.extra_info["ratio"] = ratio
        benchmark(ours)
        if benchmark.enabled:
            assert ratio >= at_least

    def _ratio(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> float:
        our_times, peer_times = [], []
        for _ in range(rounds):
            our_times.append(_cpu_seconds(ours))
            peer_times.append(_cpu_seconds(peer))
        our_time, peer_time = statistics.median(our_times), statistics.median(peer_times)
        request.config.stash[_LINES].append(
            f"{request.node.name:<40} ours {our_time * 1e6:9.0f} us   peer {peer_time * 1e6:9.0f} us   "
            f"ratio {peer_time / our_time:6.1f}"
        )
        return peer_time / our_time

    return run


def _cpu_seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(CALLS_PER_TURN):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)
