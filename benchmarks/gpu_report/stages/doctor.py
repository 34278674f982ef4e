"""What `refinedet doctor` says of this machine."""

from gpu_report.worker import Job
from refinedet.commands import doctor
from refinedet.ops import extension


def run(job: Job) -> None:
    found = doctor.report()
    for line in found.text().splitlines():
        job.note(line.strip())
    if extension.problem() is not None:
        job.fail(": ".join(extension.problem() or ()))
    elif not job.dry_run:
        problem = extension.cuda_problem(job.device) if found.gpus else ("torch finds no GPU", "see the notes")
        if problem is not None:
            job.fail(": ".join(problem))
