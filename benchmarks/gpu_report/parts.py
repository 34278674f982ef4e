"""The parts of the report, in order. Standard library only: it is read before anything is compiled."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One process: the function ``run`` of ``gpu_report.stages.<name>``."""

    name: str
    title: str
    limit: int  # seconds on a GPU; a process that takes longer is stopped, and what it has found so far stays
    packages: tuple[str, ...] = ()  # without which the part is skipped
    programs: tuple[str, ...] = ()  # the same; a dry run does without them


# All limits together, calibration included, stay below nine minutes.
PARTS = (
    Part("build", "Build for the GPUs present", 70),
    Part("doctor", "refinedet doctor", 12),
    Part("compare", "Operators against the CPU", 20),
    Part("operator_tests", "Tests of the operators on the GPU", 65, ("pytest", "hypothesis")),
    Part("gpu_tests", "The rest of `make test-gpu`", 55, ("pytest", "hypothesis")),
    Part("operators", "Operators: times", 35),
    Part("networks", "Networks: times", 40),
    Part("compiled", "What torch.compile makes of them", 50),
    Part("images", "End to end, from JPEG files", 18),
    Part("training", "A training step", 25),
    Part("counters", "Nsight Compute", 75, programs=("ncu",)),
    Part("sanitizer", "compute-sanitizer", 55, programs=("compute-sanitizer",)),
)
CALIBRATION = Part("calibration", "The cost model, fitted to this GPU", 10)
DRY_LIMIT = 200  # seconds a part may take without a GPU: machines are slower there, and all architectures compiled
