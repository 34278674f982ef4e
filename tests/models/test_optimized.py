"""The network that is made for inference gives what the network gives that it is made from, and follows its changes."""

import copy
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.paths import ROOT
from support.synthetic import tiny_model, with_statistics
from torch import nn

import refinedet
from refinedet import OFFICIAL
from refinedet.inference.detector import Detector
from refinedet.models import build, panels, pointwise, winograd
from refinedet.models import folded as folded_module
from refinedet.models import optimized as optimized_module
from refinedet.models.folded import JointHeads
from refinedet.models.layers import L2Norm
from refinedet.models.optimized import Convolution, FastL2Norm, MaxPool, optimize, optimized, run_in_parts
from refinedet.training.sgd import CaffeSGD

ROUNDING = 2e-4  # of the largest value
NHWC = torch.channels_last

OWN = pytest.mark.skipif(not panels.available(), reason="the kernels of our own need AVX2 and FMA")
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN runs as it is")


def assert_close(found, expected, tolerance=ROUNDING):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("backbone", ["vgg16", "resnet101", "squeezenet", "timm:test_resnet", "timm:test_efficientnet"])
@torch.no_grad()
def test_outputs_are_those_of_the_network(backbone):
    torch.manual_seed(0)
    network = with_statistics(build(backbone, 64, 4, tcb_channels=32))
    before = copy.deepcopy(network.state_dict())
    made = optimize(network)
    plain = [name for name, module in made.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert not plain or backbone.startswith("timm:")
    height, width = network.config.size
    for images in (torch.randn(1, 3, height, width), torch.randn(2, 3, height, 2 * width)):
        for found, expected in zip(made(images), network(images), strict=True):
            assert_close(found, expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("backbone", ["vgg16", "squeezenet", "timm:test_resnet", "timm:test_efficientnet"])
@torch.no_grad()
def test_hooks_are_its_own(backbone, monkeypatch):
    """Of every module, in both directions, and where torch.fx has misread the backbone, too."""
    network = build(backbone, 64, 4, tcb_channels=32).eval()
    images = torch.rand(1, 3, *network.config.size)
    for agrees in (True, False):
        monkeypatch.setattr(folded_module, "_agree", lambda *_, agrees=agrees: agrees)
        made = optimize(network)
        for one, other in ((made, network), (network, made)):
            called = []
            handles = [
                module.register_forward_hook(lambda module, *_, called=called: called.append(module))
                for module in one.modules()
            ]
            other(images)
            assert not called
            one(images)
            assert called
            for handle in handles:
                handle.remove()


class Shared(nn.Module):
    """One convolution with a normalisation of its own behind each call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.first, self.second = (with_statistics(nn.Sequential(nn.BatchNorm2d(4)))[0] for _ in range(2))

    def forward(self, x):
        return self.first(self.conv(x)), self.second(self.conv(x + 1)).relu()


class Twice(nn.Module):
    """The output of a convolution, two times."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y, z = self.conv(x), self.other(x)
        return y + y, torch.cat([z, z], dim=1)


class Pieces(nn.Module):
    """A concatenation of what torch.fx has no list of."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        pieces = self.conv(x).chunk(2, dim=1)
        return (torch.cat(pieces, dim=1).relu(),)


class Sums(nn.Module):
    """Sums of three: a convolution takes up one summand."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        return self.first(x) + x + x.sin(), self.second(x) + x + self.third(x)


class Named(nn.Module):
    """Functions whose arguments have names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = torch.cat(tensors=[x, self.conv(x)], dim=1)
        return F.relu(y), torch.relu(input=y)


@pytest.mark.parametrize("kind", [Shared, Twice, Pieces, Sums, Named])
@torch.no_grad()
def test_what_does_not_fit_is_not_taken_up(kind):
    torch.manual_seed(0)
    module, x = kind().eval(), torch.randn(2, 4, 6, 8)
    for found, expected in zip(optimized_module._optimize(folded_module._fold(module))(x), module(x), strict=True):
        assert_close(found, expected)


def test_layers_keep_their_names():
    names = {name: type(module) for name, module in optimize(tiny_model()).named_modules()}
    assert names["tcb.lateral1.0.conv"] is names["backbone.features.3.squeeze"] is Convolution
    assert names["arm"] is JointHeads
    assert names["backbone.features.2"] is MaxPool


@OWN
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("extra", ["", "other", "beside"])
@pytest.mark.parametrize(
    ("shape", "out_channels"), [((1, 16, 4, 4), 1), ((2, 48, 7, 9), 33), ((1, 32, 13, 22), 64), ((3, 16, 1, 2), 18)]
)
def test_winograd(shape, out_channels, extra, relu):
    torch.manual_seed(0)
    x = torch.randn(shape).contiguous(memory_format=NHWC)
    weight, bias = torch.randn(out_channels, shape[1], 3, 3), torch.randn(out_channels)
    given = torch.randn(shape[0], out_channels if extra == "other" else 19, *shape[2:]).contiguous(memory_format=NHWC)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    expected = expected + given if extra == "other" else expected
    expected = expected.relu() if relu else expected
    expected = torch.cat([given, expected], dim=1) if extra == "beside" else expected
    options = {extra: given} if extra else {}
    found = winograd.convolve(x, *winograd.transform(weight, bias), out_channels, relu=relu, **options)
    assert_close(found.double(), expected, 1e-4)


@OWN
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("summand", [False, True])
@pytest.mark.parametrize(("shape", "out_channels"), [((1, 3, 1, 1), 1), ((2, 48, 7, 9), 33), ((1, 200, 13, 22), 56)])
def test_pointwise(shape, out_channels, summand, relu):
    torch.manual_seed(0)
    x = torch.randn(shape).contiguous(memory_format=NHWC)
    weight, bias = torch.randn(out_channels, shape[1], 1, 1), torch.randn(out_channels)
    other = torch.randn(shape[0], out_channels, *shape[2:]).contiguous(memory_format=NHWC) if summand else None
    expected = F.conv2d(x.double(), weight.double(), bias.double())
    expected = expected if other is None else expected + other
    expected = expected.relu() if relu else expected
    found = pointwise.convolve(x, *pointwise.transform(weight, bias), out_channels, relu=relu, other=other)
    assert_close(found.double(), expected, 1e-5)


@OWN
def test_pointwise_of_no_image():
    x = torch.zeros(0, 16, 4, 4).contiguous(memory_format=NHWC)
    assert pointwise.convolve(x, *pointwise.transform(torch.ones(18, 16, 1, 1), None), 18).shape == (0, 18, 4, 4)


@OWN
def test_shapes_choose_the_kernels():
    """Of the tiny model: 3x3 of stride 1 on maps of 12 tiles and more, 1x1; all others are oneDNN's."""
    network = optimize(tiny_model())
    network(torch.rand(1, 3, *network.config.size))
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Convolution)}
    assert {layer.method for layer in layers.values()} == {"winograd", "pointwise", "onednn"}
    plain = {name for name, layer in layers.items() if layer.kernel_size == (1, 1)}
    assert {name for name, layer in layers.items() if layer.method == "pointwise"} == plain
    assert all(layer.kernel_size == (3, 3) for layer in layers.values() if layer.method == "winograd")


