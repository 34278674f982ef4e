"""The picture of an evaluation: precision-recall curves and average precision per class."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refinedet.errors import InputError, printable
from refinedet.evaluation.voc_ap import ClassResult
from refinedet.files import atomic_write

FIGURE_WIDTH = 12.0  # inches
BAR_HEIGHT = 0.22  # inches per class, enough for a line of text
MOST_OF_A_NAME, MOST_OF_A_TITLE = 40, 120  # letters
MOST_DISTINCT_COLOURS = 10  # beyond it neighbouring ranks share a hue and the bars' order tells classes apart


def plot_precision_recall(
    path: str | os.PathLike[str],
    names: Sequence[str],
    results: Sequence[ClassResult],
    ap: Sequence[float],
    *,
    title: str = "",
    curves_label: str = "",
) -> None:
    """Write the precision-recall curve of every class (left) and its AP as a bar (right) to one image.

    ``ap[i]`` belongs to ``names[i]`` and ``results[i]`` (it may differ from ``results[i].ap``: COCO's AP averages over
    IoU thresholds; ``curves_label`` says what the curves are). Bars are sorted, best on top, in the colour of the
    class's curve: they are the legend. A class whose AP is NaN (no ground truth) is left out. The format follows the
    suffix of ``path``; written atomically.
    """
    if not len(names) == len(results) == len(ap):
        raise InputError(
            f"{len(names)} names, {len(results)} results and {len(ap)} AP values; give one of each per class"
        )
    order = sorted((i for i in range(len(names)) if not np.isnan(ap[i])), key=lambda i: -ap[i])
    height = max(5.0, 1.5 + BAR_HEIGHT * len(order))
    with _plain_text(), atomic_write(path) as temporary:
        figure = Figure(figsize=(FIGURE_WIDTH, height), layout="constrained")
        curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
        colours = _colours(len(order))
        for colour, i in zip(colours, order, strict=True):
            curves.plot(*curve_points(results[i]), color=colour, linewidth=1.5)
        _dress_curves(curves, curves_label)
        _draw_bars(bars, [_label(names[i], MOST_OF_A_NAME) for i in order], [ap[i] for i in order], colours)
        if title:
            figure.suptitle(_label(title, MOST_OF_A_TITLE))
        figure.savefig(temporary, dpi=110)


def curve_points(result: ClassResult) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of the curve, thinned to what can be seen: the points where recall rises, and the end.

    Starts at recall 0 with the precision of its first point. Empty without detections.
    """
    if not len(result.recall):
        return np.empty(0), np.empty(0)
    keep = np.diff(result.recall, prepend=0.0) > 0
    keep[-1] = True
    recall, precision = result.recall[keep], result.precision[keep]
    return np.insert(recall, 0, 0.0), np.insert(precision, 0, precision[0])


@contextmanager
def _plain_text() -> Iterator[None]:
    """Names are shown as they are, whatever the user's matplotlibrc says: matplotlib sets what stands between two $ as
    maths, or everything by LaTeX. A letter that its font lacks becomes a box, without a warning."""
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield


def _label(text: str, most: int) -> str:
    """``text`` in one line that leaves room for the curves."""
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    if count <= MOST_DISTINCT_COLOURS:
        return [matplotlib.colormaps["tab10"](i) for i in range(count)]
    return [matplotlib.colormaps["turbo"](i / (count - 1)) for i in range(count)]


def _dress_curves(axes: Axes, label: str) -> None:
    title = f"precision over recall{f' ({label})' if label else ''}"
    axes.set(xlabel="recall", ylabel="precision", xlim=(0.0, 1.0), ylim=(0.0, 1.02), title=title)
    axes.grid(alpha=0.3)


def _draw_bars(axes: Axes, names: list[str], ap: list[float], colours: list[tuple[float, float, float, float]]) -> None:
    rows = range(len(names))
    axes.barh(rows, ap, color=colours)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set(xlim=(0.0, 1.12), xticks=np.linspace(0.0, 1.0, 6), title="average precision per class")
    for row, value in zip(rows, ap, strict=True):
        axes.text(value + 0.01, row, f"{value:.3f}", va="center", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
