"""Reads tests/golden/loss: losses of the official implementation, with the matches and negatives behind them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from support.paths import GOLDEN
from torch import Tensor

from refinedet.boxes import to_centers
from refinedet.records import RawOutput, Targets

FOLDER = GOLDEN / "loss"


class GoldenLoss(NamedTuple):
    """One run of the official loss layers."""

    raw: RawOutput
    anchors: Tensor  # [N,4] cx,cy,w,h
    targets: Targets
    arm: dict[str, Tensor]  # loss, loc_loss_sum, conf_loss_sum, num_matches, match, neg, loc_grad, conf_grad
    odm: dict[str, Tensor]


def _read(path: Path) -> dict[str, GoldenLoss]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name != "runs"}
    raw = RawOutput(*(tensors[name] for name in ("arm_loc", "arm_conf_logits", "odm_loc", "odm_conf_logits")))
    prefixes: dict[bool, dict[str, str]] = {}
    for run in json.loads(str(arrays["runs"])):
        prefixes.setdefault(run["use_difficult_gt"], {})[run["prefix"][:3]] = run["prefix"]
    return {
        f"{path.stem}-{'difficult' if difficult else 'no-difficult'}": GoldenLoss(
            raw,
            to_centers(tensors["priors"]),
            _targets(tensors["label"], difficult, len(raw.odm_loc)),
            *(_with_prefix(tensors, modules[name]) for name in ("arm", "odm")),
        )
        for difficult, modules in prefixes.items()
    }


def _targets(rows: Tensor, use_difficult: bool, batch: int) -> Targets:
    rows = rows[(rows[:, 0] >= 0) & (use_difficult | (rows[:, 7] == 0))]
    offsets = torch.searchsorted(rows[:, 0].contiguous(), torch.arange(batch + 1.0))
    return Targets(rows[:, 3:7].contiguous(), rows[:, 1].long(), offsets)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


GOLDEN_LOSSES = {name: case for path in sorted(FOLDER.glob("*.npz")) for name, case in _read(path).items()}
