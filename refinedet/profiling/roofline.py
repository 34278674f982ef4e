"""The roofline of a machine (Williams, Waterman, Patterson 2009) with layers and operators on it, as PNG and SVG.

The rate of a call is at most that of the arithmetic, and at most its operations per byte times a bandwidth.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from refinedet.files import atomic_write
from refinedet.profiling.ceilings import Ceilings, Rate

SIZE = (11.0, 7.0)  # inches
SMALLEST, LARGEST = 4.0, 18.0  # points: diameter of a mark, whose area goes with the time
STYLES = {"layer": ("tab:blue", "o"), "operator": ("tab:red", "D")}
# Whatever the user's matplotlibrc says. In a page text stays text.
_PLAIN: Any = {"text.usetex": False, "svg.fonttype": "none", "svg.hashsalt": "refinedet"}


@dataclass(frozen=True)
class Point:
    """A call on the picture; ``group``: a key of `STYLES`."""

    name: str
    group: str
    rate: Rate

    def text(self, ceilings: Ceilings) -> str:
        """What is shown where the mouse rests on it."""
        rate = self.rate
        return (
            f"{self.name}: {rate.milliseconds:.3g} ms, {rate.gflops:.3g} GFLOP/s, {rate.intensity:.3g} FLOP/byte, "
            f"{rate.share(ceilings):.0%} of the ceiling ({rate.bound(ceilings)})"
        )


def write_roofline(path: str | os.PathLike[str], points: Sequence[Point], ceilings: Ceilings, title: str) -> None:
    """Draw ``points`` under ``ceilings``; the format follows the suffix of ``path``, which is written atomically."""
    with matplotlib.rc_context(_PLAIN), atomic_write(path) as temporary:
        _draw(points, ceilings, title).savefig(temporary, dpi=120)


def roofline_svg(points: Sequence[Point], ceilings: Ceilings, title: str) -> str:
    """The same picture as an ``<svg>`` for a page, in which every mark tells its name and numbers to the mouse."""
    file = io.BytesIO()
    with matplotlib.rc_context(_PLAIN):
        _draw(points, ceilings, title).savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue().decode()
    for number, point in enumerate(points):
        group = f'<g id="{_mark(number)}">'
        text = text.replace(group, f"{group}<title>{escape(point.text(ceilings))}</title>")
    return text[text.index("<svg") :]


def _mark(number: int) -> str:
    return f"mark{number}"


def _draw(points: Sequence[Point], ceilings: Ceilings, title: str) -> Figure:
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes((0.07, 0.08, 0.91, 0.87))
    low = min([point.rate.intensity for point in points] + [0.1]) / 2
    high = max([point.rate.intensity for point in points] + [ceilings.compute / ceilings.memories[-1].bandwidth]) * 2
    _draw_ceilings(axes, ceilings, low, high)
    longest = max(point.rate.milliseconds for point in points)
    for number, point in enumerate(points):
        colour, shape = STYLES[point.group]
        place = point.rate.intensity, point.rate.gflops
        size = SMALLEST + (LARGEST - SMALLEST) * (point.rate.milliseconds / longest) ** 0.5
        (mark,) = axes.plot(*place, shape, color=colour, markersize=size, alpha=0.6, mew=0.5)
        mark.set_gid(_mark(number))
        if point.group == "operator":
            axes.annotate(point.name, place, xytext=(6, 4), textcoords="offset points")
    for group, (colour, shape) in STYLES.items():
        axes.plot([], [], shape, color=colour, label=f"{group}s")
    axes.set(xscale="log", yscale="log", xlim=(low, high), title=title)
    axes.set(xlabel="operations per byte", ylabel="GFLOP/s (a mark's area goes with its time)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _draw_ceilings(axes: Axes, ceilings: Ceilings, low: float, high: float) -> None:
    ends = np.geomspace(low, high, 200)
    for memory in ceilings.memories:
        axes.plot(ends, np.minimum(ends * memory.bandwidth, ceilings.compute), color="black", linewidth=1)
        axes.annotate(
            f"{memory.name} {memory.bandwidth:.3g} GB/s", (low, low * memory.bandwidth), xytext=(4, 4),
            textcoords="offset points", fontsize="small",
        )  # fmt: skip
    axes.annotate(
        f"matrix product {ceilings.compute:.3g} GFLOP/s", (high, ceilings.compute), xytext=(-4, 4),
        textcoords="offset points", ha="right", fontsize="small",
    )  # fmt: skip
