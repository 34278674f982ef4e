"""tests/gpu: launchers, graphs, streams, the network, training. What is long there is the part `sanitizer`."""

from gpu_report.stages.pytest_runs import run_tests
from gpu_report.worker import Job


def run(job: Job) -> None:
    run_tests(job, "tests/gpu", "gpu and not long")
