"""What the benchmarks share: one thread, turns of ours and its peers, and one table at the end.

``make benchmark`` times; without --benchmark-enable every benchmark only checks that all sides agree.
"""

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from support.gpu import skip_without_gpu
from turns import BUDGET, Row, Table, clock_of, take_turns

_TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = Table()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_gpu(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[_TABLE]
    if table.rows or table.verdicts:
        terminalreporter.section("operators and networks")
        for line in table.lines():
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """The one at the end."""
    return request.config.stash[_TABLE]


@pytest.fixture
def compare(request: pytest.FixtureRequest, table: Table, benchmark: BenchmarkFixture) -> Callable[..., None]:
    """``compare(ours, {"peer": call, ...}, bars)``: time all, and demand of their medians ``bars["peer"]`` times ours.

    pytest-benchmark then records ours, with the ratios, for comparison between commits.
    """

    def run(
        ours: Callable[[], object],
        peers: Mapping[str, Callable[[], object]],
        bars: Mapping[str, float | None],
        *,
        row: tuple[str, ...] | None = None,
        device: str = "cpu",
        threads: int = 1,
        floor: float | None = None,
        budget: float = BUDGET,
    ) -> None:
        if not benchmark.enabled:
            benchmark(ours)
            return
        medians, turns = take_turns({"ours": ours, **peers}, clock_of(device, threads), budget)
        mine = medians.pop("ours")
        ratios = {name: median / mine for name, median in medians.items()}
        share = None if floor is None else floor / (mine * 1e6)
        table.rows.append(Row(row or (request.node.name,), mine, ratios, share))
        benchmark.extra_info |= {"median us": mine * 1e6, "ratios": ratios, "share of floor": share}
        benchmark.pedantic(ours, rounds=turns, warmup_rounds=1)
        slower = {name: round(ratio, 2) for name, ratio in ratios.items() if ratio < (bars.get(name) or 0)}
        assert not slower, f"ratios below the bars, {dict(bars)}: {slower}"

    return run
