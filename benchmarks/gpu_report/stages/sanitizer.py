"""The small comparisons once more under each tool of compute-sanitizer, all tools at a time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

from gpu_report import machine
from gpu_report.worker import Job

TOOLS = ["memcheck", "racecheck", "synccheck", "initcheck"]
# Torch asks the driver for functions that it may not have, which would count as errors.
OPTIONS = ["--error-exitcode=66", "--target-processes=all", "--launch-timeout=0", "--report-api-errors=no"]
CASES = [sys.executable, "-m", "gpu_report.stages.compare"]
LAST_LINES = 20


def run(job: Job) -> None:
    if job.dry_run:
        check([*CASES, str(job.device)]).check_returncode()
        job.note("a dry run: the cases were compared without compute-sanitizer")
        return
    sanitizer = machine.find_program("compute-sanitizer") or "compute-sanitizer"
    with ThreadPoolExecutor(len(TOOLS)) as threads:
        commands = {tool: [sanitizer, f"--tool={tool}", *OPTIONS, *CASES, str(job.device)] for tool in TOOLS}
        running = {threads.submit(check, command): tool for tool, command in commands.items()}
        for ended in as_completed(running):
            tool, done = running[ended], ended.result()
            job.figure(tool, "exit status", done.returncode, "count")
            if done.returncode != 0:
                job.fail("\n".join([f"{tool}: exit status {done.returncode}", *done.stdout.splitlines()[-LAST_LINES:]]))


def check(command: list[str]) -> "subprocess.CompletedProcess[str]":
    # Torch's allocator keeps memory, in which an overrun would go unseen.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    return done
