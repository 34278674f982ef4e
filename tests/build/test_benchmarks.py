"""The benchmarks' own parts: names of cases, agreement with peers, timing in turns, targets, growth."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import contestants
import growth_page
import matrix
import pytest
import targets
import torch
import turns
from growth_curves import AXES, CURVES
from matrix import CASES, Case
from support.paths import ROOT

from refinedet.profiling import cost

RESULTS = ROOT / "benchmarks" / "results" / "growth" / "cpu.json"


# --- The matrix -------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_can_be_chosen_by():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names) > 1000
    assert all(re.fullmatch(r"[\w-]+", name) for name in names)  # what -k takes


def test_names_stay():
    """pytest-benchmark compares commits by them."""
    names = {str(case) for case in CASES}
    assert {
        "detect-VOC-320-2pct-float32-batch1-cpu",
        "detect-COCO-512-all-bfloat16-batch32-cuda",
        "detect-typical_voc320-float32-batch2-cpu",
        "match-VOC-320-8objects-float16-batch32-cpu",
        "mine-VOC-512-losses-float32-batch8-cpu",
        "batched_nms-COCO-320-10pct-float32-batch8-cpu",
        "soft_nms_gaussian-crowd-6375-float32-batch1-cpu",
        "vote_official_soft-crowd-10000-float32-batch1-cpu",
    } <= names


def test_every_operator_has_cases_and_peers():
    names = {path.name for path in (ROOT / "csrc" / "ops").iterdir()} | {"batched_nms"}
    assert names == set(contestants.PEERS)
    assert names == {matrix.OPTIONS.get(case.operator, (case.operator, {}))[0] for case in CASES}


def test_every_bar_is_of_a_case_and_a_peer():
    named = {(case.operator, case.scenario) for case in CASES}
    for operator, scenario, peer in contestants.BARS:
        assert (operator, scenario) in named
        assert peer in {each.name for each in contestants.PEERS[matrix.OPTIONS.get(operator, (operator, {}))[0]]}


SMALL = [
    Case(name, "VOC-320-2pct", "float32", 1, "cpu") for name in ("detect", "mine", "nms", "batched_nms", "soft_nms")
]
SMALL += [Case("refine", "VOC-320", "bfloat16", 8, "cpu"), Case("match", "VOC-320-8objects", "float16", 8, "cpu")]
SMALL += [
    Case("vote_official_soft", "crowd-200", "float32", 1, "cpu"),
    Case("vote", "VOC-320-2pct", "float32", 1, "cpu"),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_peers_agree(case):
    given = matrix.arguments(case)
    found = matrix.ours(case, given)()
    peers = [peer for peer in contestants.peers_of(case, given) if peer.installed]
    assert peers
    for peer in peers:
        peer.check(case, given, found, peer.prepare(case, given)())


@pytest.mark.parametrize("name", ["detect", "match", "mine", "nms", "soft_nms", "vote", "refine"])
def test_a_peer_that_disagrees_is_noticed(name):
    """Of the same, but one thing moved on by one anchor."""
    scenario = {"refine": "VOC-320", "match": "VOC-320-8objects"}.get(name, "VOC-320-2pct")
    case = Case(name, scenario, "float32", 1, "cpu")
    given = matrix.arguments(case)
    other = (given[0].roll(1, dims=-2), *given[1:])
    peer = next(contestants.peers_of(case, given))
    with pytest.raises(AssertionError):
        peer.check(case, given, matrix.ours(case, other)(), peer.prepare(case, given)())


def test_candidates_are_those_of_the_scenario():
    for scenario, count in (("VOC-320-2pct", 128), ("COCO-512-10pct", 1632), ("VOC-320-all", 6375)):
        boxes, scores, labels = matrix.candidates(scenario, 2)
        assert boxes.shape == (2, count, 4)
        assert scores.shape == labels.shape == (2, count)
        assert 1 <= labels.min() <= labels.max() <= 80
    arm_conf = matrix.arguments(Case("detect", "VOC-320-10pct", "float32", 1, "cpu"))[1]
    assert 0.08 < (arm_conf.softmax(-1)[..., 1] > 0.01).float().mean() < 0.12


def test_floor_is_of_the_gpus_that_the_model_knows():
    case = Case("detect", "VOC-320-2pct", "float32", 1, "cuda")
    h100 = cost.DEVICES[-1]
    assert matrix.floor(case, h100) == pytest.approx(cost.detect(cost.NETWORKS[0], 1).floor(h100))
    assert matrix.floor(replace(case, scenario="VOC-320-all"), h100) > matrix.floor(case, h100)
    assert matrix.floor(replace(case, operator="batched_nms", scenario="crowd-6375"), h100) > 0
    for other in (replace(case, device="cpu"), replace(case, operator="nms"), replace(case, scenario="dense_voc320")):
        assert matrix.floor(other, h100) is None
    assert matrix.floor(case, None) is None


# --- Timing -----------------------------------------------------------------------------------------------------------


def test_turns_alternate_and_slow_ones_have_fewer():
    order, durations = [], {"ours": 0.001, "peer": 0.2}

    def clock(call):
        return durations[call()]

    def call(name):
        return lambda: order.append(name) or name

    medians, count = turns.take_turns({name: call(name) for name in durations}, clock)
    assert medians == durations
    assert count == turns.TURNS
    assert order[:5] == ["ours", "ours", "ours", "peer", "ours"]
    assert order.count("peer") == 2


def test_a_gpu_is_timed_by_its_events(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            steps.append(self)

        def synchronize(self):
            steps.append("wait")

        def elapsed_time(self, end):
            return 2.5

    steps = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert turns.clock_of("cuda")(lambda: steps.append("call")) == 2.5e-3
    assert steps[1::2] == ["call", "wait"]
    assert len(steps) == 4


def test_table():
    rows = [
        turns.Row(("detect", "VOC-320"), 1e-4, {"PyTorch": 12.34}, 0.5),
        turns.Row(("levels",), 1e-3, {"concatenated": 2}),
    ]
    text = "\n".join(turns.Table(rows, ["VGG-16 320: met"]).lines())
    assert re.search(r"^detect VOC-320 +100 +12\.3 +- +50%$", text, re.MULTILINE)
    assert re.search(r"^levels +1000 +- +2\.0 +-$", text, re.MULTILINE)
    assert f"torch {torch.__version__}".split("+")[0] in text
    assert text.endswith("VGG-16 320: met")


# --- Targets ----------------------------------------------------------------------------------------------------------


def test_targets_are_what_the_method_gives():
    assert targets.FILE.read_text() == targets.text()


def test_the_paper_meets_its_own_targets():
    for size, milliseconds in targets.PAPER.items():
        assert 0.3 < targets.share(size) < 1
        assert ": met," in targets.on_gpu(size, milliseconds, targets.PAPER_DEVICE)
        assert ": missed," in targets.on_gpu(size, milliseconds + 0.1, targets.PAPER_DEVICE)
        assert ": missed," in targets.on_gpu(size, milliseconds, cost.DEVICES[-1])
    assert "not applicable" in targets.on_gpu(320, 1.0, None)
    assert "not applicable" in targets.on_gpu(320, 1.0, cost.DEVICES[0], torch.float16)


def test_layers_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network, image = targets.build("vgg16", size=320, num_classes=21).eval(), torch.empty(1, 3, 320, 320)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)
    assert sum(layer.operations for layer in targets.layers(320)) == counter.get_total_flops()


def test_a_cpu_is_judged_by_its_own_ceilings(monkeypatch):
    monkeypatch.setattr(targets, "measure_ceilings", lambda: (100.0, 1e9))
    limit = sum(layer.operations for layer in targets.layers(320)) / 100.0 / 1e6 / targets.share(320)
    assert "met" in targets.on_cpu(320, 0.99 * limit)
    assert "missed" in targets.on_cpu(320, 1.01 * limit)


# --- Growth -----------------------------------------------------------------------------------------------------------


def test_growth_is_of_all_operators_along_all_axes():
    measured = {(curve.operator.partition(",")[0], curve.axis) for curve in CURVES}
    assert {name for name, _ in measured} == set(contestants.PEERS)
    assert {axis for _, axis in measured} == set(AXES)
    assert [(values[0], values[-1]) for values in AXES.values()] == [(1000, 300_000), (1, 64), (2, 600), (1, 1000)]


def test_page_of_growth_is_that_of_the_numbers():
    assert growth_page.PAGE.read_text() == growth_page.markdown(json.loads(RESULTS.read_text()))


def test_exponents():
    points = [{"batch": n, "seconds": 3e-5 * n**2, "bytes": 2_000_000 * n} for n in (1, 2, 4, 8, 64)]
    assert growth_page.exponent(points, "batch", "seconds") == pytest.approx(2)
    assert growth_page.exponent(points, "batch", "bytes") == pytest.approx(1)
    assert growth_page.exponent([{"batch": 1, "bytes": 4096}] * 5, "batch", "bytes") is None


def test_what_grows_faster_than_it_may_is_told():
    curve = next(curve for curve in CURVES if curve.operator == "refine")
    points = [{curve.axis: n, "seconds": 1e-9 * n**1.5, "bytes": 100 * n} for n in curve.points()]
    found = {"curves": [{"operator": curve.operator, "axis": curve.axis, "points": points}]}
    assert "NO" in growth_page.rows(found)[0]
    for point in points:
        point["seconds"] = 1e-9 * point[curve.axis]
    assert "yes" in growth_page.rows(found)[0]
    points[-1]["bytes"] *= 10
    assert "NO" in growth_page.rows(found)[0]


def test_memory_is_linear(tmp_path: Path):
    """Of processes of their own, in bytes: a matrix of anchors and objects, or of pairs of boxes, would show."""
    curves = ["match, anchors", "match, objects", "nms, anchors"]
    out = tmp_path / "growth.json"
    command = [sys.executable, "benchmarks/growth.py", "--memory", "--quiet", "--out", str(out)]
    command += [word for curve in curves for word in ("--only", curve)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["curves"]) == 3
    assert all("yes" in row for row in growth_page.rows(found)), growth_page.table(found)
    largest = {(each["operator"], each["axis"]): each["points"][-1]["bytes"] for each in found["curves"]}
    results = 8 + 16 + 8 + 4  # bytes of an anchor: label, targets, index, IoU
    assert largest["match", "anchors"] < 1.2 * 300_000 * results
    assert (
        largest["match", "objects"] < 10_000 * results + 2**20
    )  # a matrix of bits would have 10,000 x 1,000 / 8 bytes
