"""Anchors and box coding against the official priors and the specification's vectors.

The official ``priorbox_ssd_like`` case is not here: max_size, further ratios and clipping belong to SSD, not RefineDet.
"""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.paths import GOLDEN

from refinedet.anchors import generate_anchors
from refinedet.boxes import decode, encode, to_centers, to_corners
from refinedet.errors import InputError
from refinedet.presets import OFFICIAL

FOLDER = GOLDEN / "prior"
PRIORS = sorted(FOLDER.glob("prior_*.npz"))


def test_the_golden_files_are_there() -> None:
    assert len(PRIORS) == 6


@pytest.mark.parametrize("path", PRIORS, ids=lambda path: path.stem)
def test_official_priors(path: Path) -> None:
    golden = np.load(path)
    anchors = generate_anchors(tuple(golden["img_hw"].tolist()))
    assert anchors.dtype == torch.float32
    assert anchors.shape == golden["priors"].shape
    np.testing.assert_allclose(to_corners(anchors), golden["priors"], rtol=0, atol=2e-7)
    np.testing.assert_array_equal(golden["variances"], np.broadcast_to(np.float32(OFFICIAL.variances), anchors.shape))


def test_specification_vectors() -> None:
    with open(FOLDER / "prior_test_vectors.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    for row in rows:
        anchors = generate_anchors((int(row["img_h"]), int(row["img_w"])))
        assert len(anchors) == int(row["n_priors"])
        expected = [float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")]
        np.testing.assert_allclose(to_corners(anchors[int(row["prior_index"])]), expected, rtol=0, atol=1e-6)


def test_specification_decoding() -> None:
    vector = json.loads((FOLDER / "decode_test_vector.json").read_text())
    prior, arm_loc, odm_loc, gt = (
        torch.tensor(vector[name], dtype=torch.float64) for name in ("prior", "arm_loc", "odm_loc", "gt")
    )
    anchor = to_centers(prior)
    refined = decode(anchor, arm_loc)
    found = {
        "refined_anchor": to_corners(refined),
        "final_box": to_corners(decode(refined, odm_loc)),
        "arm_target": encode(gt, anchor),
        "odm_target": encode(gt, refined),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, vector[name], rtol=1e-7, err_msg=name)
    same = generate_anchors((vector["size"], vector["size"]))[vector["prior_index"]]
    torch.testing.assert_close(to_corners(same).double(), prior, rtol=0, atol=1e-6)


def test_thinner_anchors() -> None:
    anchors = generate_anchors((64, 128), ratio=4.0)
    sides = anchors[:, 2:] * torch.tensor([128.0, 64.0])  # pixels
    assert sides[:3].tolist() == [[32.0, 32.0], [64.0, 16.0], [16.0, 64.0]]
    assert torch.equal(anchors[:, :2], generate_anchors((64, 128))[:, :2])  # where they are, and how many, is the same


@pytest.mark.parametrize("ratio", [0, 0.5, -2.0, math.nan, math.inf, 17, True, "2"])
def test_a_ratio_that_no_anchors_have(ratio: object) -> None:
    with pytest.raises(
        InputError, match=rf"^anchor_ratio is {ratio!r}; give a number from 1 to 16 \(2 in the paper\)$"
    ):
        generate_anchors((64, 64), ratio=ratio)


@pytest.mark.parametrize("size", [320, 320.0, (320,), (320, 320, 3), (320, 320.0), "320"])
def test_a_size_that_is_no_pair_of_whole_numbers(size: object) -> None:
    with pytest.raises(InputError, match=re.escape(f"input size is {size!r}; give (height, width) in whole pixels")):
        generate_anchors(size)


@pytest.mark.parametrize(
    ("size", "nearest"), [((300, 320), "(320, 320)"), ((320, 0), "(320, 64)"), ((65, 1), "(64, 64)")]
)
def test_bad_size_names_it_and_the_nearest_good_one(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(InputError) as error:
        generate_anchors(size)
    assert str(size) in str(error.value)
    assert f"nearest {nearest}" in str(error.value)
