"""Fits the constants of the cost model to the times that `stages.operators` has measured."""

from dataclasses import replace

from gpu_report.cases import BANDWIDTH, COLD, MEMORY, OPERATORS, every_case, model_device
from gpu_report.document import load
from gpu_report.worker import Job, Skip
from refinedet.profiling.calibration import FITTED, Measurement, fit, typical_error


def run(job: Job) -> None:
    report = load(job.out / "report.json")
    times = ((case, report.value(OPERATORS, case.label, COLD)) for case in every_case())
    measured = [Measurement(case.label, case.cost, time) for case, time in times if time is not None]
    bandwidth = report.value(OPERATORS, MEMORY, BANDWIDTH)
    if bandwidth is None or len(measured) < len(FITTED):
        raise Skip(f"part {OPERATORS} has measured too little: run it first, or go on by --resume --calibrate")
    start = model_device(job, bandwidth)
    fitted = fit(replace(start, bandwidth=bandwidth), measured)
    job.note(f"`{start}` before")
    job.note(f"`{fitted}` after: to keep it, put it in DEVICES of refinedet/profiling/cost.py and renew docs/kernels")
    units = {"clock": "GHz", "launch": "us", "issue": "1", "bandwidth": "GB/s"}
    for name, unit in units.items():
        job.figures(f"{name}", unit, {"before": getattr(start, name), "after": getattr(fitted, name)})
    for each in measured:
        before, after = each.cost.predicted(start), each.cost.predicted(fitted)
        job.figures(each.case, "us", {"measured": each.microseconds, "before": before, "after": after})
    errors = {"before": typical_error(start, measured), "after": typical_error(fitted, measured)}
    job.figures("typical factor of error", "1", errors)
