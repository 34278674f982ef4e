"""Shared by all tests: one thread per worker, and a run in which nothing ran is a failure."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; pytest-xdist fills the cores

import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run whose every test was skipped proves nothing: it ends like one that found no test, with exit status 5."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.exitstatus == pytest.ExitCode.OK and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
