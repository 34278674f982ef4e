"""The kernels of an operator on the harness, for tests/ops/test_<op>.py: what runs on it bears the mark `simulated`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from simulated.harness import Harness

HARNESSES = {"harness", "fast_harness", "racing_harness"}


def pytest_itemcollected(item: pytest.Item) -> None:
    if HARNESSES.intersection(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.simulated)


def start(request: pytest.FixtureRequest, variant: str) -> Iterator[Harness]:
    with Harness(request.module.__name__.removeprefix("test_"), variant) as harness:
        yield harness


@pytest.fixture(scope="module")
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Under AddressSanitizer."""
    yield from start(request, "address")


@pytest.fixture(scope="module")
def fast_harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Without a sanitizer, for what is large."""
    yield from start(request, "plain")


@pytest.fixture(scope="module")
def racing_harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Under ThreadSanitizer, for what is small."""
    yield from start(request, "thread")


@pytest.fixture(scope="module")
def ptx_harness(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Harness]]:
    """Starts the interpreter of the kernels' PTX of an architecture."""
    # Imported here: it finds the package in this checkout, and these tests run on other copies of it as well.
    from kernel_budget import cuda_build
    from ptx_on_cpu import harness as ptx_on_cpu

    try:
        ptx_on_cpu.toolkit()
    except cuda_build.ToolkitError as error:
        pytest.skip(f"there is no PTX: {error}")
    op = request.module.__name__.removeprefix("test_")
    with ExitStack() as started:
        yield lambda architecture: started.enter_context(ptx_on_cpu.start(op, architecture))
