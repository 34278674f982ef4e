"""refinedet doctor: a sound installation has no problem; every planted fault is named with its fix."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import refinedet
from refinedet import ops
from refinedet.commands import doctor
from refinedet.commands.main import main
from refinedet.ops import extension

PACKAGE = Path(refinedet.__file__).parent


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine in order, whatever this one is like: a shipped checkpoint, no NVIDIA driver."""
    (tmp_path / "blood.safetensors").touch()
    monkeypatch.setattr(doctor, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "absent")
    return tmp_path


@pytest.fixture
def the_problem(machine):
    """The one problem that the report finds."""

    def find() -> doctor.Problem:
        (problem,) = doctor.report().problems
        return problem

    return find


def test_report_of_a_sound_installation(machine):
    found = doctor.report()
    assert found.healthy
    assert found.problems == []
    assert found.refinedet == refinedet.__version__
    assert found.versions["torch"] == torch.__version__
    assert found.torch_cuda == torch.version.cuda
    assert found.extension == extension.build_info()
    assert found.library == str(ops.library_path())
    assert {"refine", "detect", "match", "mine"} <= set(found.operators)
    assert found.checkpoints == ["blood"]
    assert len(found.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert found.cpu
    assert found.cpu_threads >= 1


def test_text_ends_with_the_verdict(machine, capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"refinedet {refinedet.__version__}, Python 3.")
    assert f"torch {torch.__version__}" in lines[1]
    assert lines[-1] == "no problem found"


def test_json(machine, capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["extension"]["torch_target"] == "2.10"
    assert found["checkpoints"] == ["blood"]
    assert found["problems"] == []


def test_problem_gives_exit_status_1(machine, capsys):
    (machine / "blood.safetensors").unlink()
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith(
        f"problem: no checkpoint in {machine}\n    fix: reinstall refinedet: the installation is incomplete\n"
    )


def test_path_of_the_library_alone(capsys):
    assert main(["doctor", "--libraries"]) == 0
    assert capsys.readouterr().out == f"{ops.library_path()}\n"


def test_no_library(monkeypatch, capsys):
    """CMake gets an empty stdout and a status that is not 0; stderr says why."""
    monkeypatch.setattr(extension, "_problem", ("it is missing", "build it"))
    assert main(["doctor", "--libraries"]) == 2
    assert capsys.readouterr() == ("", "refinedet: error: it is missing: build it\n")


def test_truncated_extension(tmp_path):
    copy = tmp_path / "refinedet"
    shutil.copytree(PACKAGE, copy)
    (compiled,) = copy.glob("_C.*.so")
    compiled.write_bytes(compiled.read_bytes()[:1000])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "refinedet", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["extension"] is None
    problem = found["problems"][0]
    assert problem["what"] == f"the compiled extension of refinedet is damaged ({compiled} is truncated)"
    assert "pip install --force-reinstall" in problem["fix"]


def test_torch_that_cannot_be_imported(the_problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "OPTIONAL", {})  # they import torch themselves
    problem = the_problem()
    assert problem.what.startswith("torch cannot be imported (")
    assert problem.fix == "pip install 'torch>=2.10'"


def test_opencv_without_libgl(the_problem, monkeypatch):
    _fail_import(monkeypatch, "cv2", ImportError("libGL.so.1: cannot open shared object file"))
    problem = the_problem()
    assert problem.what == "opencv-python cannot be imported (libGL.so.1: cannot open shared object file)"
    assert "opencv-python-headless" in problem.fix


def test_other_distribution_of_opencv(machine, monkeypatch):
    """cv2 is what is needed; whichever distribution brings it is named, and none is called missing."""
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda name: [name] * name.endswith("headless"))
    found = doctor.report()
    assert found.healthy
    assert {name for name in found.versions if "opencv" in name} == {"opencv-python-headless"}


def test_torchvision_of_another_torch(the_problem, monkeypatch):
    _fail_import(monkeypatch, "torchvision", RuntimeError("operator torchvision::nms does not exist"))
    problem = the_problem()
    assert problem.what == "torchvision cannot be imported (operator torchvision::nms does not exist)"
    assert problem.fix.startswith("pip install --upgrade torch torchvision")


def test_absent_optional_package_is_no_problem(machine, monkeypatch):
    _fail_import(monkeypatch, "timm", ModuleNotFoundError("No module named 'timm'", name="timm"))
    found = doctor.report()
    assert found.healthy
    assert found.versions["timm"] is None
    assert "timm absent" in found.text()


def test_absent_required_package(the_problem, monkeypatch):
    version = doctor.importlib.metadata.version

    def absent(distribution: str) -> str:
        if distribution == "pycocotools":
            raise doctor.importlib.metadata.PackageNotFoundError(distribution)
        return version(distribution)

    monkeypatch.setattr(doctor.importlib.metadata, "version", absent)
    assert the_problem() == doctor.Problem("pycocotools is missing", "pip install pycocotools")


@pytest.mark.parametrize(
    ("cuda", "fix"),
    [(None, "install a CUDA build of torch"), ("13.0", "check CUDA_VISIBLE_DEVICES and `nvidia-smi`")],
)
def test_gpu_that_torch_does_not_use(the_problem, machine, monkeypatch, cuda, fix):
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", machine / "blood.safetensors")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    problem = the_problem()
    assert problem.what.startswith("the NVIDIA driver is present, but ")
    assert problem.fix.startswith(fix)


def test_folder_that_cannot_be_written(the_problem, machine, monkeypatch):
    monkeypatch.chdir(machine)
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: folder != machine)
    assert the_problem().what == f"the working folder {machine} cannot be written"


def _fail_import(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    original = doctor.importlib.import_module

    def import_module(module: str, package: str | None = None):  # others call it too: what they import goes on
        if module == name:
            raise error
        return original(module, package)

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
