"""The cost model: its bars, and its assumptions beside what the operators and kernels really do."""

import json

import count_kernels
import pytest
import test_detect
import test_match
import test_mine
import test_nms
import test_refine
import test_soft_nms
import test_vote
from problems import crowd, image_of
from simulated.harness import Harness, Result
from support.detect_cases import load_golden
from support.paths import ROOT

from refinedet import ops
from refinedet.ops.reference import portable
from refinedet.profiling import cost

KERNELS = ROOT / "docs" / "kernels"
NETWORKS = {net.name: net for net in cost.NETWORKS}
DEVICES = {device.name: device for device in cost.DEVICES}


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("net", cost.NETWORKS, ids=lambda net: net.name)
def test_detect_moves_little_more_than_the_minimum(net: cost.Network, batch: int) -> None:
    detect = cost.detect(net, batch)
    assert detect.launches <= 5
    assert detect.syncs == 0
    assert detect.moved <= 1.5 * detect.minimum


@pytest.mark.parametrize(("device", "microseconds"), [("H100", 50), ("Titan X (Maxwell)", 150)])
def test_prediction_of_detect(device: str, microseconds: float) -> None:
    assert cost.detect(NETWORKS["VOC 320"], 1).predicted(DEVICES[device]) < microseconds


@pytest.mark.parametrize("name", cost.OPERATORS)
def test_nothing_is_predicted_below_its_floor(name: str) -> None:
    for net in cost.NETWORKS:
        for batch in (1, 32):
            call = cost.OPERATORS[name](net, batch)
            assert call.moved >= call.minimum
            assert all(call.predicted(device) >= call.floor(device) for device in cost.DEVICES)


def test_a_larger_batch_takes_longer_and_half_types_move_less() -> None:
    net, device = NETWORKS["VOC 320"], DEVICES["Titan X (Maxwell)"]
    assert cost.detect(net, 32).predicted(device) > cost.detect(net, 1).predicted(device)
    assert cost.detect(net, 32, element=2).moved < cost.detect(net, 32).moved


@pytest.mark.parametrize(("golden", "net"), [("typical_voc320", "VOC 320"), ("coco81_320", "COCO 320")])
def test_shares_are_those_of_the_golden_cases(golden: str, net: str) -> None:
    """Candidates per surviving anchor."""
    inputs, _ = load_golden(golden)
    survivors = portable.objectness(inputs[1]) >= 0.01
    candidates = (portable.softmax(inputs[3])[..., 1:] > 0.01) & survivors[..., None]
    count = survivors.sum().item()
    assert NETWORKS[net].pairs == pytest.approx(candidates.sum().item() / count, rel=0.02)
    assert NETWORKS[net].anchors == inputs[4].shape[0]
    assert NETWORKS[net].classes == inputs[3].shape[2]


def test_concatenation_reads_and_writes_all_outputs() -> None:
    (*outputs, _), _ = load_golden("typical_voc320")
    expected = 2 * sum(output.nbytes for output in outputs)
    assert cost.concatenation(NETWORKS["VOC 320"], len(outputs[0])).moved == expected


class CountingHarness(Harness):
    """Remembers how many kernels the last call launched."""

    launches = 0

    def run(self, *arguments, **options) -> Result:
        result = super().run(*arguments, **options)
        self.launches = result.launches
        return result


CASES = {
    "detect": lambda harness: test_detect.check_case(harness, test_detect.random_inputs(0, 2, 70, 4)),
    "match": lambda harness: test_match.check_case(harness, test_match.random_inputs(0, 70, [3, 2])),
    "mine": lambda harness: test_mine.check_case(harness, test_mine.random_inputs(0, 2, 70, 4)),
    "refine": lambda harness: test_refine.check(harness),
}


@pytest.mark.parametrize("name", CASES)
def test_launches_are_those_of_the_launcher(name: str) -> None:
    kernels = [kernel for kernel in cost.OPERATORS[name](cost.NETWORKS[0], 1).kernels if kernel.name != "memset"]
    with CountingHarness(name) as harness:
        CASES[name](harness)
        assert harness.launches == len(kernels)


@pytest.mark.parametrize("boxes", [1000, 6375])
def test_launches_of_nms(boxes: int) -> None:
    with CountingHarness("nms") as harness:
        test_nms.check_case(harness, *test_nms.random_case(0, boxes, 3), 0.5)
        assert harness.launches == cost.nms(boxes).launches


def test_launches_of_soft_nms() -> None:
    with CountingHarness("soft_nms") as harness:
        test_soft_nms.check_case(harness, *test_soft_nms.random_case(0, 1, 1000, 20))
        assert harness.launches == cost.soft_nms(1000).launches


@pytest.mark.parametrize("boxes", [1000, 6375])
def test_launches_of_vote(boxes: int) -> None:
    with CountingHarness("vote") as harness:
        test_vote.check_case(harness, *image_of(*crowd(boxes)))
        assert harness.launches == cost.vote(boxes).launches


def test_kernels_are_those_of_the_budget() -> None:
    budget = json.loads((KERNELS / "resources.json").read_text())["kernels"]
    calls = [*(cost.OPERATORS[name](cost.NETWORKS[0], 1) for name in cost.OPERATORS)]
    calls += [of_boxes(6375) for of_boxes in cost.OF_BOXES.values()]
    modelled = {kernel.name for call in calls for kernel in call.kernels} - {"memset"}
    names = {name.partition("<")[0] for name in budget}
    assert modelled == names - {"rank_losses_kernel"}  # the cheap one of the two that rank


@pytest.mark.parametrize("name", [*cost.OPERATORS, *cost.OF_BOXES])
def test_documents(name: str) -> None:
    assert cost.table(name) in (KERNELS / f"{name}.md").read_text()
    assert (KERNELS / "cost.md").read_text().endswith(cost.summary())
    assert f"predicted to take {count_kernels.headline()}\n" in (ROOT / "README.md").read_text()


def test_images_of_a_batch_are_alike() -> None:
    """What was not counted comes from the largest counted batch that is not larger."""
    net = NETWORKS["VOC 320"]
    one, some, many, twice = (cost.detect(net, batch).kernels for batch in (1, 8, 32, 64))
    for first, other in ((one, some), (many, twice)):
        times = 8 if first is one else 2
        assert [kernel.instructions for kernel in other] == [times * kernel.instructions for kernel in first]
        assert [kernel.blocks for kernel in other[1:]] == [times * kernel.blocks for kernel in first[1:]]
        assert [kernel.chain for kernel in other] == [kernel.chain for kernel in first]


def test_what_was_not_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^net is 'small', float16, but of mine are counted: VOC 320, batch 1, "):
        cost.mine(cost.Network("small", 100, 3, 1, 1), 1, element=2)
    for of_boxes in cost.OF_BOXES.values():
        with pytest.raises(ValueError, match=r"^boxes is 5000, but counted are: 1,000 boxes of 20 classes, "):
            of_boxes(5000)


def test_tops_of_vote() -> None:
    counted = cost.read_counts()["operators"]["vote"]["1,000 boxes of 20 classes"]
    assert ops.vote(*image_of(*crowd(1000))).counts.tolist() == [counted["kept"]]


def test_boxes_that_nms_keeps() -> None:
    counted = cost.read_counts()["operators"]["nms"]["1,000 boxes of 20 classes"]
    boxes, scores, labels = crowd(1000)
    assert len(ops.batched_nms(boxes, scores, labels, 0.45)) == counted["kept"]
