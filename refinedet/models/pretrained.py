"""ImageNet weights for a backbone: reading the file, giving its tensors our names, folding its input into ours."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import singledispatch
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from refinedet.choices import WEIGHTS_INPUTS
from refinedet.errors import CheckpointError, InputError, shorten
from refinedet.models.backbones import resnet
from refinedet.models.backbones.base import Backbone
from refinedet.models.backbones.resnet import ResNet101
from refinedet.models.backbones.squeezenet import SqueezeNet
from refinedet.models.backbones.timm import TimmBackbone
from refinedet.models.backbones.vgg import VGG16, conv_names
from refinedet.models.weights_file import StateDict, read_state_dict
from refinedet.preprocessing import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue in 0..1: torchvision's and timm's usual statistics
IMAGENET_STD = (0.229, 0.224, 0.225)

VGG_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # positions in torchvision's ``features``
FC_TAPS = (0, 3, 6)  # of fc6's 7x7 kernel: dilation 3
FC_CHANNEL_STEP = 4  # 1024 of fc6's and fc7's 4096 channels

NEW_PARTS = {"vgg16": ("conv4_3_norm", "conv5_3_norm", "conv6_"), "resnet101": ("res6.",)}  # in no ImageNet network

_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_PLAIN = {  # parts of a block of efficientnet-pytorch without expansion, and timm's
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **_SQUEEZE
}  # fmt: skip
_EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3", **_SQUEEZE
}  # fmt: skip

_GREY_DEVIATION = 60.0  # of photographs, in grey levels: 1 in torchvision's units
# A trained classifier's scores differ between an image and plain grey by a few units (DeepScale's: 4.3), and by many
# times that when the weights are for values 58 times smaller (the same weights times 58: 150).
_LARGEST_RESPONSE = 20.0


@singledispatch
def load_pretrained(backbone: Backbone, path: str | Path, weights_input: str = "torchvision") -> None:
    """Load ImageNet weights from ``path`` into ``backbone``, for ``weights_input``, one of ``WEIGHTS_INPUTS``.

    A backbone of another kind registers a loader of its own: ``load_pretrained.register``. Raises CheckpointError when
    the file does not fit and InputError for another ``weights_input``.
    """
    raise InputError(f"{type(backbone).__name__} has no pretrained weights that this package can read; leave them out")


@load_pretrained.register
def _load_vgg(backbone: VGG16, path: str | Path, weights_input: str = "torchvision") -> None:
    """A file with torchvision's names (`reduce_vgg`) or one converted from Caffe; the L2Norms, conv6_1 and conv6_2
    stay."""
    state = read_state_dict(path)
    if "conv1_1.weight" in state:
        _require_caffe(weights_input, path)
    else:
        state = reduce_vgg(state, backbone.preprocessing, path, weights_input)
    load_checked(backbone, state, path, new=NEW_PARTS["vgg16"])


@load_pretrained.register
def _load_resnet(backbone: ResNet101, path: str | Path, weights_input: str = "torchvision") -> None:
    """A file with torchvision's names (`rename_resnet`) or one converted from Caffe; res6 keeps its initialisation.

    Torchvision's network has the stride in the 3x3 convolutions and pads pool1, so with its weights this one is an
    approximation that training has to settle. With Caffe's it is exact.
    """
    state = read_state_dict(path)
    if "conv1.conv.weight" in state:
        _require_caffe(weights_input, path)
    else:
        state = rename_resnet(state, backbone.preprocessing, path, weights_input)
    load_checked(backbone, state, path, new=NEW_PARTS["resnet101"], ignored=("fc.",))


@load_pretrained.register
@torch.no_grad()
def _load_squeezenet(backbone: SqueezeNet, path: str | Path, weights_input: str = "torchvision") -> None:
    """A file with torchvision's names; the new stages keep their initialisation.

    The classifier is not needed, but where the file has one it tells which input the weights are for: of files with
    the same names, torchvision's reads RGB in 0..1 and DeepScale's, the original, BGR in 0..255.
    """
    state = read_state_dict(path)
    found = select_checked(backbone, state, path, new=("norm", "extra"), ignored=("classifier.",))
    kernel, shift = fold_input(found["features.0.weight"], weights_input, backbone.preprocessing)
    _check_input(backbone, found, state.get("classifier.1.weight"), weights_input, path)
    found |= {"features.0.weight": kernel, "features.0.bias": found["features.0.bias"] + shift}
    backbone.load_state_dict(found, strict=False)


@load_pretrained.register
def _load_timm(backbone: TimmBackbone, path: str | Path, weights_input: str = "torchvision") -> None:
    """A file with timm's names, or, for an EfficientNet, those of the package efficientnet-pytorch.

    Its input is the timm model's own; ``weights_input`` "caffe" is refused. What timm's classifier has beyond the
    feature network is ignored.
    """
    if weights_input != "torchvision":
        raise InputError(f"weights_input is {weights_input!r}, but a timm model has its own input; leave it out")
    whole = backbone.complete_network().state_dict()
    state = read_state_dict(path, whole)
    if "_conv_stem.weight" in state:
        state = rename_efficientnet(state, whole, path)
    features = backbone.body.model
    needed = features.state_dict()
    load_checked(features, state, path, ignored=[name for name in whole if name not in needed])


def load_checked(
    module: nn.Module, state: StateDict, path: str | Path, *, new: Sequence[str] = (), ignored: Sequence[str] = ()
) -> None:
    """Load what `select_checked` takes of ``state`` into ``module``."""
    module.load_state_dict(select_checked(module, state, path, new=new, ignored=ignored), strict=False)


def select_checked(
    module: nn.Module, state: StateDict, path: str | Path, *, new: Sequence[str] = (), ignored: Sequence[str] = ()
) -> StateDict:
    """What of ``state``, read from ``path``, is for ``module``: every parameter and no stranger, else CheckpointError.

    Names that start with one of ``new`` are the module's own and may be absent; those that start with one of
    ``ignored`` (a classifier the detector has no use for) may be there. So may counters of batch normalisation.
    """
    expected = module.state_dict()
    found = {name: value for name, value in state.items() if not name.startswith(tuple(ignored))}
    optional = tuple(new)
    problems = {
        "missing": [
            name for name in expected if name not in found and not name.startswith(optional) and not _is_counter(name)
        ],
        "unexpected": [name for name in found if name not in expected and not _is_counter(name)],
        "of wrong shape": [
            f"{name} {list(value.shape)} instead of {list(expected[name].shape)}"
            for name, value in found.items()
            if name in expected and value.shape != expected[name].shape
        ],
        "of wrong type": [
            f"{name} {value.dtype}"
            for name, value in found.items()
            if name in expected and value.is_floating_point() != expected[name].is_floating_point()
        ],
    }
    if any(problems.values()):
        listing = "; ".join(f"{kind}: {shorten(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{path}: not a weights file for {type(module).__name__} ({listing}); use its own")
    return found


def _is_counter(name: str) -> bool:
    """Whether ``name`` is a counter of batch normalisation, which files have or lack as they please."""
    return name.endswith((".num_batches_tracked", ".factor"))


def require(state: StateDict, names: Iterable[str], path: str | Path, kind: str) -> None:
    """Raise CheckpointError unless ``state``, read from ``path``, has all ``names`` of a file of that ``kind``."""
    if missing := [name for name in names if name not in state]:
        raise CheckpointError(f"{path}: not {kind} (missing: {shorten(missing)}); use a file with its key names")


def require_shapes(state: StateDict, shapes: Mapping[str, tuple[int, ...]], path: str | Path, kind: str) -> None:
    """Raise CheckpointError unless the tensors of ``state`` have the ``shapes`` of a file of that ``kind``."""
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise CheckpointError(f"{path}: {name} is {list(state[name].shape)} instead of {list(shape)}; use {kind}")


def reduce_vgg(
    state: StateDict, preprocessing: Preprocessing, path: str | Path, weights_input: str = "torchvision"
) -> StateDict:
    """Turn torchvision's VGG-16 weights, read from ``path``, into those of VGG-16 reduced.

    fc6 and fc7 are subsampled: taps 0, 3, 6 of fc6's 7x7 kernel in each direction and every 4th of the 4096 channels
    (spec section 2; which channels the official file kept is not published). conv1_1 takes over the file's input
    (`fold_input`).
    """
    pairs = {f"features.{position}": name for position, name in zip(VGG_CONVS, conv_names(), strict=True)}
    pairs |= {"classifier.0": "fc6", "classifier.3": "fc7"}
    shapes = {
        "features.0.weight": (64, 3, 3, 3),
        "features.0.bias": (64,),
        "classifier.0.weight": (4096, 512 * 7 * 7),
        "classifier.0.bias": (4096,),
        "classifier.3.weight": (4096, 4096),
        "classifier.3.bias": (4096,),
    }
    names = {f"{old}.{kind}": f"{new}.{kind}" for old, new in pairs.items() for kind in ("weight", "bias")}
    require(state, names, path, "torchvision's VGG-16")
    require_shapes(state, shapes, path, "torchvision's VGG-16")
    reduced = {new: state[old] for old, new in names.items()}
    reduced["conv1_1.weight"], shift = fold_input(reduced["conv1_1.weight"], weights_input, preprocessing)
    reduced["conv1_1.bias"] = reduced["conv1_1.bias"] + shift
    step, taps = FC_CHANNEL_STEP, list(FC_TAPS)
    reduced["fc6.weight"] = reduced["fc6.weight"].view(4096, 512, 7, 7)[::step, :, taps][..., taps]
    reduced["fc7.weight"] = reduced["fc7.weight"][::step, ::step, None, None]
    for name in ("fc6.bias", "fc7.bias"):
        reduced[name] = reduced[name][::step]
    return reduced


def rename_resnet(
    state: StateDict, preprocessing: Preprocessing, path: str | Path, weights_input: str = "torchvision"
) -> StateDict:
    """Give torchvision's ResNet-101 weights, read from ``path``, our names; conv1 takes over the file's input."""
    require(state, ("conv1.weight", "bn1.running_mean", "layer3.22.conv3.weight"), path, "torchvision's ResNet-101")
    require_shapes(state, {"conv1.weight": (64, 3, 7, 7), "bn1.running_mean": (64,)}, path, "torchvision's ResNet-101")
    prefixes = {"conv1.": "conv1.conv.", "bn1.": "conv1.norm."}
    for layer, (names, *_) in enumerate(resnet.STAGES[:-1], start=1):
        for index, name in enumerate(names):
            old = f"layer{layer}.{index}."
            for number, branch in enumerate(("branch2a", "branch2b", "branch2c"), start=1):
                prefixes[f"{old}conv{number}."] = f"{name}.{branch}.conv."
                prefixes[f"{old}bn{number}."] = f"{name}.{branch}.norm."
            prefixes |= {f"{old}downsample.0.": f"{name}.branch1.conv.", f"{old}downsample.1.": f"{name}.branch1.norm."}
    renamed = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        renamed[prefixes.get(f"{module}.", f"{module}.") + kind] = value
    renamed["conv1.conv.weight"], shift = fold_input(renamed["conv1.conv.weight"], weights_input, preprocessing)
    renamed["conv1.norm.running_mean"] = renamed["conv1.norm.running_mean"] - shift
    return renamed


def rename_efficientnet(state: StateDict, whole: StateDict, path: str | Path) -> StateDict:
    """Give weights of efficientnet-pytorch, read from ``path``, the names of ``whole``, timm's complete network.

    ``_blocks.1._expand_conv.weight`` is ``blocks.1.0.conv_pw.weight``: blocks are counted through, and the parts of
    one have other names with an expansion than without.
    """
    parts = dict(_efficientnet_parts({name.rpartition(".")[0] for name in state}, whole))
    renamed = {}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        renamed[f"{parts.get(part, part)}.{kind}"] = value
    agrees = all(name in whole and whole[name].shape == value.shape for name, value in renamed.items())
    if not agrees or any(name not in renamed for name in whole if not _is_counter(name)):
        raise CheckpointError(
            f"{path}: weights of efficientnet-pytorch, but for another variant than the timm model; "
            "use the timm model of the same variant (tf_efficientnet_lite0 for efficientnet-lite0)"
        )
    return renamed


def _efficientnet_parts(parts: set[str], whole: StateDict) -> Iterator[tuple[str, str]]:
    """Pairs of efficientnet-pytorch's and timm's names of a layer."""
    yield from {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}.items()
    yield "_fc", "classifier"
    blocks = {match[0]: (int(match[1]), int(match[2])) for name in whole if (match := _TIMM_BLOCK.match(name))}
    for index, block in enumerate(sorted(blocks, key=blocks.__getitem__)):
        expands = f"_blocks.{index}._expand_conv" in parts
        for old, new in (_EXPANDED if expands else _PLAIN).items():
            yield f"_blocks.{index}.{old}", block + new


def fold_input(weight: Tensor, weights_input: str, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Make the first convolution of a file, which reads ``weights_input``, read ``preprocessing``: BGR order, std 1.

    ``weight``: [O,3,k,k]. Returns the kernel [O,3,k,k] and the shift [O] to add to its outputs. Raises InputError for
    an unknown ``weights_input``.
    """
    if weights_input not in WEIGHTS_INPUTS:
        raise InputError(f"weights_input is {weights_input!r}; choose one of {', '.join(WEIGHTS_INPUTS)}")
    if weights_input == "caffe":
        return weight, weight.new_zeros(len(weight))
    return fold_rgb_input(weight, preprocessing)


