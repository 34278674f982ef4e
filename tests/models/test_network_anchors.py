"""The anchors of a network are those of `generate_anchors`, to the last bit, whatever happens to the network."""

import pickle
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from support.synthetic import tiny_checkpoint, tiny_model
from torch import Tensor, nn

import refinedet
from refinedet.anchors import generate_anchors
from refinedet.inference.detector import Detector
from refinedet.models import RefineDet, build
from refinedet.models import refinedet as network_module

SIZE, OTHER = (64, 192), (128, 64)  # thirds: anchors that no short format holds
DTYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return generate_anchors(SIZE)


@pytest.fixture
def network() -> RefineDet:
    return tiny_model(SIZE)


@pytest.fixture
def restore_defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def assert_exact(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    assert found.device == expected.device
    assert torch.equal(found, expected)


def test_the_size_is_one_that_short_formats_round(exact: Tensor) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        assert not torch.equal(exact.to(dtype).float(), exact)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_the_network(network: RefineDet, exact: Tensor, cast: str) -> None:
    getattr(network, cast)()
    assert network.dtype != torch.float32
    assert_exact(network.anchors, exact)
    assert_exact(network.float().anchors, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_casting_what_holds_the_network(network: RefineDet, exact: Tensor, dtype: torch.dtype) -> None:
    assert_exact(nn.Sequential(network).to(dtype)[0].anchors, exact)
    assert_exact(network.anchors_for(OTHER), generate_anchors(OTHER))


def built_without_memory() -> RefineDet:
    with torch.device("meta"):
        return build("squeezenet", SIZE, 3, tcb_channels=16)


def test_a_network_without_memory_gets_some(network: RefineDet, exact: Tensor) -> None:
    empty = built_without_memory()
    assert empty.device.type == empty.anchors.device.type == "meta"
    empty.to_empty(device="cpu")
    assert_exact(empty.anchors, exact)
    empty.load_state_dict(network.state_dict())
    assert_exact(empty.anchors, exact)


def test_a_network_without_memory_takes_over_a_state_dict(network: RefineDet, exact: Tensor) -> None:
    empty = built_without_memory()
    empty.load_state_dict(network.state_dict(), assign=True)
    assert_exact(empty.anchors, exact)
    whole = nn.Sequential(built_without_memory())
    whole.load_state_dict(nn.Sequential(network).state_dict(), assign=True)
    assert_exact(whole[0].anchors, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.usefixtures("restore_defaults")
def test_torchs_defaults_change_no_anchor(exact: Tensor, dtype: torch.dtype, device: str) -> None:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    assert_exact(generate_anchors(SIZE), exact)
    network = build("squeezenet", SIZE, 3, tcb_channels=16)
    assert network.device.type == device
    if device == "cpu":
        assert_exact(network.anchors, exact)
        assert_exact(network.anchors_for(OTHER), generate_anchors(OTHER))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.usefixtures("restore_defaults")
def test_torchs_defaults_change_nothing_of_what_is_loaded(tmp_path: Path, dtype: torch.dtype, device: str) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", SIZE)
    expected, picture = refinedet.load(path), torch.rand(3, 50, 70)
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    detector = refinedet.load(path)
    assert (detector.device, detector.dtype) == (torch.device("cpu"), torch.float32)
    state = detector.network.state_dict()
    for name, value in expected.network.state_dict().items():
        assert_same(state[name], value)
    assert_exact(detector.network.anchors, expected.network.anchors)
    (found,), (wanted,) = detector.detect(picture), expected.detect(picture)
    assert_same(found.boxes, wanted.boxes)
    assert_same(found.scores, wanted.scores)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.device == expected.device
    assert torch.equal(found, expected)


def test_anchors_are_no_part_of_the_state(network: RefineDet, exact: Tensor) -> None:
    assert not [name for name in network.state_dict() if "anchors" in name]
    assert not [name for name, _ in network.named_buffers() if "anchors" in name]
    other = build("squeezenet", SIZE, 3, tcb_channels=16)
    other.load_state_dict(network.state_dict(), strict=True)
    assert_exact(other.anchors, exact)


@pytest.mark.parametrize("copy", [deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_have_them_too(network: RefineDet, exact: Tensor, copy: object) -> None:
    twin = copy(network)
    assert_exact(twin.anchors, exact)
    assert_exact(twin.half().anchors, exact)
    assert_exact(network.anchors, exact)
    twin.load_state_dict(network.state_dict())


def test_they_are_made_once(network: RefineDet, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(network)

    def fail(size: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(network_module, "generate_anchors", fail)
    detector.detect(torch.rand(3, 50, 70))
    assert network.anchors is network.anchors_for(SIZE)


def test_those_placed_in_inference_mode_serve_training(network: RefineDet, exact: Tensor) -> None:
    with torch.inference_mode():
        network.to(torch.float32)
    offsets = torch.zeros_like(network.anchors, requires_grad=True)
    (network.anchors * offsets).sum().backward()
    assert torch.equal(offsets.grad, exact)


class AnchorsOf(nn.Module):
    """Gives anchors from within a graph: those of the network's size, and of another."""

    def __init__(self, network: RefineDet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        zero = images.sum() * 0
        return self.network.anchors + zero, self.network.anchors_for(OTHER) + zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_hold_them(network: RefineDet, exact: Tensor, dtype: torch.dtype) -> None:
    """And what a graph saw is not kept for those who come after it."""
    module, images = AnchorsOf(network.to(dtype)), torch.ones(1)
    expected = generate_anchors(OTHER)
    for run in (
        torch.compile(module, fullgraph=True, backend="eager"),
        torch.export.export(module, (images,)).module(),
        torch.export.export(module, (images,), strict=True).module(),
        module,
    ):
        for found, wanted in zip(run(images), (exact, expected), strict=True):
            assert_exact(found, wanted)
