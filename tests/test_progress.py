"""Progress is a bar at a terminal and lines in a log; it never ends the work that it shows."""

import io
import sys

import pytest

from refinedet import progress
from refinedet.progress import INTERVAL, busy, quiet, show_progress, track, write


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: ``clock[0]`` is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log(capsys):
    """Calling it gives the lines on stderr since the last call."""
    return lambda: capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_every_half_minute(clock, log):
    with show_progress("training", "step", 1000, done=100) as shown:
        for _ in range(100):
            clock[0] += 1.0
            shown.set_postfix_str("loss 3.250", refresh=False)
            shown.update()
    assert log() == [
        f"training: {100 + seconds} of 1000 steps ({10 + seconds / 10:.0f} %), loss 3.250, 1 steps/s, "
        f"{passed} passed, {left} left"
        for seconds, passed, left in (
            (2, "00:02", "14:58"),
            (32, "00:32", "14:28"),
            (62, "01:02", "13:58"),
            (92, "01:32", "13:28"),
            (100, "01:40", "13:20"),
        )
    ]
    assert INTERVAL == 30.0


def test_lines_are_few_however_many_units_there_are(clock, capsys):
    with show_progress("training", "step", 10**6) as shown:
        for _ in range(10_000):
            clock[0] += 0.01
            shown.update()
    written = capsys.readouterr().err
    assert written.count("\n") == 5  # at 2, 32, 62 and 92 seconds and at the end
    assert "\r" not in written


def test_the_last_line_says_that_all_is_done(clock, log):
    with show_progress("evaluating", "image", 8) as shown:
        clock[0] += 1.0
        shown.update(8)
    assert log() == ["evaluating: 8 of 8 images (100 %), 8 images/s, 00:01 passed"]


@pytest.mark.parametrize("total", [None, 0])
def test_work_of_unknown_length(total, clock, log):
    with show_progress("a.mp4", "frame", total) as shown:
        clock[0] += 4.0
        shown.update(8)
    assert log() == ["a.mp4: 8 frames, 2 frames/s, 00:04 passed"]


def test_no_division_by_a_clock_that_stands_still(clock, log, monkeypatch):
    monkeypatch.setattr(progress, "SHORT", 0.0)
    with show_progress("x", "y", 5) as shown:
        shown.update(0)
        shown.update(1)
    assert len(log()) == 2


def test_short_work_shows_nothing(clock, log):
    with show_progress("detecting", "image", 3, delay=2.0) as shown:
        shown.update(3)
    assert list(track(["a", "b"], "reading")) == ["a", "b"]
    assert log() == []


def test_long_reading_shows_lines_and_leaves_nothing(clock, log):
    items = track(range(50), "reading images", "image")
    for _ in items:
        clock[0] += 1.0
    assert [line.split(",")[0] for line in log()] == [
        "reading images: 2 of 50 images (4 %)",
        "reading images: 32 of 50 images (64 %)",
    ]


def test_work_without_a_count_is_announced(log):
    with busy("measuring average precision"):
        assert log() == ["measuring average precision ..."]


@pytest.mark.parametrize("notebook", [False, True])
def test_a_terminal_and_a_notebook_get_a_bar(notebook, monkeypatch):
    stream = io.StringIO() if notebook else Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    if not notebook:
        monkeypatch.delitem(sys.modules, "ipykernel")
    with show_progress("training", "step", 2) as shown:
        shown.update(2)
        write("step 2: mean AP 0.5000")
    with busy("measuring"):
        pass
    shown = stream.getvalue()
    assert "2/2" in shown
    assert "\r" in shown
    assert "\rstep 2: mean AP 0.5000\n" in shown  # in a line of its own
    assert "done" in shown


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_shows_nothing(stream, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())

    def work(**options):
        with show_progress("training", "step", 2, **options) as shown, busy("measuring", **options):
            clock[0] += 60.0
            shown.update(2)

    with quiet(), quiet(False):
        work()
        list(track([1, 2], "reading"))
    work(shown=False)
    assert sys.stderr.getvalue() == ""
    with quiet(False):
        work()
    assert sys.stderr.getvalue() != ""


class Broken(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["full", "closed", "absent"])
def test_a_log_that_takes_nothing_more_ends_no_work(broken, clock, monkeypatch):
    stream = {"full": Broken(), "closed": io.StringIO(), "absent": None}[broken]
    if broken == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress("training", "step", 2) as shown:
        clock[0] += 60.0
        shown.update(2)
    if broken != "absent":
        write("step 2: mean AP 0.5000")


def test_a_stream_of_ones_own_needs_only_write(clock, monkeypatch):
    class Logger:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stderr", Logger())
    with show_progress("training", "step", 2) as shown:
        clock[0] += 60.0
        shown.update(2)
    assert sys.stderr.text.startswith("training: 2 of 2 steps")
