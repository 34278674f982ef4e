"""``refinedet doctor``: what this machine has, what is wrong with it, and how to mend it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refinedet import __version__
from refinedet.commands.options import add_json, deliver, speaker
from refinedet.errors import ExtensionError
from refinedet.files import CHECKPOINTS
from refinedet.profiling.machine import cpu_name

if TYPE_CHECKING:
    from refinedet._C import BuildInfo
    from refinedet.commands.options import Commands

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

# distribution name -> module name. Those imported here are the ones whose import fails on machines in practice:
# opencv-python without libGL, torchvision beside a torch it was not built for.
REQUIRED = {"numpy": "numpy", "opencv-python": "cv2"}
OTHER_OPENCV = ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")  # as good
OPTIONAL = {"torchvision": "torchvision", "timm": "timm"}
REQUIRED_UNIMPORTED = ("matplotlib", "pycocotools", "safetensors", "tensorboard", "tqdm")
RUNTIMES = ("onnx", "onnxruntime", "openvino", "MNN")  # of exported files; some report their import to their makers


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do about it."""

    what: str
    fix: str


@dataclass
class Report:
    """State of the installation. ``versions`` holds None for a package that is absent or cannot be imported."""

    refinedet: str = __version__
    python: str = field(default_factory=platform.python_version)
    system: str = field(default_factory=platform.platform)
    versions: dict[str, str | None] = field(default_factory=dict)
    torch_cuda: str | None = None
    extension: BuildInfo | None = None
    library: str | None = None
    kernels: str | None = None
    operators: list[str] = field(default_factory=list)
    cpu: str = ""
    cpu_threads: int = 0
    gpus: list[dict[str, str | int]] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.problems

    def text(self) -> str:
        """The report for a terminal; the problems come last."""
        lines = [
            f"refinedet {self.refinedet}, Python {self.python}, {self.system}",
            "packages:    " + ", ".join(f"{name} {version or 'absent'}" for name, version in self.versions.items()),
            f"torch CUDA:  {self.torch_cuda or 'none (CPU build)'}",
            f"extension:   {self._extension_line()}",
            f"library:     {self.library or 'not usable'}",
            f"CUDA:        {self._cuda_line()}",
            f"operators:   {', '.join(self.operators) or 'none'}",
            f"CPU:         {self.cpu}, {self.cpu_threads} threads",
            *(f"GPU:         {gpu['name']}, sm_{gpu['capability']}, {gpu['memory_mib']} MiB" for gpu in self.gpus),
            f"checkpoints: {', '.join(self.checkpoints) or 'none'}",
        ]
        if self.healthy:
            return "\n".join([*lines, "no problem found"])
        problems = [f"problem: {problem.what}\n    fix: {problem.fix}" for problem in self.problems]
        return "\n".join([*lines, *problems])

    def _extension_line(self) -> str:
        if self.extension is None:
            return "not usable"
        info = self.extension
        return (
            f"compiler {info['compiler']}, built with torch {info['torch_built_with']} for torch "
            f"{info['torch_target']} and later"
        )

    def _cuda_line(self) -> str:
        if self.extension is None or not self.extension["cuda"]:
            return "no kernels"
        return f"nvcc {self.extension['nvcc']} for {self.extension['architectures']}: {self.kernels}"


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "doctor", help="check this installation", description="Check this installation: versions, extension, devices."
    )
    parser.add_argument(
        "--libraries",
        action="store_true",
        help="print only the path of the operator library, for CMake and scripts",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the report; the exit status is 1 when there is a problem. The JSON has the names of the fields."""
    if arguments.libraries:
        print(_library_path())
        return 0
    found = report()
    speaker(arguments)(found.text())
    deliver(arguments, asdict(found))
    return 0 if found.healthy else 1


def _library_path() -> str:
    found = Report()
    _examine_torch(found)
    if found.library is None:
        first = found.problems[0]
        raise ExtensionError(f"{first.what}: {first.fix}")
    return found.library


def report() -> Report:
    """Examines this Python environment and machine; never raises for what it finds."""
    importlib.import_module("importlib.metadata")  # here: it is slow to import, and --help needs none of it
    found = Report(cpu=cpu_name(), cpu_threads=os.cpu_count() or 1)
    _examine_torch(found)
    _examine_packages(found)
    _examine_files(found)
    return found


def _examine_torch(found: Report) -> None:
    try:
        import torch
    except (ImportError, OSError) as error:
        found.versions["torch"] = None
        found.problems.append(Problem(f"torch cannot be imported ({error})", "pip install 'torch>=2.10'"))
        return
    found.versions["torch"] = torch.__version__
    found.torch_cuda = torch.version.cuda
    _examine_extension(found)
    if torch.cuda.is_available():
        _examine_gpus(found)
    elif NVIDIA_DRIVER.exists():
        found.problems.append(_unused_gpu(torch.version.cuda))


def _examine_gpus(found: Report) -> None:
    import torch

    from refinedet.ops import extension

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    found.gpus = [_gpu(torch.cuda.get_device_properties(device)) for device in devices]
    if found.extension is not None:
        problems = dict.fromkeys(extension.cuda_problem(device) for device in devices)
        found.problems += [Problem(*problem) for problem in problems if problem is not None]


def _gpu(properties: Any) -> dict[str, str | int]:
    return {
        "name": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "memory_mib": properties.total_memory >> 20,
    }


def _unused_gpu(torch_cuda: str | None) -> Problem:
    if torch_cuda is None:
        return Problem(
            "the NVIDIA driver is present, but this torch is a CPU build",
            "install a CUDA build of torch: https://pytorch.org/get-started/locally/",
        )
    return Problem(
        f"the NVIDIA driver is present, but torch (CUDA {torch_cuda}) finds no GPU it can use",
        f"check CUDA_VISIBLE_DEVICES and `nvidia-smi`, and update the driver to one for CUDA {torch_cuda}",
    )


def _examine_extension(found: Report) -> None:
    from refinedet.ops import extension
    from refinedet.profiling import resources as kernel_resources

    importlib.import_module("refinedet.ops")
    found.extension = extension.build_info()
    if extension.has_cuda():
        found.kernels = kernel_resources.summary(kernel_resources.table())
    found.operators = list(extension.operators())
    problem = extension.problem()
    if problem is not None:
        found.problems.append(Problem(*problem))
    else:
        found.library = str(extension.library_path())


def _examine_packages(found: Report) -> None:
    for name, module in {**REQUIRED, **OPTIONAL}.items():
        distribution = _opencv() if module == "cv2" else name
        try:
            found.versions[distribution] = importlib.import_module(module).__version__
        except ModuleNotFoundError:
            found.versions[distribution] = None
            if name in REQUIRED:
                found.problems.append(Problem(f"{distribution} is missing", f"pip install {distribution}"))
        except Exception as error:
            found.versions[distribution] = None
            found.problems.append(Problem(f"{distribution} cannot be imported ({error})", _import_fix(distribution)))
    for distribution in REQUIRED_UNIMPORTED:
        try:
            found.versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found.versions[distribution] = None
            found.problems.append(Problem(f"{distribution} is missing", f"pip install {distribution}"))
    for distribution in RUNTIMES:
        found.versions[distribution] = next(
            (each.version for each in importlib.metadata.distributions(name=distribution)), None
        )


def _opencv() -> str:
    """The distribution that brings cv2 here."""
    return next((name for name in OTHER_OPENCV if any(importlib.metadata.distributions(name=name))), "opencv-python")


def _import_fix(distribution: str) -> str:
    if distribution in ("opencv-python", "opencv-contrib-python"):
        return (
            "install the system's libGL (Debian, Ubuntu: apt install libgl1), or replace it: pip uninstall "
            f"{distribution}, then install refinedet with REFINEDET_OPENCV=opencv-python-headless"
        )
    if distribution in ("torchvision", "timm"):  # timm imports torchvision
        return "pip install --upgrade torch torchvision (in one command, so that the two fit each other)"
    return f"pip install --force-reinstall {distribution}"


def _examine_files(found: Report) -> None:
    found.checkpoints = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))
    if not found.checkpoints:
        found.problems.append(
            Problem(f"no checkpoint in {CHECKPOINTS}", "reinstall refinedet: the installation is incomplete")
        )
    for use, folder in (("working", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        if not os.access(folder, os.W_OK | os.X_OK):
            found.problems.append(
                Problem(f"the {use} folder {folder} cannot be written", "change its permissions, or use another folder")
            )
