"""Families of timm: each builds, and gives maps of exactly the strides, or is refused in one sentence."""

import pytest
import torch
from torch import nn

import refinedet
from refinedet.errors import CheckpointError, InputError
from refinedet.models import build
from refinedet.models.backbones import timm as backbone_module
from refinedet.models.backbones.timm import TimmBackbone
from refinedet.weights import checkpoint
from refinedet.weights.checkpoint import save_model


def build_unallocated(name, size):
    with torch.device("meta"):
        return build(f"timm:{name}", size, 3, tcb_channels=8)


@pytest.mark.parametrize(
    ("name", "size", "parts"),
    [
        ("hardcorenas_a", 320, ["timm cannot make 'hardcorenas_a' a network of features (TypeError: "]),
        ("halonet26t", 320, ["'timm:halonet26t' does not take images of 320 x 320 pixels (AssertionError", "size"]),
        ("haloregnetz_b", 512, ["'timm:haloregnetz_b' does not take images of 512 x 512 pixels"]),
        ("bat_resnext26ts", 320, ["'timm:bat_resnext26ts' does not take images of 320 x 320"]),
        ("lambda_resnet26rpt_256", 320, ["'lambda_resnet26rpt_256' works at one input size only"]),
        ("coatnet_pico_rw_224", 320, ["works at one input size only"]),
        ("volo_d1_224", 320, ["gives strides [8, 16]"]),
        ("inception_v3", 64, ["'timm:inception_v3' does not take images of 64 x 64 pixels (RuntimeError: "]),
        ("inception_v3", 128, ["'inception_v3' gives a map of (2, 2) instead of (4, 4) cells"]),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_one_sentence(name, size, parts):
    with pytest.raises(InputError) as caught:
        build_unallocated(name, size)
    assert "\n" not in str(caught.value)
    assert "choose " in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lambda_resnet26t", 320),
        ("halonet26t", 512),
        ("inception_v3", 320),
        ("inception_v4", (512, 320)),
        ("dla46_c", 64),
    ],
)
def test_networks_that_fit(name, size):
    network = build_unallocated(name, size)
    height, width = network.config.size
    maps = network.backbone(torch.empty(2, 3, height, width, device="meta"))
    sides = [(height // stride, width // stride) for stride in (8, 16, 32, 64)]
    assert [tuple(features.shape[2:]) for features in maps] == sides
    raw = network(torch.empty(2, 3, height, width, device="meta"))
    assert raw.odm_conf.shape == (2, len(network.anchors), 3)


def test_maps_of_any_size_of_values_are_normalised():
    backbone = TimmBackbone("test_resnet").eval()
    images = torch.rand(2, 3, 64, 64)
    before = backbone(images)
    backbone.body.register_forward_hook(lambda body, inputs, maps: [1000 * features for features in maps])
    for small, large in zip(before[:3], backbone(images)[:3], strict=True):
        torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(large.square().mean(dim=1).sqrt(), torch.full_like(large[:, 0], 0.5))


class Shifts(nn.Module):
    """Gives three maps with one value that is not zero, ``missing`` cells smaller than they should be."""

    def __init__(self, missing):
        super().__init__()
        self.missing = missing

    def forward(self, images):
        sides = [images.shape[2] // stride - missing for stride, missing in zip((8, 16, 32), self.missing, strict=True)]
        return [torch.ones(1, 1, side, side) for side in sides]


@pytest.mark.parametrize("missing", [(3, 2, 2), (-3, -2, -1), (1, -1, 0)])
def test_maps_are_padded_and_cropped_on_all_sides_alike(missing):
    with torch.device("meta"):
        backbone = TimmBackbone("test_resnet")
    backbone.body = Shifts(missing)
    backbone.norms, backbone.extra64 = nn.ModuleList([nn.Identity()] * 3), nn.Identity()
    for features, stride, lacking in zip(backbone(torch.empty(1, 3, 320, 320)), (8, 16, 32), missing, strict=False):
        side = 320 // stride
        assert tuple(features.shape) == (1, 1, side, side)
        inside = features[0, 0, lacking // 2 : side + lacking // 2 - lacking, :] if lacking > 0 else features[0, 0]
        assert inside.any(dim=1).all()
        assert features.sum() == min(side, side - lacking) ** 2


@pytest.mark.parametrize("missing", [(4, 0, 0), (0, -4, 0), (0, 0, 5)])
def test_maps_that_are_of_other_strides_are_refused(missing):
    with torch.device("meta"):
        backbone = TimmBackbone("test_resnet")
    backbone.body = Shifts(missing)
    with pytest.raises(
        InputError, match=r"timm model 'test_resnet' gives a map of \(\d+, \d+\) instead of \(\d+, \d+\)"
    ):
        backbone(torch.empty(1, 3, 320, 320))


@pytest.mark.parametrize(
    "error", [KeyError("x"), AttributeError("a\nb"), NotImplementedError(), ImportError("xformers")]
)
def test_errors_of_timm_of_any_kind(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("timm.create_model", fail)
    message = rf"timm cannot make 'resnet18' a network of features \({type(error).__name__}"
    with pytest.raises(InputError, match=message) as caught:
        TimmBackbone("resnet18")
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_fit_is_never_given_memory(monkeypatch):
    made = []
    make = backbone_module._feature_network
    monkeypatch.setattr(
        backbone_module, "_feature_network", lambda *args: made.append(torch.get_default_device()) or make(*args)
    )
    with pytest.raises(InputError, match="does not take images of 320 x 320"):
        build("timm:eca_halonext26ts", 320, 3)
    assert {device.type for device in made} == {"meta"}


def test_a_checkpoint_of_a_size_that_the_network_does_not_take(tmp_path, monkeypatch):
    network = build("timm:test_resnet", 64, 3, tcb_channels=8)
    save_model(network, tmp_path / "m.safetensors")

    def refuse(images):
        raise AssertionError("divides nothing")

    monkeypatch.setattr(TimmBackbone, "forward", lambda self, images: refuse(images))
    checkpoint.allocate.__globals__["try_backbone"].cache_clear()
    with pytest.raises(
        CheckpointError, match=r"m\.safetensors: its model cannot be built: .*\(AssertionError: divides"
    ):
        refinedet.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_torchs_defaults_change_nothing_of_a_loaded_timm_network(dtype, tmp_path):
    """Its layers may hold values that are in no file."""
    torch.manual_seed(0)
    save_model(build("timm:test_efficientnet", 64, 3, tcb_channels=8).eval(), tmp_path / "m.safetensors")
    image = torch.rand(3, 50, 70)
    (expected,) = refinedet.load(tmp_path / "m.safetensors").detect(image)
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device("meta")
        detector = refinedet.load(tmp_path / "m.safetensors")
        (found,) = detector.detect(image)
        kept = torch.get_default_dtype()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert kept == dtype
    tensors = [*detector.network.parameters(), *detector.network.buffers()]
    assert {(t.dtype, t.device.type) for t in tensors} == {(torch.float32, "cpu"), (torch.int64, "cpu")}
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
