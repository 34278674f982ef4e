"""docs/growth.md and its pictures, from the numbers that `growth.py` has measured."""

import json
import math
from pathlib import Path
from typing import Any

from growth_curves import AXES, CURVES, HELD, READS, Curve
from matplotlib.figure import Figure

from refinedet.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "growth.md"
PICTURES = {name: ROOT / "docs" / "images" / f"growth_{name}.png" for name in ("time", "memory")}
LAST = 3  # points that the exponent is of
TOLERANCE = 0.25  # of an exponent: a sort adds 0.09, leaving a cache behind about as much
NOISE = 1 << 20  # bytes: what is below has no exponent
FIELDS = {"time": "seconds", "memory": "bytes"}

ABOUT = """\
# How the operators grow

Made by `python benchmarks/growth.py`, which measures in some minutes; a test compares this page with the numbers in
`benchmarks/results/growth/cpu.json`. Times are of one machine and its load: what counts is the slope.

| | |
| --- | --- |
{facts}

One thread; CPU time, the median of several calls; memory is what the largest resident size of a fresh process grows by
in one call, results included. Where an axis does not grow there are {held}.

![CPU time](images/growth_time.png)

![memory](images/growth_memory.png)

The exponent is the slope in these pictures, by least squares over the last {last} points: 1 is linear. "May be" is what
the algorithm has at worst, with the reason; {tolerance} more counts as within, for sorts and for caches that become too
small. Memory may be linear everywhere; where it stays below 1 MiB no exponent is told. "Largest" is the last point: one
whose call would take more than some seconds, were it quadratic, is left out.

`{reads}` is no operator but a yardstick: torch alone reads the numbers that `detect` has to read,
some 150 KB of each image here and there, into memory that it has. Where that is steeper than linear, the images
together no longer fit into the processor's caches, and `detect` by batch is steeper for the same reason: it waits for
memory, and works no more. So its exponent depends on how much of the caches other work takes: nine runs on one
shared machine gave 0.95 to 1.45.

"""


def exponent(points: list[dict[str, float]], axis: str, field: str) -> float | None:
    """The slope of the logarithms over the last points; None where too little was measured."""
    last = [(math.log(point[axis]), math.log(point[field])) for point in points[-LAST:] if point.get(field)]
    if len(last) < LAST or (field == "bytes" and points[-1]["bytes"] < NOISE):
        return None
    mean_x, mean_y = (sum(column) / len(last) for column in zip(*last, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in last) / sum((x - mean_x) ** 2 for x, _ in last)


def rows(found: dict[str, Any]) -> list[list[str]]:
    """A row for each curve that was measured."""
    curves = {(curve.operator, curve.axis): curve for curve in CURVES}
    return [_row(curves[each["operator"], each["axis"]], each["points"]) for each in found["curves"]]


def _row(curve: Curve, points: list[dict[str, float]]) -> list[str]:
    time, memory = (exponent(points, curve.axis, FIELDS[name]) for name in FIELDS)
    last = points[-1]
    within = (time is None or time <= curve.power + TOLERANCE) and (memory is None or memory <= 1 + TOLERANCE)
    return [
        curve.operator,
        curve.axis,
        f"{last[curve.axis]:,}",
        _seconds(last["seconds"]) if "seconds" in last else "-",
        _number(time),
        f"{curve.power:g}",
        f"{last['bytes'] / 2**20:.1f} MiB",
        _number(memory),
        "yes" if within else "NO",
        curve.why,
    ]


HEADER = ["operator", "axis", "largest", "time", "exponent", "may be", "memory", "exponent", "within", "because"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms"


def table(found: dict[str, Any]) -> str:
    cells = [HEADER, *rows(found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def as_json(found: dict[str, Any]) -> str:
    """A point on a line."""
    curves = []
    for each in found["curves"]:
        points = ",\n".join(f"   {json.dumps(_rounded(point))}" for point in each["points"])
        names = f'"operator": {json.dumps(each["operator"])}, "axis": {json.dumps(each["axis"])}'
        curves.append(f'  {{{names}, "points": [\n{points}\n  ]}}')
    return f'{{"machine": {json.dumps(found["machine"])},\n "curves": [\n' + ",\n".join(curves) + "\n ]}\n"


def _rounded(point: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 7) if name == "seconds" else value for name, value in point.items()}


def markdown(found: dict[str, Any]) -> str:
    facts = "\n".join(f"| {name} | {value} |" for name, value in found["machine"].items())
    held = ", ".join(f"{value:,} {'image' if name == 'batch' else name}" for name, value in HELD.items())
    lines = [HEADER, ["---", "---", *["---:"] * 6, "---", "---"], *rows(found)]
    text = ABOUT.format(facts=facts, held=held, last=LAST, tolerance=TOLERANCE, reads=READS)
    return text + "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def write(found: dict[str, Any]) -> None:
    for name, path in PICTURES.items():
        with atomic_write(path) as temporary:
            _draw(found, name).savefig(temporary, dpi=100)
    with atomic_write(PAGE) as temporary:
        temporary.write_text(markdown(found))
    print(f"page: {PAGE.relative_to(ROOT)}; pictures: {', '.join(str(p.relative_to(ROOT)) for p in PICTURES.values())}")


def _draw(found: dict[str, Any], name: str) -> Figure:
    """A panel for each axis; every operator has its colour in all of them."""
    field = FIELDS[name]
    operators = list(dict.fromkeys(each["operator"] for each in found["curves"]))
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = dict(zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True))
    for each in found["curves"]:
        points = [point for point in each["points"] if point.get(field)]
        slope = exponent(each["points"], each["axis"], field)
        number = operators.index(each["operator"])
        panels[each["axis"]].plot(
            [point[each["axis"]] for point in points],
            [point[field] * (1e3 if field == "seconds" else 2.0**-20) for point in points],
            label=f"{each['operator']}: {_number(slope)}",
            color=f"C{number}",
            marker="osv^D<>pX"[number % 9],
            markersize=4,
        )
    for axis, axes in panels.items():
        axes.set(xscale="log", yscale="log", xlabel=axis)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, title="exponent", title_fontsize=7)
    next(iter(panels.values())).set_ylabel("CPU time, ms" if name == "time" else "memory, MiB")
    return figure
