"""Random networks whose operators have as much to do as those of trained ones."""

import pytest
import torch

from refinedet import build
from refinedet.inference.detector import Detector
from refinedet.preprocessing import prepare
from refinedet.presets import Preset
from refinedet.profiling.model import PAIRS, SURVIVING, imitate_training, open_photographs


@pytest.mark.parametrize(("backbone", "size"), [("squeezenet", (128, 192)), ("vgg16", (64, 64))])
@pytest.mark.parametrize("tcb", [True, False])
def test_random_heads_pass_as_much_as_trained_ones(backbone, size, tcb):
    torch.manual_seed(0)
    detector = Detector(build(backbone, size=size, num_classes=21, preset=Preset(tcb=tcb)).eval())
    image = open_photographs().decode(0)
    before = detector.network.odm.loc[0].bias.clone()
    imitate_training(detector, image)
    raw = detector.run(prepare(image, detector.size, detector.preprocessing)[None]).concatenate()
    anchors = raw.odm_conf.shape[1]
    survive = torch.ones(anchors, dtype=torch.bool)
    if tcb:
        survive = raw.arm_conf[0].softmax(-1)[:, 1] >= 0.01
        assert int(survive.sum()) == pytest.approx(SURVIVING * anchors, abs=2)
    pairs = int((raw.odm_conf[0, survive].softmax(-1)[:, 1:] > 0.01).sum())
    assert pairs == pytest.approx(PAIRS * int(survive.sum()), rel=0.1, abs=2)
    assert torch.equal(detector.network.odm.loc[0].bias, before)
