"""Testing protocols as they are declared: the released ones by the specification's tables, one's own, and bad ones."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from refinedet.errors import InputError
from refinedet.parsing import parse_toml
from refinedet.presets import COCO, OFFICIAL, PAPER
from refinedet.protocols import (
    MERGES,
    PROTOCOLS,
    Protocol,
    Scale,
    Thresholds,
    get_protocol,
    of_preset,
    parse_protocol,
)

# Spec section 10.3: size; min(w, h) < ...; max(w, h) > ...
BASE_320 = [
    ((320, 320), None, None),
    ((192, 320), None, None),
    ((192, 192), None, 32),
    ((384, 384), 160, None),
    ((448, 448), 128, None),
    ((512, 512), 96, None),
    ((576, 576), 64, None),
    ((704, 704), 32, None),
]
BASE_512 = [
    ((512, 512), None, None),
    ((384, 512), None, None),
    ((256, 256), None, None),
    ((384, 384), None, None),
    ((768, 768), 192, None),
    ((896, 896), 128, None),
]
COCO_320 = [((640, 640), 48, None)]
COCO_512 = [((640, 640), 224, None), ((1024, 1024), 96, None), ((1152, 1152), 64, None)]
# Spec sections 8 and 10.4: score threshold, NMS, top_k, keep_top_k; merge, its IoU and floor
VOC_SETTINGS = (0.01, 0.45, 1000, 500), ("vote", 0.45)
COCO_SETTINGS = (0.05, 0.45, 400, 200), ("soft_vote", 0.45, 0.05)
MULTISCALE = {
    "voc_multiscale_320": (BASE_320, *VOC_SETTINGS),
    "voc_multiscale_512": (BASE_512, *VOC_SETTINGS),
    "coco_multiscale_320": (BASE_320 + COCO_320, *COCO_SETTINGS),
    "coco_multiscale_512": (BASE_512 + COCO_512, *COCO_SETTINGS),
}
OWN = """
score_threshold = 0.02
nms_iou = "none"
top_k = 300
merge = "soft_nms"
merge_sigma = 0.5

[[scales]]

[[scales]]
size = [192, 320]
turned = true
flipped = true
max_side_above = 32

