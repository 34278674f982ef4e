"""Shared by all tests: one thread per worker, a GPU for its own tests only, and a run of nothing is a failure."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; pytest-xdist fills the cores

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPU from a run that does not name its tests: the others train, and demand the same bits every time."""
    if not any("tests/gpu" in argument for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run whose every test was skipped proves nothing: it ends like one that found no test, with exit status 5."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.exitstatus == pytest.ExitCode.OK and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
