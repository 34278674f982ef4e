"""The work of networks, counted without running them."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import refinedet
from refinedet.profiling.flops import Layer, gigaflop, list_layers


class Alone(nn.Module):
    """One module in the place of a network."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.register_parameter("unused", nn.Parameter(torch.zeros(())))  # of some dtype the images are

    def forward(self, images: Tensor, by_level: bool = False) -> Tensor:
        result: Tensor = self.inner(images)
        return result


def layer_of(module: nn.Module, size: tuple[int, int] = (8, 12), batch: int = 1) -> Layer:
    return next(
        layer for layer in list_layers(Alone(module).to(next(module.parameters()).dtype), size, batch) if layer.flop
    )


@pytest.mark.parametrize(
    ("module", "output", "multiply_adds"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), (5, 8, 12), 8 * 12 * 5 * 3 * 9),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (5, 4, 6), 4 * 6 * 5 * 3 * 9),
        (nn.Conv2d(3, 5, 3, padding=3, dilation=3), (5, 8, 12), 8 * 12 * 5 * 3 * 9),
        (nn.Conv2d(3, 6, (1, 3), groups=3), (6, 8, 10), 8 * 10 * 6 * 3),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), (5, 16, 24), 16 * 24 * 5 * 3),  # each output has one tap of four
        (nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, groups=3), (6, 15, 23), 8 * 12 * 3 * 2 * 9),
        (nn.Linear(12, 7, bias=False), (24, 7), 3 * 8 * 12 * 7),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_multiply_adds_count_twice(module, output, multiply_adds, batch):
    layer = layer_of(module, batch=batch)
    assert layer.flop == 2 * batch * multiply_adds
    assert layer.output[-len(output) :] == ((batch * output[0], *output[1:]) if layer.kind == "mm" else output)
    assert layer.parameters == sum(each.numel() for each in module.parameters())
    assert layer.name == "inner"


def test_bytes_are_those_of_input_weights_and_output():
    layer = layer_of(nn.Conv2d(3, 5, 3, padding=1).half(), batch=2)
    assert layer.bytes == 2 * (2 * 3 * 8 * 12 + 5 * 3 * 9 + 5 + 2 * 5 * 8 * 12)
    (relu,) = list_layers(Alone(nn.Sequential(nn.ReLU(), nn.Flatten())), (8, 12))
    assert (relu.kind, relu.flop, relu.bytes) == ("relu", 0, 2 * 4 * 3 * 8 * 12)  # flattening moves nothing


@pytest.mark.parametrize("backbone", ["squeezenet", "timm:mobilenetv3_small_050"])
def test_a_network_is_counted_as_its_convolutions_are_by_hooks(backbone):
    network = refinedet.build(backbone, size=64, num_classes=5)
    expected: Counter[str] = Counter()

    def count(name: str, module: nn.Module, image: Tensor, result: Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        positions = image if module.transposed else result
        expected[name] += 2 * positions.shape[2] * positions.shape[3] * module.weight.numel()

    handles = [
        module.register_forward_hook(lambda m, inputs, result, name=name: count(name, m, inputs[0], result))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    layers = list_layers(network, (64, 64))
    assert {layer.name: layer.flop for layer in layers if layer.flop} == expected
    assert gigaflop(layers) == pytest.approx(sum(expected.values()) / 1e9)
    assert sum(layer.parameters for layer in layers) == sum(each.numel() for each in network.parameters())


def test_the_network_stays_as_it_is():
    network = refinedet.build("squeezenet", size=64, num_classes=5)
    network.odm.eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        list_layers(network, (128, 64))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_heads_that_read_channels_last_copy_nothing():
    """As on the CPU, where the weights' format decides that of the maps; in the other format the heads' maps are
    copied."""
    with torch.device("meta"):  # fresh weights would take a second
        networks = {name: refinedet.build(name, size=64, num_classes=5) for name in ("squeezenet", "resnet101")}
    kinds = {
        name: Counter(layer.kind for layer in list_layers(network, (64, 64))) for name, network in networks.items()
    }
    assert kinds["squeezenet"]["clone"] == 0
    assert kinds["resnet101"]["clone"] == 12  # four maps of three levels; the last has one cell
