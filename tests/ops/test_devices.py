"""The choice of a device, on machines that are pretended."""

import pytest
import torch

from refinedet.errors import InputError
from refinedet.ops import devices, extension
from refinedet.ops.devices import choose_device

BEST_DEVICE = devices._best_device  # which conftest.py makes the CPU
PROBLEM = ("this build of refinedet has no CUDA kernels", "install the CUDA toolkit")


@pytest.fixture
def machine(monkeypatch):
    """Pretend a number of GPUs, and what keeps the operators from running on them."""

    def pretend(gpus, problem):
        monkeypatch.setattr(devices, "_best_device", BEST_DEVICE)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(extension, "cuda_problem", lambda device: problem)

    return pretend


@pytest.mark.parametrize(("gpus", "chosen"), [(0, "cpu"), (1, "cuda")])
def test_auto_is_a_gpu_where_there_is_one(machine, gpus, chosen, recwarn):
    machine(gpus, None)
    assert choose_device() == choose_device("auto") == torch.device(chosen)
    assert not recwarn


def test_a_gpu_that_the_operators_do_not_run_on_is_not_used_and_told(machine):
    machine(1, PROBLEM)
    with pytest.warns(UserWarning, match="the GPU is not used: this build of refinedet has no CUDA kernels: install"):
        assert choose_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_named_device(machine, name):
    machine(2, None)
    assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "problem", "message"),
    [
        ("gpu", None, "device is 'gpu'; give auto, cpu, cuda or cuda:N"),
        ("cuda:", None, "device is 'cuda:'; give"),
        ("cpu:0x", None, "device is 'cpu:0x'; give"),
        ("cuda:2", None, "device is 'cuda:2', but torch sees 2 CUDA devices; give cpu"),
        ("cuda:1", PROBLEM, "but this build of refinedet has no CUDA kernels: install the CUDA toolkit; or give cpu"),
    ],
)
def test_a_device_that_cannot_be_used(machine, name, problem, message):
    machine(2, problem)
    with pytest.raises(InputError, match=message):
        choose_device(name)