def fold_rgb_input(weight: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """`fold_input` of a convolution that reads torchvision's input.

    The shift is there because the two means differ by up to 0.7 grey levels. Outputs equal the original's but where the
    kernel reads padding: a padded 0 stands for the mean, which is not quite the same grey.
    """
    wide = weight.double()
    kernel = (wide / (255 * wide.new_tensor(IMAGENET_STD).view(1, 3, 1, 1))).flip(1)
    difference = wide.new_tensor(preprocessing.mean) - 255 * wide.new_tensor(IMAGENET_MEAN[::-1])
    shift = kernel.sum(dim=(2, 3)) @ difference
    return kernel.to(weight.dtype), shift.to(weight.dtype)


def _require_caffe(weights_input: str, path: str | Path) -> None:
    """Raise CheckpointError unless ``weights_input`` is that of the file, which ``refinedet convert`` made."""
    if weights_input != "caffe":
        raise CheckpointError(
            f"{path}: its weights are for caffe's input, not {weights_input}'s; set model.weights_input = 'caffe' "
            "(--weights-input caffe)"
        )


def _check_input(
    backbone: SqueezeNet, state: StateDict, classifier: Tensor | None, weights_input: str, path: str | Path
) -> None:
    """Raise CheckpointError when the weights ``state`` and their ``classifier`` were not trained for ``weights_input``.

    Without a classifier of several classes nothing tells.
    """
    if classifier is None or classifier.shape[1:] != (512, 1, 1) or len(classifier) < 2:
        return
    noise = torch.randn(1, 3, 7, 7, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    image = F.interpolate(_GREY_DEVIATION * noise, size=(224, 224), mode="bilinear")
    weights = {name.removeprefix("features."): value for name, value in state.items()}
    features = functional_call(backbone.features, weights, torch.cat([image, torch.zeros_like(image)]))
    scores = F.conv2d(features, classifier).mean(dim=(2, 3))
    response = (scores[0] - scores[1]).std()
    found = "torchvision" if response > _LARGEST_RESPONSE else "caffe"
    if found != weights_input:
        raise CheckpointError(
            f"{path}: its weights are for {found}'s input, not {weights_input}'s (an image in 0..255 moves the "
            f"classifier's scores by {response:.1f}); set model.weights_input = {found!r} (--weights-input {found})"
        )