def test_threads_that_come_first_together_lay_the_weights_out_once(monkeypatch):
    lay_out, laid_out = Convolution._lay_out, []

    def slowly(self, x):
        laid_out.append(self)
        time.sleep(0.1)
        return lay_out(self, x)

    monkeypatch.setattr(Convolution, "_lay_out", slowly)
    torch.manual_seed(0)
    layer, x = Convolution(nn.Conv2d(16, 8, 3, padding=1)), torch.randn(1, 16, 20, 20)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(torch.no_grad()(layer), [x, x]))
    assert laid_out == [layer]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("tcb", [False, True])
@torch.no_grad()
def test_a_batch_in_parts(tcb, monkeypatch):
    network = optimize(build("squeezenet", (64, 128), 5, preset=replace(OFFICIAL, tcb=tcb)).eval())
    images = torch.randn(5, 3, 64, 128)
    expected = network(images)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # two images at a time
    found = run_in_parts(network, images).concatenate()
    for part, whole in zip(found, expected, strict=True):
        assert (part is None) == (whole is None)
        if part is not None:
            assert_close(part, whole)


CONVOLVE = pytest.mark.parametrize(("kernels", "side"), [(winograd, 3), (pointwise, 1)])


@OWN
@CONVOLVE
def test_convolutions_give_the_same_bits_on_more_threads(kernels, side):
    torch.manual_seed(0)
    x, weights = torch.randn(1, 16, 40, 44), kernels.transform(torch.randn(8, 16, side, side), None)
    expected = kernels.convolve(x, *weights, 8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = kernels.convolve(x, *weights, 8)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found, expected)


@OWN
@CONVOLVE
def test_nan_goes_through_convolutions(kernels, side):
    x = torch.zeros(1, 16, 8, 8)
    x[0, 3, 0, 0] = torch.nan
    found = kernels.convolve(x, *kernels.transform(torch.ones(4, 16, side, side), None), 4, relu=True)
    assert found[:, :, 0, 0].isnan().all()
    assert found[:, :, 7, 7].isfinite().all()


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("side", "stride"), [(2, 2), (3, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (3, 20)])
def test_max_pooling(size, side, stride, ceil_mode):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size)
    assert torch.equal(MaxPool(side, stride, ceil_mode)(x), F.max_pool2d(x, side, stride, ceil_mode=ceil_mode))


