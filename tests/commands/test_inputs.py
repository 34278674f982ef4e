"""What files, folders, patterns and lists on stdin stand for."""

import os
import socket
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from refinedet.commands.inputs import find_inputs, plan_outputs
from refinedet.errors import DataError, InputError


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """The working folder, with files whose content nobody reads."""
    for name in (
        "a.jpg",
        "b[1].png",
        "-c.png",
        "notes.txt",
        ".hidden.jpg",
        "deep/d.jpg",
        "deep/clip.mp4",
        "deep/deeper/e.jpg",
        "deep/.cache/f.jpg",
        "old/found/a.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str, **options) -> list[str]:
    images, videos = find_inputs(arguments, **options)
    return [str(path) for path in [*images, *videos]]


def list_on_stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("*", ["-c.png", "a.jpg", "b[1].png"]),
        ("./*.jpg", ["a.jpg"]),
        ("deep/*", ["deep/d.jpg", "deep/clip.mp4"]),
        ("**/*.jpg", ["a.jpg", "deep/d.jpg", "deep/deeper/e.jpg"]),
        ("deep/**", ["deep/d.jpg", "deep/deeper/e.jpg", "deep/clip.mp4"]),
        ("deep/.cache/*.jpg", ["deep/.cache/f.jpg"]),
        ("[ad]*/?.jpg", ["deep/d.jpg"]),
        ("b[1].png", ["b[1].png"]),  # there is a file of that name
    ],
)
def test_a_pattern_gives_the_images_and_videos_that_match(tree, pattern, expected):
    assert names(pattern) == expected
    absolute = [str(tree / name) for name in expected]
    assert names(str(tree / pattern)) == absolute


@pytest.mark.parametrize(("pattern", "words"), [("*.gif", "no image or video matches"), ("**.jpg", "write **/*.jpg")])
def test_a_pattern_without_a_match(tree, pattern, words):
    with pytest.raises(DataError) as error:
        names(pattern)
    assert words in str(error.value)
    assert str(error.value).startswith(pattern)


def test_recursive_takes_folders_below_but_neither_hidden_ones_nor_the_copies(tree):
    (tree / "deep" / "loop").symlink_to(tree)
    assert names(".", recursive=True, out=Path("old/found")) == [
        "-c.png",
        "a.jpg",
        "b[1].png",
        "deep/d.jpg",
        "deep/deeper/e.jpg",
        "deep/clip.mp4",
    ]
    assert names(".") == ["-c.png", "a.jpg", "b[1].png"]
    assert names("deep/**/*.jpg") == ["deep/d.jpg", "deep/deeper/e.jpg"]


def test_a_folder_without_images_says_where_it_looked(tree):
    (tree / "empty" / "below").mkdir(parents=True)
    with pytest.raises(DataError, match="directly in this folder; --recursive looks below it"):
        names("empty")
    with pytest.raises(DataError, match="in or below this folder"):
        names("empty", recursive=True)


@pytest.mark.parametrize(
    "content", [b"a.jpg\ndeep\n", b"a.jpg\r\n\r\ndeep", b"a.jpg\0deep\0"], ids=["lines", "windows", "print0"]
)
def test_a_list_on_stdin(tree, monkeypatch, content):
    list_on_stdin(monkeypatch, content)
    assert names("-") == ["a.jpg", "deep/d.jpg", "deep/clip.mp4"]


def test_a_list_with_a_name_that_is_not_utf8_and_one_with_a_line_end(tree, monkeypatch):
    odd = [os.fsdecode(b"\xff.jpg"), "x\ny.jpg"]
    for name in odd:
        (tree / name).write_bytes(b"content")
    list_on_stdin(monkeypatch, os.fsencode("\0".join(odd)))
    assert names("-") == odd


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lists no file"),
        (b"\n\n", "lists no file"),
        (b"a.jpg\nabsent.jpg\n", "'absent.jpg'"),
        (b"\xff\xd8\0\1", "one path a line"),
    ],
)
def test_a_list_that_is_none(tree, monkeypatch, content, words):
    list_on_stdin(monkeypatch, content)
    with pytest.raises(DataError, match=words):
        names("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="lists no file"):
        names("-")


def test_what_is_no_file_is_refused_and_not_waited_for(tree):
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        for name in ("pipe.jpg", "socket.jpg", "/dev/zero"):
            with pytest.raises(DataError, match=f"{name}: a pipe, a device or a socket"):
                names(name)
        (tree / "loop.jpg").symlink_to("loop.jpg")
        (tree / "gone.jpg").symlink_to("nowhere")
        for name in ("loop.jpg", "gone.jpg"):
            with pytest.raises(DataError, match=f"{name}: no such file"):
                names(name)
        assert names(".") == ["-c.png", "a.jpg", "b[1].png"]  # in a folder they are passed over


def test_an_empty_text_is_not_the_folder_one_is_in(tree):
    with pytest.raises(InputError, match="empty text"):
        names("")


def test_thousands_of_one_name_are_numbered(tmp_path):
    inputs = [tmp_path / f"{index}" / "frame.jpg" for index in range(3000)]
    planned = [path.name for path in plan_outputs(inputs, tmp_path / "out").values()]
    assert planned[:2] == ["frame.jpg", "frame_2.jpg"]
    assert planned[-1] == "frame_3000.jpg"


def test_names_that_some_file_system_takes_for_one_are_numbered(tmp_path):
    inputs = [
        tmp_path / name for name in ("\u00e9.jpg", "e\u0301.jpg", "STRASSE.jpg", "stra\u00dfe.jpg", "\u00e9_2.jpg")
    ]
    planned = [path.name for path in plan_outputs(inputs, tmp_path / "out").values()]
    assert planned == ["\u00e9.jpg", "e\u0301_2.jpg", "STRASSE.jpg", "stra\u00dfe_2.jpg", "\u00e9_2_2.jpg"]
