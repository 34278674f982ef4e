"""Times of the operators on what a network puts out."""

from dataclasses import replace

import pytest
import torch
from support.paths import ROOT
from support.synthetic import tiny_model

from refinedet.presets import OFFICIAL
from refinedet.profiling import cost, operators
from refinedet.profiling.operators import time_operators
from refinedet.records import LevelOutput


def output(batch: int, tcb: bool = True) -> tuple[LevelOutput, torch.Tensor]:
    network = tiny_model()
    with torch.no_grad():
        raw = network(torch.rand(batch, 3, 64, 64), by_level=True)
    return (raw if tcb else raw._replace(arm_loc=None, arm_conf=None)), network.anchors


def test_every_operator_has_its_work_and_time() -> None:
    raw, anchors = output(2)
    found = {timed.name: timed for timed in time_operators(raw, anchors, OFFICIAL, seconds=0)}
    assert sorted(found) == sorted(path.name for path in (ROOT / "csrc" / "ops").iterdir())
    assert all(timed.rate.milliseconds > 0 and timed.rate.operations > 0 for timed in found.values())
    net = replace(cost.NETWORKS[0], anchors=len(anchors), classes=3)
    for name, work in (("refine", cost.refine_work), ("match", cost.match_work), ("mine", cost.mine_work)):
        assert (found[name].rate.moved, found[name].rate.operations) == work(net, 2)
    assert found["nms"].rate.operations == cost.nms(operators.BOXES).operations


def test_the_work_of_detect_is_that_of_the_output() -> None:
    anchors = torch.full((4, 4), 0.5)
    arm_conf = torch.tensor([[0.0, 10.0], [10.0, 0.0], [0.0, 10.0], [10.0, 0.0]])[None]  # two survive
    odm_conf = torch.tensor([[5.0, 5.0, -9.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0]])[None]
    boxes = torch.zeros(1, 4, 4)
    raw = LevelOutput((boxes,), (arm_conf,), (boxes,), (odm_conf,))
    net = operators._network(raw, len(anchors), OFFICIAL)
    assert (net.anchors, net.classes, net.survivors) == (4, 3, 0.5)
    assert net.pairs == pytest.approx(1.5)  # one candidate and two, of two survivors
    without = operators._network(raw._replace(arm_loc=None, arm_conf=None), len(anchors), OFFICIAL)
    assert without.survivors == 1.0


def test_a_network_of_one_step_is_timed() -> None:
    raw, anchors = output(1, tcb=False)
    names = [timed.name for timed in time_operators(raw, anchors, replace(OFFICIAL, tcb=False), seconds=0)]
    assert "refine" in names


def test_operators_on_a_gpu_are_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            seen.append("record")

        def synchronize(self) -> None:
            seen.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: seen.append("sleep"))
    assert operators._time(lambda: seen.append("call"), torch.device("cuda")) == 2.0
    assert seen == ["sleep", "record", "call", "record", "wait"]
