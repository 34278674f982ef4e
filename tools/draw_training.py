"""Draws what trainings went through: the loss (left) and the mean average precision (right), a line for each.

    python tools/draw_training.py OUT.png NAME=RUN [NAME=RUN ...]

A RUN is the folder of a training, or its log.jsonl. Runs of one NAME, such as those of other seeds, have one colour. A
training that measured nothing has no line at the right.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STEPS = 50  # whose mean is one point of the loss: single steps hide the trend


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; those of steps that were repeated after a resume stand once, the last ones."""
    path = run / "log.jsonl" if run.is_dir() else run
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return list({(line["group"], line["step"]): line for line in lines}.values())


def losses(log: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Ends of the windows of `STEPS` steps, and the mean loss of each."""
    windows: dict[int, list[float]] = {}
    for line in log:
        if "total" in line:
            windows.setdefault((line["step"] - 1) // STEPS, []).append(line["total"])
    return [(window + 1) * STEPS for window in windows], [sum(values) / len(values) for values in windows.values()]


def main(out: str, runs: list[str]) -> None:
    """Draw ``runs``, each NAME=FOLDER, into the image ``out``."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, precision = figure.subplots(1, 2)
    colours: dict[str, str] = {}
    for name, run in (text.split("=", 1) for text in runs):
        log = read_log(Path(run))
        label = None if name in colours else name
        colour = colours.setdefault(name, f"C{len(colours)}")
        loss.plot(*losses(log), label=label, color=colour)
        measured = [(line["step"], line["mean_ap"]) for line in log if "mean_ap" in line]
        if measured:
            precision.plot(*zip(*measured, strict=True), marker="o", color=colour)
    for axes, label in ((loss, f"loss (mean of {STEPS} steps)"), (precision, "mAP@0.5")):
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    loss.legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in text for text in sys.argv[2:]):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
