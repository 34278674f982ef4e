"""pytest in the report: the outcome of every test is written when it is known."""

from typing import Any

import pytest

from gpu_report import machine
from gpu_report.worker import Job

# Options of pyproject.toml that other plugins than pytest's own understand are left out with addopts.
OPTIONS = ["-o", "addopts=", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
WORKERS = 4
FAILURES = 20  # that are told


class Outcomes:
    """A plugin of pytest that counts and tells."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.collected = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected = len(session.items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.job.fail(f"{report.nodeid} cannot be collected: {_last_line(report)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            if report.failed and self.counts["failed"] <= FAILURES:
                self.job.fail(f"{report.nodeid}: {_last_line(report)}")


def _last_line(report: Any) -> str:
    lines = str(report.longreprtext).strip().splitlines()
    errors = [line for line in lines if line.startswith("E ")]
    return (errors or lines or ["no reason given"])[-1].removeprefix("E ").strip()


def run_tests(job: Job, path: str, marks: str) -> None:
    """In a dry run the tests are collected: they need a GPU."""
    outcomes = Outcomes(job)
    options = [*OPTIONS, "-m", marks]
    if job.dry_run:
        options.append("--collect-only")
    elif machine.has_package("xdist"):
        options += ["--numprocesses", str(WORKERS)]
    status = pytest.main([*options, str(machine.ROOT / path)], plugins=[outcomes])
    counts = {"collected": outcomes.collected} if job.dry_run else outcomes.counts
    job.figures(marks, "count", counts)
    # tests/conftest.py calls a run in which no test has passed one of no tests.
    fine = {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED} if job.dry_run else {pytest.ExitCode.OK}
    if status not in fine or not any(counts.values()):
        job.fail(f"pytest ended with {pytest.ExitCode(status).name}; its output is in the log of the part")
