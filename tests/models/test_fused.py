"""Layers of training on the CPU in one pass each way, against plain PyTorch: the same values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from refinedet.models import fused
from refinedet.models.backbones import vgg
from refinedet.models.layers import L2Norm, conv_relu, relu_pool

SHAPES = [(2, 64, 8, 6), (1, 37, 7, 9), (3, 5, 1, 2), (1, 16, 1, 1), (2, 1, 3, 4), (0, 8, 4, 4)]


def random_map(shape: tuple[int, ...], levels: int = 0) -> Tensor:
    """Channels-last, on its way to a gradient; with ``levels`` values are few, so that many are equal."""
    torch.manual_seed(sum(shape))
    x = torch.randn(shape)
    if levels:
        x = (x * levels).round() / levels
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def twin(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def plain_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(x), 2, ceil_mode=True)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0]])
@pytest.mark.parametrize("levels", [0, 1])
def test_relu_and_pooling(shape: tuple[int, ...], levels: int) -> None:
    x = random_map(shape, levels)
    assert fused.fusible(x)
    y = twin(x)
    found, expected = relu_pool(x), plain_pool(y)
    gradient = torch.randn(expected.shape)  # not channels-last
    found.backward(gradient)
    expected.backward(gradient)
    assert_same(found, expected)
    assert_same(x.grad, y.grad)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pooling_of_what_is_not_finite(value: float) -> None:
    for places in ([0], [3], [0, 1], [1, 2, 3], [0, 1, 2, 3]):
        x = random_map((1, 20, 2, 2))
        with torch.no_grad():
            for place in places:
                x[:, :, place // 2, place % 2] = value
        y = twin(x)
        found, expected = relu_pool(x), plain_pool(y)
        found.sum().backward()
        expected.sum().backward()
        assert_same(found, expected)
        assert_same(x.grad, y.grad)


def test_pooling_of_a_rectified_map_is_the_same() -> None:
    x = random_map((2, 24, 5, 6))
    y = twin(x)
    relu_pool(F.relu(x), rectified=True).sum().backward()
    plain_pool(y).sum().backward()
    assert_same(x.grad, y.grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_l2norm(shape: tuple[int, ...]) -> None:
    """Against float64; an error may be as large as the rounding of what cancels."""
    layer = L2Norm(shape[1], 1.0)
    with torch.no_grad():
        layer.weight.uniform_(5, 15)
    x = random_map(shape)
    assert fused.fusible(x)
    y, factors = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    expected = y / (y.square().sum(dim=1, keepdim=True) + L2Norm.EPS).sqrt() * factors.view(1, -1, 1, 1)
    gradient = torch.randn(shape)
    found = layer(x)
    found.backward(gradient)
    expected.backward(gradient.double())
    largest = (gradient * 15 / x.detach().norm(dim=1, keepdim=True)).abs().max().item() if shape[0] else 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-6, atol=1e-6 * largest)
    torch.testing.assert_close(layer.weight.grad.double(), factors.grad, rtol=1e-6, atol=1e-6 * shape[2] * shape[3])


def test_l2norm_does_not_depend_on_the_number_of_threads() -> None:
    x, layer = random_map((2, 512, 20, 20)), L2Norm(512, 8.0)
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        x.grad = layer.weight.grad = None
        layer(x).square().sum().backward()
        found.append((x.grad, layer.weight.grad))
    torch.set_num_threads(threads)
    for pair in found[1:]:
        for ours, first in zip(pair, found[0], strict=True):
            assert torch.equal(ours, first)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 3, "dilation": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2},
    ],
)
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_convolution_with_relu(settings: dict, needs_gradient: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, **settings).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 9, 8, requires_grad=needs_gradient)
    y = twin(x).requires_grad_(needs_gradient)
    assert fused.fusible_convolution(conv, x)
    found = conv_relu(conv, x)
    gradient = torch.randn(found.shape)
    found.backward(gradient)
    ours = [x.grad, conv.weight.grad, conv.bias.grad]
    conv.zero_grad()
    expected = F.relu(conv(y))
    expected.backward(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(ours, [y.grad, conv.weight.grad, conv.bias.grad], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_whoever_looks_into_a_layer_sees_it() -> None:
    conv, seen = nn.Conv2d(3, 4, 1), []
    conv = conv.to(memory_format=torch.channels_last)
    conv.register_forward_hook(lambda *_: seen.append(1))
    conv_relu(conv, torch.randn(1, 3, 2, 2)).sum().backward()
    assert seen == [1]


def test_plain_layers_where_no_gradient_is_wanted_and_for_other_dtypes() -> None:
    x = random_map((1, 4, 2, 2))
    with torch.no_grad():
        assert not fused.fusible(x)
        assert not fused.fusible_convolution(nn.Conv2d(4, 4, 1), x)
    assert not fused.fusible(x.detach())
    assert not fused.fusible(x.bfloat16())
    assert not fused.fusible(x.contiguous().expand(2, 4, 2, 2)[:, :, :, :1])
    with torch.autocast("cpu"):
        assert not fused.fusible_convolution(nn.Conv2d(4, 4, 1).to(memory_format=torch.channels_last), x)


def test_plain_layers_for_stand_ins_and_transforms() -> None:
    layer = L2Norm(4, 10.0)
    x = random_map((2, 4, 2, 2)).detach()
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x).requires_grad_()
        assert not fused.fusible(fake)
    found = torch.func.grad(lambda x: layer(x).sum())(x)
    y = twin(x)
    layer(y).sum().backward()
    torch.testing.assert_close(found, y.grad, rtol=1e-5, atol=1e-5)


def test_l2_norm_of_factors_in_another_type() -> None:
    """Maps of float32 and factors of float64: as in evaluation, where nothing asks for a gradient."""
    layer = L2Norm(4, 10.0).double()
    x = random_map((2, 4, 2, 2))
    torch.testing.assert_close(layer(x), layer(x.detach()))


def test_vgg_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = vgg.VGG16().to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, 64, 64) * 50

    def run() -> tuple[list[Tensor], dict[str, Tensor]]:
        network.zero_grad()
        maps = network(images)
        sum(level.sum() for level in maps).backward()
        return [level.detach() for level in maps], {name: p.grad for name, p in network.named_parameters()}

    maps, gradients = run()
    monkeypatch.setattr(fused, "fusible", lambda x: False)
    monkeypatch.setattr(fused, "fusible_convolution", lambda conv, x: False)
    plain_maps, plain_gradients = run()
    for ours, plain in zip(maps, plain_maps, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        scale = plain_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=0, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ops: ops.relu_pool(torch.zeros(2, 3)), r"map has shape \[2, 3\]"),
        (lambda ops: ops.relu_pool(torch.zeros(1, 2, 2, 3).double()), "map must be contiguous float32"),
        (lambda ops: ops.relu_pool(torch.zeros(1, 3, 2, 2).permute(0, 2, 3, 1)), "map must be contiguous float32"),
        (
            lambda ops: ops.relu_pool_backward(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3).byte(), 4, 4),
            r"gradient has shape \[1, 1, 1, 3\], expected \[\*, 2, 2, \*\]",
        ),
        (lambda ops: ops.l2norm(torch.zeros(2, 3), torch.zeros(2), 1e-10), r"factors has shape \[2\]"),
        (
            lambda ops: ops.caffe_sgd(torch.zeros(3), torch.zeros(2), torch.zeros(3), 0.9, 0.0, 0.1),
            r"velocity has shape \[2\]",
        ),
    ],
)
def test_compiled_functions_refuse(call, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.refinedet)
