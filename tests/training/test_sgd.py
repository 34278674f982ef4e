"""CaffeSGD against steps of the official Caffe solver and against the update written out."""

import json
from copy import deepcopy
from typing import ClassVar

import numpy as np
import pytest
import torch
from support.paths import GOLDEN
from torch import nn
from torch.nn import functional as F

from refinedet.training import sgd
from refinedet.training.schedule import learning_rate
from refinedet.training.sgd import CaffeSGD, parameter_groups

SOLVER = GOLDEN / "solver"


class ToyNet(nn.Module):
    """The network of ``meta.net`` in the golden files; parameters are named ``<layer>__<blob>`` as in them."""

    # (lr_mult, decay_mult) from the param specs. BatchNorm's blobs are statistics, not parameters.
    LEARNED: ClassVar = {
        "conv1__0": (1.0, 1.0),
        "conv1__1": (2.0, 0.0),
        "norm1__0": (0.0, 0.0),
        "conv2__0": (1.0, 1.0),
        "scale2__0": (1.0, 1.0),
        "scale2__1": (1.0, 1.0),
        "up__0": (0.5, 2.0),
        "up__1": (0.0, 1.0),
        "frozen__0": (0.0, 0.0),
        "frozen__1": (0.0, 0.0),
        "ip__0": (1.0, 1.0),
        "ip__1": (1.0, 1.0),
    }

    def __init__(self, golden):
        super().__init__()
        for name in self.LEARNED:
            self.register_parameter(name, nn.Parameter(torch.from_numpy(golden[f"init__{name}"].copy())))

    def forward(self, x):
        p = dict(self.named_parameters())
        x = F.conv2d(x, p["conv1__0"], p["conv1__1"], padding=1).relu()
        x = p["norm1__0"].view(1, -1, 1, 1) * x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()
        x = F.conv2d(x, p["conv2__0"], padding=1, stride=2)
        x = F.batch_norm(x, None, None, p["scale2__0"], p["scale2__1"], training=True, eps=1e-5).relu()
        x = F.conv_transpose2d(x, p["up__0"], p["up__1"], stride=2)
        x = F.conv2d(x, p["frozen__0"], p["frozen__1"])
        return F.linear(x.flatten(1), p["ip__0"], p["ip__1"])


def euclidean_loss(output, target):
    return (output - target).square().sum() / (2 * len(output))


@pytest.mark.parametrize(
    ("file", "solver"),
    [
        ("sgd_multistep", {"base": 0.02, "milestones": (3, 5), "gamma": 0.1, "decay": 0.05, "iter_size": 1}),
        ("sgd_iter_size2", {"base": 0.01, "milestones": (), "gamma": 0.1, "decay": 0.0005, "iter_size": 2}),
    ],
)
def test_steps_of_the_official_solver(file, solver):
    golden = np.load(SOLVER / f"{file}.npz")
    assert f"base_lr: {solver['base']}" in json.loads(str(golden["meta"]))["solver"]
    net = ToyNet(golden)
    groups = parameter_groups(net, ToyNet.LEARNED)
    optimizer = CaffeSGD(groups, lr=solver["base"], momentum=0.9, weight_decay=solver["decay"])
    schedule = {key: solver[key] for key in ("base", "milestones", "gamma")}
    steps = len(golden["data"])
    for step in range(steps):
        optimizer.set_lr(learning_rate(step, **schedule))
        optimizer.zero_grad()
        data, target = torch.from_numpy(golden["data"][step]), torch.from_numpy(golden["target"][step])
        for _ in range(solver["iter_size"]):
            loss = euclidean_loss(net(data), target)
            (loss / solver["iter_size"]).backward()
        assert loss.item() == pytest.approx(golden["loss"][step], rel=1e-5)
        optimizer.step()
        for name, parameter in net.named_parameters():
            expected = golden[f"step__{name}"][step]
            error = np.abs(parameter.detach().numpy() - expected).max()
            assert error <= 2e-6 * max(1.0, np.abs(expected).max()), f"{name} after step {step}: error {error}"


def test_rate_is_inside_the_momentum_buffer():
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = CaffeSGD([w], lr=0.5, momentum=0.5, weight_decay=0.0)
    w.grad = torch.tensor([1.0])
    optimizer.step()  # V = 0.5, w = 0.5
    optimizer.set_lr(0.0)
    optimizer.step()  # V = 0.25: the rate of the first step lives on in the buffer; torch.optim.SGD would not move
    assert w.item() == 0.25


def test_lr_mult_zero_leaves_the_parameter_untouched_by_decay_too():
    w = nn.Parameter(torch.tensor([3.0]))
    optimizer = CaffeSGD([{"params": [w], "lr_mult": 0.0}], lr=1.0, weight_decay=0.1)
    w.grad = torch.tensor([7.0])
    optimizer.step()
    assert w.item() == 3.0


def test_parameter_without_gradient_is_skipped():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = CaffeSGD([used, unused], lr=1.0, momentum=0.0, weight_decay=0.0)
    used.grad = torch.ones(2)
    optimizer.step()
    assert used.tolist() == [0.0, 0.0]
    assert unused.tolist() == [1.0, 1.0]


def test_groups_scale_the_rate_by_name():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    multipliers = {name: (2.0, 0.0) if name.endswith("bias") else (1.0, 1.0) for name, _ in net.named_parameters()}
    groups = parameter_groups(net, multipliers, lambda name: 0.1 if name.startswith("0.") else 1.0)
    assert [(g["lr_mult"], g["decay_mult"]) for g in groups] == [(0.1, 1.0), (0.2, 0.0), (1.0, 1.0), (2.0, 0.0)]


def test_state_dict_round_trip_continues_exactly():
    def run(optimizer, w, steps):
        for _ in range(steps):
            w.grad = w.detach() * 0.3 + 1
            optimizer.step()

    w = nn.Parameter(torch.arange(3.0))
    optimizer = CaffeSGD([w], lr=0.1)
    run(optimizer, w, 2)
    copy = nn.Parameter(w.detach().clone())
    resumed = CaffeSGD([copy], lr=0.1)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))  # load_state_dict shares the buffers
    run(optimizer, w, 3)
    run(resumed, copy, 3)
    assert torch.equal(w, copy)


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}, {"lr": 1.0, "weight_decay": -0.1}])
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match="must be"):
        CaffeSGD([nn.Parameter(torch.ones(1))], **bad)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (8, 6, 3, 3), (8, 6, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_step_is_that_of_torch(shape, layout, monkeypatch):
    """Whatever the layouts of weights and gradients."""
    torch.manual_seed(0)
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]

    def run():
        w = nn.Parameter(start.clone(memory_format=layout) if len(shape) == 4 else start.clone())
        optimizer = CaffeSGD([w], lr=0.1, weight_decay=0.01)
        for grad in grads:
            w.grad = grad.clone()
            optimizer.step()
        return w.detach()

    compiled = run()
    monkeypatch.setattr(sgd, "_flat", lambda *_: None)
    torch.testing.assert_close(compiled, run(), rtol=1e-6, atol=1e-7)


def test_which_steps_are_compiled():
    w = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    (flat,) = sgd._flat(w)
    assert flat.data_ptr() == w.data_ptr()
    assert sgd._flat(w, w.contiguous()) is None  # another order
    assert sgd._flat(w.double()) is None
    assert sgd._flat(torch.zeros(6)[::2]) is None
