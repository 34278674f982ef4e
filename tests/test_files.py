"""Files that are whole or absent, whatever they are called."""

import os
from pathlib import Path

import pytest

from refinedet.files import atomic_write, utf8_path, write_text

NOT_UTF8 = os.fsdecode(b"bad\xff.mp4")


@pytest.mark.parametrize(
    "name",
    ["x" * 255, "x" * 250 + ".json", "ü" * 125 + ".json", f"a.{'s' * 253}", NOT_UTF8, "line\nend.json"],
    ids=["no suffix", "suffix", "two bytes a letter", "long suffix", "not UTF-8", "line end"],
)
def test_any_name_that_a_file_may_have(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "text"


@pytest.mark.parametrize("name", ["evaluation.png", "x" * 250 + ".png", NOT_UTF8])
def test_the_temporary_file_keeps_the_format_and_is_no_longer(tmp_path, name):
    with atomic_write(tmp_path / name) as temporary:
        assert temporary.suffix == Path(name).suffix
        assert len(os.fsencode(temporary.name)) <= max(len(os.fsencode(name)), 100 + 10)


def test_a_name_that_is_too_long_is_named_itself(tmp_path):
    target = tmp_path / ("x" * 256)
    with pytest.raises(OSError, match="File name too long") as caught:
        write_text(target, "text")
    assert caught.value.filename == str(target)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / "found.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path / "found.json", "text")
    assert caught.value.filename == str(tmp_path / "found.json")
    assert os.listdir(tmp_path) == ["found.json"]


def test_a_path_in_utf8(tmp_path):
    good, bad = tmp_path / "good.mp4", tmp_path / NOT_UTF8
    bad.write_text("content")
    with utf8_path(good) as name:
        assert name == str(good)
    with utf8_path(bad) as name:
        assert Path(name).read_text() == "content"
        assert name.encode("utf-8").endswith(b".mp4")
        Path(name).write_text("other content")
    assert bad.read_text() == "other content"
    assert not os.path.lexists(name)
