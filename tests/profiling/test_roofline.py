"""The picture of layers and operators under the machine's ceilings."""

import math
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from refinedet.profiling import roofline
from refinedet.profiling.ceilings import Ceilings, Memory, Rate
from refinedet.profiling.roofline import Point, roofline_svg, write_roofline

MACHINE = Ceilings("cpu", "float32", 1, 100.0, (Memory("L2", 1e6, 50.0), Memory("memory", math.inf, 10.0)))
POINTS = [
    Point("backbone.conv1_1 convolution", "layer", Rate(1e8, 2e6, 2.0)),
    Point('a <b> & "c" $d$', "layer", Rate(2e6, 2e6, 4.0)),
    Point("detect", "operator", Rate(1e6, 1e6, 0.1)),
]
SVG = "{http://www.w3.org/2000/svg}"


def test_a_png(tmp_path: Path) -> None:
    write_roofline(tmp_path / "roofline.png", POINTS, MACHINE, "title")
    image = cv2.imread(str(tmp_path / "roofline.png"))
    assert image is not None
    blue = np.all(np.abs(image.astype(int) - (200, 150, 110)) < 60, axis=-1)
    assert blue.sum() > 100  # the layers' marks


def test_every_mark_tells_its_name_and_numbers() -> None:
    root = ElementTree.fromstring(roofline_svg(POINTS, MACHINE, "title"))
    titles = {
        group.get("id"): group.findtext(f"{SVG}title")
        for group in root.iter(f"{SVG}g")
        if group.find(f"{SVG}title") is not None
    }
    assert titles == {f"mark{number}": point.text(MACHINE) for number, point in enumerate(POINTS)}
    assert titles["mark0"] == (
        "backbone.conv1_1 convolution: 2 ms, 50 GFLOP/s, 50 FLOP/byte, 50% of the ceiling (compute)"
    )
    assert titles["mark2"] == "detect: 0.1 ms, 10 GFLOP/s, 1 FLOP/byte, 20% of the ceiling (L2)"
    text = "".join(root.itertext())
    assert "matrix product 100 GFLOP/s" in text
    assert "memory 10 GB/s" in text


def test_marks_lie_where_their_numbers_are() -> None:
    axes = roofline._draw(POINTS, MACHINE, "title").axes[0]
    marks = [
        (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if str(line.get_gid()).startswith("mark")
    ]
    assert marks == [(50.0, 50.0), (1.0, 0.5), (1.0, 10.0)]
    roofs = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert len(roofs) == len(MACHINE.memories)
    for roof, memory in zip(roofs, MACHINE.memories, strict=True):
        assert np.allclose(roof.get_ydata(), np.minimum(roof.get_xdata() * memory.bandwidth, 100.0))
    low, high = axes.get_xlim()
    assert all(low < x < high for x, _ in marks)
