"""The folded network gives what the network gives that it is made from, in standard layers, and exporters take it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.synthetic import tiny_model, with_statistics
from torch import nn

import refinedet
from refinedet.inference.detector import Detector
from refinedet.models import build
from refinedet.models import folded as folded_module
from refinedet.models.folded import fold, fold_norm
from refinedet.models.layers import L2Norm
from refinedet.preprocessing import PIXELS, Preprocessing, normalize, prepare, to_tensor
from refinedet.records import LevelOutput

BACKBONES = ["vgg16", "resnet101", "squeezenet", "timm:test_resnet", "timm:test_efficientnet"]
STANDARD = (nn.Conv2d, nn.ConvTranspose2d, nn.ReLU, nn.MaxPool2d, L2Norm)
RGB = Preprocessing(mean=(103.5, 116.3, 123.7), std=(57.4, 57.1, 58.4), order="rgb")


def network_of(backbone, **options):
    torch.manual_seed(0)
    return with_statistics(build(backbone, 64, 4, tcb_channels=32, **options))


def assert_close(found, expected, tolerance=2e-4):
    """Of the largest value of each output."""
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert x.isfinite().all()
        assert (x.float() - y.float()).abs().max() <= tolerance * y.float().abs().max()


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_outputs_are_those_of_the_network(backbone):
    network = network_of(backbone)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = fold(network)
    layers = [module for module in made.modules() if not any(True for _ in module.children())]
    if not backbone.startswith("timm:"):  # which has layers of its own
        assert all(type(layer) in STANDARD for layer in layers if any(True for _ in layer.parameters()))
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    for images in (torch.randn(1, 3, 64, 64), torch.randn(2, 3, 64, 128)):
        assert_close(made(images), network(images))
        levels = made(images, by_level=True)
        assert isinstance(levels, LevelOutput)
        assert_close(levels.concatenate(), network(images))
    made.half()  # of its own tensors
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@torch.no_grad()
def test_folding_is_exact_in_float64():
    network = network_of("resnet101").double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(fold(network)(images), network(images), 1e-9)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_normalisation_is_folded_into_the_channels_of_the_output(transposed, bias, groups):
    """As many input as output channels: an exchange of both fits, and is wrong."""
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(8, 8, 2, stride=2, groups=groups, bias=bias).to(memory_format=torch.channels_last)
    norm = with_statistics(nn.Sequential(nn.BatchNorm2d(8)))[0]
    made = fold_norm(conv, norm)
    x = torch.randn(2, 8, 6, 10)
    assert_close([made(x)], [norm(conv(x))], 1e-5)
    assert made.weight.stride() == conv.weight.stride()
    assert not made.weight.requires_grad


@pytest.mark.parametrize("preprocessing", [Preprocessing(), RGB], ids=["caffe", "rgb"])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_pixels(backbone, preprocessing):
    """To the borders: what a convolution pads is zero after the subtraction of the mean."""
    network = network_of(backbone)
    made = fold(network, preprocessing)
    assert made.config == replace(network.config, preprocessing=PIXELS)
    pictures = torch.randint(256, (2, 64, 128, 3), dtype=torch.uint8)
    prepared = torch.stack([to_tensor(normalize(one.numpy(), preprocessing), preprocessing) for one in pictures])
    found = made.backbone(pictures.permute(0, 3, 1, 2).float())
    for x, y in zip(found, network.backbone(prepared), strict=True):
        assert_close([x], [y])
        for edge in (x[..., 0, :] - y[..., 0, :], x[..., -1] - y[..., -1]):
            assert edge.abs().max() <= 2e-4 * y.abs().max()


@torch.no_grad()
def test_deviation_and_order_are_in_the_first_convolution():
    network = network_of("squeezenet")
    front = fold(network, RGB).backbone
    assert front.preprocessing == Preprocessing(mean=RGB.mean)
    weight = network.backbone.features[0].weight
    expected = weight.double().flip(1) / torch.tensor(RGB.std, dtype=torch.float64).view(3, 1, 1)
    assert torch.equal(front.backbone.get_submodule("features.0").weight, expected.float())


class TwoReaders(nn.Module):
    """A backbone whose image goes to a convolution, and past it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        return (self.conv(images) + images,)


@torch.no_grad()
def test_a_backbone_that_reads_the_image_in_other_ways_is_given_it_prepared():
    torch.manual_seed(0)
    backbone, pixels = TwoReaders(), torch.randint(256, (1, 3, 8, 8)).float()
    made = folded_module._read_pixels(backbone, RGB, torch.rand(1, 3, 8, 8))
    assert made.preprocessing == RGB
    prepared = to_tensor(normalize(pixels[0].permute(1, 2, 0).byte().numpy(), RGB), RGB)
    assert_close(made(pixels), backbone(prepared[None]), 1e-5)


@pytest.mark.parametrize(
    ("backbone", "dtype"),
    [("resnet101", torch.float16), ("squeezenet", torch.float16), ("squeezenet", torch.bfloat16)],
)
@torch.no_grad()
def test_in_half_precision(backbone, dtype):
    """As the network in float32, but for the rounding of some layers."""
    network = network_of(backbone)
    pixels = 255 * torch.rand(1, 3, 64, 64)
    preprocessing = network.config.preprocessing
    expected = fold(network, preprocessing)(pixels)
    made = fold(network, preprocessing).to(dtype)
    assert made.dtype == dtype
    found = made(pixels)
    assert {x.dtype for x in found} == {dtype}
    assert_close(found, expected, 30 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backbone", ["squeezenet", "vgg16"])
@torch.no_grad()
def test_exporters_take_it(backbone):
    network = network_of(backbone)
    made = fold(network, network.config.preprocessing)
    images = 255 * torch.rand(2, 3, 64, 64)
    program = torch.export.export(made, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") and "batch_norm" not in name for name in names)
    three = 255 * torch.rand(3, 3, 64, 64)
    assert_close(program.module()(three), made(three))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pictures_of_one_colour(dtype):
    """Black, white and of another colour, where a map is constant and the norm of a position may be next to nothing:
    of the shipped model all outputs are finite, and the objects are those of the network as it was trained."""
    network = refinedet.load("bccd").network
    network.config = replace(network.config, size=(128, 128))
    network.float()  # which makes the anchors
    pictures = [np.full((128, 128, 3), colour, np.uint8) for colour in (0, 255, (104, 30, 200))]
    expected = Detector(network, optimize=False).detect(pictures, score_threshold=0.2)
    detector = Detector(network).to(dtype)
    inputs = torch.stack([prepare(picture, detector.size, detector.preprocessing) for picture in pictures])
    assert all(output.isfinite().all() for output in detector.run(inputs).concatenate())
    for found, wanted in zip(detector.detect(pictures, score_threshold=0.2), expected, strict=True):
        assert found.names == wanted.names
        torch.testing.assert_close(found.scores, wanted.scores, atol=8 * torch.finfo(dtype).eps, rtol=0)


@torch.no_grad()
def test_a_folded_network_is_folded_again():
    made = fold(tiny_model().eval())
    twice = fold(made)
    images = torch.randn(1, 3, 64, 64)
    assert_close(twice(images), made(images), 0)
