"""The tools that compare two builds: what they tell of times and of objects."""

import compare_builds
import compare_networks
import pytest


def test_ratios_are_of_neighbouring_turns() -> None:
    """A machine that becomes slower in the middle slows both, and moves the medians of neither alone."""
    ours, other = [1.0, 1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 2.0, 6.0, 6.6]
    assert compare_builds.quartiles(ours, other) == pytest.approx([2.0, 2.0, 2.1])
    row = compare_builds.line("nms", ours, other)
    assert " ".join(row.split()) == "nms 1000000.0 us 2000000.0 us 2.00 2.00 2.10"


def test_turns_change_their_order() -> None:
    order: list[str] = []

    class Build:
        def __init__(self, name: str) -> None:
            self.name = name

        def results(self, case: str) -> list[object]:
            return []

        def seconds(self, case: str, calls: int) -> float:
            order.append(self.name)
            return 0.03 * calls

    ours, other = compare_builds.compare(Build("ours"), Build("other"), "case", rounds=3)
    assert ours == other == [0.03] * 3
    assert order[-6:] == ["ours", "other", "other", "ours", "ours", "other"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--rounds", "1"], "need at least 2"), (["--only", "absent"], "no case has absent")],
)
def test_what_cannot_be_compared_is_said(arguments: list[str], told: str, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "refinedet").mkdir()
    (tmp_path / "refinedet" / "_C.so").touch()
    monkeypatch.setattr(compare_builds, "make_cases", lambda: {"nms": {}})
    with pytest.raises(SystemExit, match="2"):
        compare_builds.main([str(tmp_path), *arguments])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("tool", [compare_builds, compare_networks])
def test_a_tree_that_is_not_compiled_is_not_compared(tool, tmp_path, capsys) -> None:
    """It would be this tree beside itself, where refinedet is installed."""
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(tmp_path)])
    assert f"{tmp_path} has no compiled refinedet/_C" in capsys.readouterr().err


def test_objects_that_moved_or_went_are_seen() -> None:
    found = [[1, 0.0, 0.0, 10.0, 10.0], [2, 5.0, 5.0, 9.0, 9.0]]
    assert compare_networks.distance(found, found[::-1]) == 0
    moved = [found[0], [2, 5.0, 5.25, 9.0, 9.0]]
    assert compare_networks.distance(found, moved) == 0.25
    assert compare_networks.distance(found, found[:1]) == compare_networks.distance(found[:1], found) == float("inf")
