"""State dicts of the luuuyi port (spec section 12.1), a PyTorch RefineDet with VGG-16: its names and ours."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from refinedet.errors import CheckpointError, shorten
from refinedet.models import RefineDet
from refinedet.models.backbones.vgg import conv_names
from refinedet.models.pretrained import VGG_CONVS
from refinedet.preprocessing import Preprocessing
from refinedet.presets import Preset

CLASSIFIER = "odm_conf.0.weight"  # [3 * classes,256,3,3]
INPUT = Preprocessing(order="rgb")
# As the port measures itself: its limit of 500 detections for an image has no effect (spec section 12.2).
LUUUYI = Preset(name="luuuyi", keep_top_k=None)
_FC6, _FC7 = 31, 33  # positions in its ``vgg``


def luuuyi_names(model: RefineDet) -> dict[str, str]:
    """The port's name of every tensor in the state dict of a VGG-16 model."""
    return {name: _rename(name) for name in model.state_dict()}


def from_luuuyi(model: RefineDet, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict of ``model`` (its values do not matter) that the port's ``state``, read from ``path``, is.

    Raises CheckpointError, naming the first tensors that do not fit.
    """
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    names = luuuyi_names(model)
    known = set(names.values())
    problems = {
        "missing": [theirs for theirs in names.values() if theirs not in state],
        "unexpected": [theirs for theirs in state if theirs not in known],
        "of wrong shape": [
            f"{theirs} {list(state[theirs].shape)} instead of {shapes[ours]}"
            for ours, theirs in names.items()
            if theirs in state and list(state[theirs].shape) != shapes[ours]
        ],
    }
    if any(problems.values()):
        listing = "; ".join(f"{kind}: {shorten(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{path}: not a RefineDet of the luuuyi port ({listing}); give one of its checkpoints")
    return {ours: state[theirs] for ours, theirs in names.items()}


def _rename(name: str) -> str:
    room, part, *rest = name.split(".")
    kind = rest[-1] if rest else ""
    if room == "backbone":
        return f"{_backbone_part(part)}.{kind}"
    if room == "tcb":
        level = int(rest[0])
        places = {"lateral1": f"tcb0.{3 * level}", "lateral2": f"tcb0.{3 * level + 2}", "up": f"tcb1.{level}"}
        return f"{places.get(part, f'tcb2.{3 * level + 1}')}.{kind}"
    return f"{room}_{part}.{'.'.join(rest)}"


def _backbone_part(name: str) -> str:
    convs = dict(zip(conv_names(), VGG_CONVS, strict=True)) | {"fc6": _FC6, "fc7": _FC7}
    if name in convs:
        return f"vgg.{convs[name]}"
    return {"conv6_1": "extras.0", "conv6_2": "extras.1"}.get(name, name.replace("_norm", "_L2Norm"))
