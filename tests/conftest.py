"""Shared by all tests: one thread per worker, a GPU for its own tests only, and a run of nothing is a failure."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; pytest-xdist fills the cores

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.gpu import skip_without_gpu

from refinedet.ops import devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_gpu(items)
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests without the mark `gpu` compute on the CPU: they train, and demand the same bits every time."""
    if item.get_closest_marker("gpu"):
        return (yield)
    with cpu_by_default():
        return (yield)


class WithoutGpu(subprocess.Popen):
    """A process from which any GPU is hidden."""

    def __init__(self, *arguments: Any, env: Any = None, **options: Any) -> None:
        environment = {**(os.environ if env is None else env), "CUDA_VISIBLE_DEVICES": ""}
        super().__init__(*arguments, env=environment, **options)


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Makes "auto" choose the CPU, here and in processes that are started here.

    It does not hide the GPU from this process: torch remembers what it finds when it first looks, so that no test
    after it would find one. Nor can a fixture do it: those of a module or a session would be made before.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_best_device", lambda: torch.device("cpu"))
        patch.setattr(subprocess, "Popen", WithoutGpu)
        yield


@pytest.fixture
def hears_signals() -> Iterator[None]:
    """Signals as at a terminal. Under nohup SIGHUP is ignored, in a script's background SIGINT, and by children too."""
    heard = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    deaf = [signum for signum in heard if signal.getsignal(signum) is signal.SIG_IGN]
    for signum in deaf:
        signal.signal(signum, heard[signum])
    yield
    for signum in deaf:
        signal.signal(signum, signal.SIG_IGN)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run whose every test was skipped proves nothing: it ends like one that found no test, with exit status 5."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.exitstatus == pytest.ExitCode.OK and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
