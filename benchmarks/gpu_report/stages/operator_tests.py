"""tests/ops on the GPU: golden numbers, properties, ties, types, levels, hypothesis."""

from gpu_report.stages.pytest_runs import run_tests
from gpu_report.worker import Job


def run(job: Job) -> None:
    run_tests(job, "tests/ops", "gpu and not long")
