"""``tools/draw_training.py``: what it reads from a run's log, and that it draws."""

import json
import runpy
import subprocess
import sys

from matplotlib.figure import Figure
from support.commands import TIMEOUT
from support.paths import ROOT

TOOL = ROOT / "tools" / "draw_training.py"


def write_log(folder, lines):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_steps_repeated_after_a_resume_count_once(tmp_path):
    tool = runpy.run_path(str(TOOL))
    steps = [{"group": "train", "step": step, "total": 1.0} for step in range(10, 101, 10)]
    again = [{"group": "train", "step": step, "total": 3.0} for step in range(60, 101, 10)]
    measured = {"group": "test", "step": 100, "mean_ap": 0.5}
    log = tool["read_log"](write_log(tmp_path / "run", [*steps, *again, measured]))
    assert len(log) == 11
    assert tool["losses"](log) == ([50, 100], [1.0, 3.0])


def test_it_draws_runs_with_and_without_measurements(tmp_path):
    line = {"group": "train", "step": 10, "total": 1.0}
    runs = [
        write_log(tmp_path / "a", [line, {"group": "test", "step": 10, "mean_ap": 0.5}]),
        write_log(tmp_path / "b", [line]),
    ]
    arguments = [sys.executable, TOOL, tmp_path / "out.png", *(f"{run.name}={run}" for run in runs)]
    subprocess.run(list(map(str, arguments)), check=True, timeout=TIMEOUT)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_name_have_one_colour_and_one_place_in_the_legend(tmp_path, monkeypatch):
    line = {"group": "train", "step": 10, "total": 1.0}
    measured = {"group": "test", "step": 10, "mean_ap": 0.5}
    runs = [write_log(tmp_path / name, [line, measured]) for name in ("a0", "a1", "b0")]
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    runpy.run_path(str(TOOL))["main"]("out.png", [f"{run.name[0]}={run}" for run in runs])
    loss, precision = drawn[0].axes
    for axes in (loss, precision):
        assert [line.get_color() for line in axes.lines] == ["C0", "C0", "C1"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["a", "b"]
