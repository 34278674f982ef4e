"""Draws what trainings went through: the loss and, where one was measured, the mean average precision; a line for each.

    python tools/draw_training.py OUT.png NAME=RUN [NAME=RUN ...]

A RUN is the folder of a training, or its log.jsonl. Runs of one NAME, such as those of other seeds, have one colour. A
training that measured nothing has no line of precision.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STEPS = 50  # whose mean is one point of the loss: single steps hide the trend
LABELS = (f"loss (mean of {STEPS} steps)", "mAP@0.5")


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


def precisions(log: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Steps at which the run was measured, and the mean average precisions."""
    measured = [line for line in log if "mean_ap" in line]
    return [line["step"] for line in measured], [line["mean_ap"] for line in measured]


def main(out: str, runs: list[str]) -> None:
    """Draw ``runs``, each NAME=FOLDER, into the image ``out``."""
    logs = [(name, read_log(Path(run))) for name, run in (text.split("=", 1) for text in runs)]
    parts = [losses, precisions] if any(precisions(log)[0] for _, log in logs) else [losses]
    figure = Figure(figsize=(5.5 * len(parts), 4), layout="constrained")
    for part, axes, label in zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], LABELS, strict=False):
        colours: dict[str, str] = {}
        for name, log in logs:
            legend = None if name in colours else name
            colour = colours.setdefault(name, f"C{len(colours)}")
            axes.plot(*part(log), label=legend, color=colour, marker="o" if part is precisions else "")
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in text for text in sys.argv[2:]):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