[[scales]]
size = 640
original = false
flipped = true
min_side_below = 40.5
score_threshold = 0.2
keep_top_k = "none"
"""


def settings(thresholds: Thresholds) -> tuple:
    return thresholds.score_threshold, thresholds.nms_iou, thresholds.top_k, thresholds.keep_top_k


@pytest.mark.parametrize("name", MULTISCALE)
def test_the_multiscale_protocols_are_those_of_the_specification(name):
    scales, thresholds, (merge, iou, *floor) = MULTISCALE[name]
    protocol = PROTOCOLS[name]
    assert [(s.size, s.min_side_below, s.max_side_above) for s in protocol.scales] == scales
    assert all((s.original, s.flipped, s.thresholds) == (True, True, None) for s in protocol.scales)
    assert [s.size for s in protocol.scales if s.turned] == [scales[1][0]]
    assert settings(protocol.thresholds) == thresholds
    assert (protocol.merge, protocol.overlap) == (merge, iou)
    assert floor in ([], [protocol.floor])
    assert (protocol.looks, protocol.name) == (2 * len(scales), name)


def test_the_single_scale_protocols_are_those_of_the_specification():
    voc, coco = PROTOCOLS["voc"], PROTOCOLS["coco"]
    assert voc.scales == coco.scales == (Scale(None, original=True, flipped=False),)
    assert (settings(voc.thresholds), voc.merge) == ((0.01, 0.45, 1000, 500), "none")
    assert settings(coco.thresholds) == (0.016, None, None, None)
    assert (coco.merge, coco.overlap, coco.floor, coco.merge_sigma) == ("soft_nms", 0.30, 0.016, None)
    assert list(PROTOCOLS) == ["voc", "coco", *MULTISCALE]


def test_presets_test_as_the_protocols_of_the_same_data():
    assert of_preset(OFFICIAL) == PROTOCOLS["voc"]
    assert of_preset(COCO) == PROTOCOLS["coco"]
    assert settings(of_preset(PAPER).thresholds) == (0.01, 0.45, 400, 200)
    assert of_preset(replace(OFFICIAL, soft_nms_iou=0.5)).overlap == 0.5


@pytest.mark.parametrize(
    ("image", "size"), [((100, 101), (192, 320)), ((100, 100), (320, 192)), ((101, 100), (320, 192))]
)
def test_a_turned_scale_lies_for_images_wider_than_high_and_stands_for_all_others(image, size):
    assert Scale((192, 320), turned=True).input_size(image, (64, 64)) == size
    assert Scale((192, 320)).input_size(image, (64, 64)) == (192, 320)
    assert Scale().input_size(image, (64, 128)) == (64, 128)


def test_ones_own_comes_from_toml(tmp_path):
    file = tmp_path / "cells.toml"
    file.write_text(OWN)
    common = Thresholds(0.02, None, 300, 500)
    assert get_protocol(file) == Protocol(
        "cells",
        (
            Scale(),
            Scale((192, 320), turned=True, flipped=True, max_side_above=32),
            Scale(640, False, False, True, min_side_below=40.5, thresholds=Thresholds(0.2, None, 300, None)),
        ),
        common,
        merge="soft_nms",
        merge_sigma=0.5,
    )
    assert get_protocol(str(file)).name == "cells"
    assert get_protocol("coco") is PROTOCOLS["coco"]
    assert get_protocol(PROTOCOLS["voc"]) is PROTOCOLS["voc"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_shipped_protocol_is_its_name_in_toml(name):
    assert PROTOCOLS[name].to_toml() == name


@pytest.mark.parametrize("protocol", [*PROTOCOLS.values(), parse_protocol(parse_toml(OWN), "own")])
def test_a_protocol_comes_back_from_its_table(protocol):
    table = replace(protocol, name="other").to_toml()
    assert parse_protocol(table, "other") == protocol


ONE_SCALE = "[[scales]]\n"
BAD = {
    "no scales": ("", r"it has no scales; give at least one"),
    "no scales in a list": ("scales = []", r"it has no scales; give at least one"),
    "scales that are no list": ("scales = 3", r"scales is 3; give a table for each, \[\[scales\]\]"),
    "a scale that is no table": ("scales = [3]", r"scale 1: it is 3; give a table"),
    "an unknown merge": (
        'merge = "votes"\n' + ONE_SCALE,
        r"merge is 'votes'; did you mean 'vote'\? choose one of none, ",
    ),
    "a merge that is no text": (
        "merge = 1\n" + ONE_SCALE,
        r"merge is 1; choose one of none, soft_nms, vote, soft_vote",
    ),
    "a size of no multiple": (
        ONE_SCALE + ONE_SCALE + "size = 300",
        r"scale 2: size is 300; sides must be multiples of 64",
    ),
    "a height of no multiple": (
        ONE_SCALE + "size = [192, 300]",
        r"scale 1: size is \[192, 300\]; sides must be multiples",
    ),
    "no size": (ONE_SCALE + "size = 0", r"size is 0; sides must be multiples of 64, up to 4096"),
    "a negative size": (ONE_SCALE + "size = -64", r"size is -64; sides must be multiples of 64, up to 4096"),
    "too large a size": (ONE_SCALE + "size = 8192", r"size is 8192; sides must be multiples of 64, up to 4096"),
    "three sides": (ONE_SCALE + "size = [64, 64, 64]", r"size is \[64, 64, 64\]; give one side, or \[height, width\]"),
    "half a pixel": (ONE_SCALE + "size = 64.0", r"size is 64\.0; give one side, or \[height, width\], in whole pixels"),
    "a size that is true": (ONE_SCALE + "size = true", r"size is True; give one side"),
    "a size as a text": (ONE_SCALE + 'size = "64"', r"size is '64'; give one side"),
    "no look": (ONE_SCALE + "original = false", r"scale 1: looks at no image; set original or flipped to true"),
    "turned, but not the size": (ONE_SCALE + "turned = true", r"turned needs a size; give \[height, width\]"),
    "a number for true": (ONE_SCALE + "flipped = 1", r"flipped is 1; give true or false"),
    "no side so small": (
        ONE_SCALE + "min_side_below = 1",
        r"scale 1: min_side_below is 1; give a number above 1: no box",
    ),
    "a negative side": (ONE_SCALE + "min_side_below = -3", r"min_side_below is -3; give a number above 1"),
    "a side that is NaN": (ONE_SCALE + "min_side_below = nan", r"min_side_below is nan; give a number above 1"),
    "no side so large": (ONE_SCALE + "max_side_above = inf", r"max_side_above is inf; give a number above 0"),
    "a side of text": (ONE_SCALE + 'max_side_above = "32"', r"max_side_above is '32'; give a number above 0"),
    "a score that none has": (
        "score_threshold = 1.0\n" + ONE_SCALE,
        r"score_threshold is 1\.0; give a value from 0 to",
    ),
    "such a score at a scale": (
        ONE_SCALE + "score_threshold = 1",
        r"scale 1: score_threshold is 1; give a value from 0",
    ),
    "a negative score": (
        "score_threshold = -0.1\n" + ONE_SCALE,
        r"score_threshold is -0\.1; give a value from 0 to below",
    ),
    "no score threshold": ('score_threshold = "none"\n' + ONE_SCALE, r"score_threshold is 'none'; give a value from 0"),
    "an overlap above 1": ("nms_iou = 1.45\n" + ONE_SCALE, r'nms_iou is 1\.45; give a value from 0 to 1, or "none"'),
    "no box": ("top_k = 0\n" + ONE_SCALE, r'top_k is 0; give a whole number from 1 to 1000000, or "none"'),
    "half a box": ("keep_top_k = 1.5\n" + ONE_SCALE, r"keep_top_k is 1\.5; give a whole number from 1"),
    "true boxes": ("top_k = true\n" + ONE_SCALE, r"top_k is True; give a whole number from 1"),
    "a word": ('top_k = "off"\n' + ONE_SCALE, r"top_k is 'off'; give a whole number from 1 to 1000000, or \"none\""),
    "a key that is nearly right": ("nms_iuo = 0.4\n" + ONE_SCALE, r"'nms_iuo' is unknown; did you mean 'nms_iou'\?"),
    "such a key at a scale": (ONE_SCALE + "flip = true", r"scale 1: 'flip' is unknown; did you mean 'flipped'\?"),
    "a name, which the file is": ('name = "mine"\n' + ONE_SCALE, r"'name' is unknown; valid are scales, merge, "),
    "thresholds, which are flat": ("[thresholds]\n" + ONE_SCALE, r"'thresholds' is unknown; .*valid are "),
    "an overlap of no merge": (
        "merge_iou = 0.3\n" + ONE_SCALE,
        r"merge_iou is no setting of merge 'none', but of soft_",
    ),
    "a floor of no soft vote": (
        'merge = "vote"\nmerge_score_threshold = 0.3\n' + ONE_SCALE,
        r"merge_score_threshold is no setting of merge 'vote', but of soft_nms and soft_vote",
    ),
    "a merge's overlap": ('merge = "vote"\nmerge_iou = 2\n' + ONE_SCALE, r"merge_iou is 2; give a value from 0 to 1"),
    "a width of nothing": (
        'merge = "soft_nms"\nmerge_sigma = 0.0\n' + ONE_SCALE,
        r"merge_sigma is 0\.0; give a number from 1e-6 to 1e6",
    ),
    "both decays": (
        'merge = "soft_nms"\nmerge_sigma = 0.5\nmerge_iou = 0.3\n' + ONE_SCALE,
        r"merge_iou is of linear soft-NMS, merge_sigma of the Gaussian one; give one of them",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_told_with_its_place_value_and_fix(case, tmp_path):
    text, message = BAD[case]
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"mine\.toml: protocol mine: (scale 1: )?{message}"):
        get_protocol(file)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    file = tmp_path / "mine.toml"
    for content, message in ((b"scales =", "TOML"), (b"\xff\xfe", "not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(
            InputError, match=rf"mine\.toml cannot be read as TOML: .*{message}|mine\.toml cannot be read"
        ):
            get_protocol(file)
    with pytest.raises(InputError, match=r"is a folder; give a TOML file or the name of a shipped protocol"):
        get_protocol(tmp_path)


def test_a_shipped_name_may_be_a_path():
    assert get_protocol(Path("voc")) is PROTOCOLS["voc"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("VOC", "voc"), ("coco-multiscale-512", "coco_multiscale_512"), ("voc_multiscale320", "voc_multiscale_320")],
)
def test_an_unknown_name_gets_a_suggestion(name, meant):
    with pytest.raises(InputError, match=rf"there is no protocol '{name}'; did you mean '{meant}'\? give a TOML file"):
        get_protocol(name)


@pytest.mark.parametrize("value", [None, 3, 0.5, Scale(), ["voc"]])
def test_what_is_no_protocol_is_refused(value):
    with pytest.raises(InputError, match=r"^protocol is .*; give a name, a TOML file or a Protocol$"):
        get_protocol(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": ()}, "it has no scales; give at least one"),
        ({"scales": Scale()}, r"scales is Scale\(.*; give a sequence of Scale"),
        ({"scales": (320,)}, r"scales is \(320,\); give a sequence of Scale"),
        ({"thresholds": 0.5}, r"thresholds is 0\.5; give Thresholds"),
        ({"merge": None}, f"merge is None; choose one of {', '.join(MERGES)}"),
        (
            {"thresholds": Thresholds(0.5), "merge": "vote", "merge_iou": math.nan},
            "merge_iou is nan; give a value from",
        ),
    ],
)
def test_the_dataclass_checks_itself(values, message):
    with pytest.raises(InputError, match=rf"^protocol mine: {message}"):
        Protocol("mine", **values)


def test_a_scale_takes_thresholds_alone():
    with pytest.raises(InputError, match=r"^thresholds is 0\.5; give Thresholds or None"):
        Scale(thresholds=0.5)
    with pytest.raises(InputError, match=r"^name is 5; give a text"):
        Protocol(5)