@pytest.mark.parametrize(("stride", "windows"), [(2, 0), (2, 5), (1, 9), (2**62, 5)])
def test_max_pooling_refuses_windows_that_start_outside(stride, windows):
    """Also where the product that says so does not fit in 64 bits."""
    for height, width in ((windows, 1), (1, windows)):
        with pytest.raises(RuntimeError, match=f"which has no {height} x {width} windows of stride {stride}"):
            torch.ops.refinedet.max_pool(torch.zeros(1, 8, 8, 4), 2, stride, height, width)


@pytest.mark.parametrize("channels", [1, 24, 37])
def test_l2_norm(channels):
    torch.manual_seed(0)
    x, norm = torch.randn(2, channels, 5, 6), L2Norm(channels, scale=20.0)
    torch.nn.init.normal_(norm.weight)
    x[0, :, 0, 0] = 0
    torch.testing.assert_close(FastL2Norm(norm)(x), norm(x))


def change_weight(network):
    with torch.no_grad():
        network.odm.conf[0].bias += 1


def change_statistics(network):
    network.tcb.lateral1[0].norm.running_mean += 1


def load(network):
    network.load_state_dict(tiny_model(seed=1).state_dict())


def round_weights(network):
    network.half().float()


def replace_layer(network):
    network.odm.loc[0] = copy.deepcopy(network.odm.loc[0])


def take_a_step(network, kind=torch.optim.SGD):
    optimizer = kind(network.parameters(), lr=0.1)
    network.eval()(torch.randn(2, 3, 64, 64)).odm_conf.square().mean().backward()  # statistics stay
    optimizer.step()


def take_a_step_of_training(network):
    take_a_step(network, CaffeSGD)


@pytest.mark.parametrize(
    "change",
    [change_weight, change_statistics, load, round_weights, replace_layer, take_a_step, take_a_step_of_training],
)
def test_is_made_anew_after_a_change(change):
    network, images = tiny_model(), torch.randn(1, 3, 64, 64)
    first = optimized(network)
    assert first is optimized(network)
    change(network)
    with torch.inference_mode():
        second = optimized(network)
        assert second is not first
        assert_close(second(images).odm_conf, network.eval()(images).odm_conf)


def hook(network):
    network.arm.register_forward_hook(lambda module, inputs, output: output)


def patch(network):
    network.tcb.forward = network.tcb.forward


def parametrize(network):
    torch.nn.utils.parametrizations.weight_norm(network.odm.loc[0])


@pytest.mark.parametrize("change", [hook, patch, parametrize])
def test_runs_as_it_is_where_it_is_more_than_its_layers(change):
    network = tiny_model()
    assert optimized(network) is not None
    change(network)
    assert optimized(network) is None
    with torch.autocast("cpu"):
        assert optimized(tiny_model()) is None


@pytest.mark.parametrize("cast", [torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_in_other_types_it_is_the_folded_one(cast):
    network = tiny_model()
    assert optimized(network) is not None
    cast(network)
    made = optimized(network)
    assert made is optimized(network)
    assert {type(module) for module in made.modules()}.isdisjoint({Convolution, FastL2Norm, MaxPool, nn.BatchNorm2d})
    assert made.dtype == network.dtype


def test_is_made_of_a_network_that_was_loaded_in_inference_mode():
    with torch.inference_mode():
        assert optimized(refinedet.load("bccd").network) is not None


def test_keeps_no_network_alive():
    network = tiny_model()
    optimized(network)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


def test_the_mode_of_training_stays():
    network = tiny_model().train()
    network.backbone.eval()
    before = [module.training for module in network.modules()]
    assert optimized(network) is not None
    assert [module.training for module in network.modules()] == before


def test_the_shipped_model_finds_the_same_objects():
    pictures = sorted((ROOT / "examples" / "bccd").glob("*.jpg"))[:2]
    detector = refinedet.load("bccd")
    plain = Detector(detector.network, optimize=False).detect(pictures, score_threshold=0.05)
    for found, expected in zip(detector.detect(pictures, score_threshold=0.05), plain, strict=True):
        assert found.names == expected.names
        assert len(found.scores) > 10
        torch.testing.assert_close(found.boxes, expected.boxes, atol=0.05, rtol=0)
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-3, rtol=0)


def test_an_empty_batch():
    raw = Detector(tiny_model()).run(torch.empty(0, 3, 64, 64))
    assert raw.odm_conf[0].shape == (0, 192, 3)
