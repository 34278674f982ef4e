"""refinedet.inference.video: reading, annotating and writing videos."""

import io
import os
import subprocess
import sys
import types
import warnings
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.paths import ROOT
from support.synthetic import FixedNetwork
from support.videos import FOURCC, HEIGHT, WIDTH, make_video

from refinedet.commands.inputs import find_inputs, plan_outputs
from refinedet.errors import DataError, InputError
from refinedet.inference import video
from refinedet.inference.detector import Detector
from refinedet.inference.draw import color_of
from refinedet.inference.video import detect_video, is_video
from refinedet.protocols import Protocol, Scale


def fixed_detector() -> Detector:
    return Detector(FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.9]))


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    fps = capture.get(cv2.CAP_PROP_FPS)
    frames = []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return frames, fps


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_round_trip(tmp_path, suffix):
    source = make_video(tmp_path / f"in{suffix}")
    seen = []
    fixed = fixed_detector()
    result = detect_video(
        fixed, source, tmp_path / "new" / "out.mp4", batch_size=5, on_frame=lambda *frame: seen.append(frame)
    )
    assert (result.frames, result.damaged) == (12, False)
    assert result.info == video.VideoInfo(HEIGHT, WIDTH, 10.0, 12)
    assert [len(blob) for blob in fixed.network.inputs] == [5, 5, 2]
    assert [index for index, _ in seen] == list(range(12))
    assert all(found.names == ["disc"] for _, found in seen)
    assert seen[0][1].boxes[0].tolist() == pytest.approx([32, 18, 96, 54], abs=1e-3)
    frames, fps = read_video(result.output)
    assert len(frames) == 12
    assert fps == 10.0
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    for index, frame in enumerate(frames):  # the compression of mp4 is lossy
        assert abs(frame[HEIGHT // 2, WIDTH // 2].astype(float) - 20 * index).max() < 12
        edge = frame[24:50, 32].astype(float).mean(0)
        assert np.abs(edge - color_of(1)).max() < 90
        assert edge[2] - edge[1] > 60
    assert list(result.output.parent.iterdir()) == [result.output]


def test_progress_shows_the_scales_of_a_protocol(tmp_path, monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr(video, "SHORT", 0)
    protocol = Protocol("mine", (Scale(flipped=True), Scale()))
    source = make_video(tmp_path / "in.avi", frames=3)
    detect_video(fixed_detector(), source, tmp_path / "out.mp4", protocol=protocol, progress=True)
    assert "scale 1 of 2, 64x128" in stderr.getvalue()
    assert "scale 2 of 2, 64x128" in stderr.getvalue()


@pytest.mark.parametrize("options", [{"score_threshold": 2.0}, {"batch_size": 0}])
def test_options_out_of_range_are_told_before_the_video_is_read(tmp_path, options):
    with pytest.raises(InputError, match=r"score_threshold is 2\.0; give a value|batch_size is 0; give at"):
        detect_video(fixed_detector(), tmp_path / "absent.avi", tmp_path / "out.mp4", **options)


def test_odd_sides_lose_their_last_row_and_column(tmp_path):
    source = tmp_path / "odd.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"FFV1"), 5, (101, 75))
    for _ in range(3):
        writer.write(np.zeros((75, 101, 3), np.uint8))
    writer.release()
    seen = []
    result = detect_video(
        fixed_detector(), source, tmp_path / "out.mp4", on_frame=lambda _, found: seen.append(found.size)
    )
    frames, _ = read_video(result.output)
    assert len(frames) == 3
    assert [size - size % 2 for size in seen[0]] == list(frames[0].shape[:2])


def test_frames_of_another_size_are_brought_to_that_of_the_first():
    class Capture:
        def __init__(self) -> None:
            self.frames = [np.zeros((10, 20, 3), np.uint8), np.zeros((30, 40, 3), np.uint8)]

        def read(self):
            return (True, self.frames.pop(0)) if self.frames else (False, None)

    capture = Capture()
    first = capture.read()[1]
    assert [frame.shape for frame in video._frames(capture, first)] == [(10, 20, 3), (10, 20, 3)]


def test_a_video_that_breaks_off_is_written_as_far_as_it_goes(tmp_path):
    source = make_video(tmp_path / "whole.avi", frames=40)
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    end = content.rindex(b"idx1")
    content[middle:end] = bytes(end - middle)  # the index still promises all frames
    source.write_bytes(content)
    result = detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    assert result.damaged
    assert result.info.frames == 40
    assert 0 < result.frames < 30
    assert len(read_video(result.output)[0]) == result.frames


def unreadable_videos(folder: Path) -> dict[str, Path]:
    whole = make_video(folder / "whole.mp4").read_bytes()
    make_video(folder / "frameless.avi", frames=0)
    files = {"zero.mp4": b"", "junk.mp4": b"junk" * 100, "cut.mp4": whole[: len(whole) // 2], "text.avi": b"a text\n"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*files, "frameless.avi", "absent.mp4"]}


@pytest.mark.parametrize("name", ["zero.mp4", "junk.mp4", "cut.mp4", "text.avi", "frameless.avi", "absent.mp4"])
def test_a_file_without_frames_is_an_error_before_any_work(tmp_path, name):
    path = unreadable_videos(tmp_path)[name]
    fixed = fixed_detector()
    with pytest.raises(DataError, match=f"{name}: .*(convert|check the path)"):
        detect_video(fixed, path, tmp_path / "results" / "out.mp4")
    assert fixed.network.inputs == []
    assert not (tmp_path / "results").exists()


def test_a_failure_leaves_the_previous_output(tmp_path):
    source = make_video(tmp_path / "in.mp4")
    output = tmp_path / "out.mp4"
    output.write_bytes(b"previous")

    def fail(index, detections):
        if index == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect_video(fixed_detector(), source, output, batch_size=2, on_frame=fail)
    assert output.read_bytes() == b"previous"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_an_output_that_was_not_written_whole_is_an_error(tmp_path, monkeypatch):
    class FullDisk:
        """As cv2.VideoWriter on a full disk: no word, no frames."""

        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, *arguments) -> None:
            pass

        def isOpened(self) -> bool:
            return True

        def write(self, frame) -> None:
            pass

        release = isOpened

    source = make_video(tmp_path / "in.mp4")
    monkeypatch.setattr(video.cv2, "VideoWriter", FullDisk)
    with pytest.raises(DataError, match=r"out\.mp4.*disk full"):
        detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def make_gif(path: Path, frames: int, size: tuple[int, int] = (64, 48)) -> Path:
    pictures = [Image.new("RGB", size, (40 * index, 0, 0)) for index in range(frames)]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:])
    return path


@pytest.mark.parametrize(
    ("suffix", "fps", "written"),
    [(".avi", 66.667, 66.67), (".avi", 120.123, 120.12), (".avi", 211.222, 211.22), (".nut", 100000, 65535)],
)
def test_a_rate_that_mpeg_4_does_not_have_is_rounded_and_said(tmp_path, suffix, fps, written):
    source = make_video(tmp_path / f"fast{suffix}", frames=4, fps=fps)
    said = rf"fast\{suffix}: MPEG-4 has no {fps} frames per second; written with {written}"
    with pytest.warns(UserWarning, match=said):
        result = detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    assert (result.frames, result.damaged) == (4, False)
    assert result.info.fps == pytest.approx(fps, abs=1e-3)
    frames, read = read_video(result.output)
    assert len(frames) == 4
    assert read == pytest.approx(written, rel=1e-4)


@pytest.mark.parametrize("fps", [0.5, 1000 / 1001, 24000 / 1001, 25, 30000 / 1001, 59.94, 60000 / 1001, 1000])
def test_other_rates_are_kept_without_a_word(tmp_path, fps):
    source = make_video(tmp_path / "in.avi", frames=3, fps=fps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    assert read_video(result.output)[1] == pytest.approx(fps, abs=1.1e-3)


def test_every_rate_can_be_written(tmp_path):
    fourcc = cv2.VideoWriter.fourcc(*video.CODEC)
    rates = [*np.random.default_rng(0).uniform(0, 300, 60), *10.0 ** np.arange(-9, 12)]
    for fps in rates:
        rate = video._mp4_rate(fps)
        assert rate == pytest.approx(min(max(fps, 0.01), 65535), abs=0.0051 if fps < 600 else 0.51)
        writer = cv2.VideoWriter(str(tmp_path / "out.mp4"), fourcc, rate, (16, 16))
        assert writer.isOpened(), (fps, rate)
        writer.release()


class ToldCapture:
    """As cv2.VideoCapture, but for what it is told to tell; a class of OpenCV's cannot be inherited from."""

    told: dict[int, float] = {}  # noqa: RUF012

    def __init__(self, *arguments: str) -> None:
        self.capture = cv2.VideoCapture(*arguments)

    def __getattr__(self, name: str) -> object:
        return getattr(self.capture, name)

    def get(self, property: int) -> float:
        return self.told.get(property, self.capture.get(property))


@pytest.mark.parametrize("told", [0.0, -1.0, float("nan"), float("inf"), -192153584101141.0])
def test_a_container_that_does_not_tell(tmp_path, monkeypatch, told):
    source = make_video(tmp_path / "in.avi", frames=3)
    monkeypatch.setattr(ToldCapture, "told", {cv2.CAP_PROP_FPS: told, cv2.CAP_PROP_FRAME_COUNT: told})
    monkeypatch.setattr(video, "cv2", types.SimpleNamespace(**{**vars(cv2), "VideoCapture": ToldCapture}))
    result = detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    assert result.info == video.VideoInfo(HEIGHT, WIDTH, video.DEFAULT_FPS, 0)
    assert (result.frames, result.damaged) == (3, False)


@pytest.mark.parametrize(
    ("size", "written"),
    [
        ((8192, 16), (8190, 16)),
        ((16, 9000), (14, 8190)),
        ((20000, 10), (8190, 4)),
        ((1, 48), (2, 48)),
        ((48, 1), (48, 2)),
        ((1, 1), (2, 2)),
    ],
)
def test_a_size_that_mpeg_4_does_not_have_is_scaled_and_said(tmp_path, size, written):
    source = make_gif(tmp_path / "in.gif", 3, size)
    seen = []
    with pytest.warns(UserWarning, match=rf"in\.gif: MPEG-4 has no frames of {size[0]}x{size[1]} pixels; scaled to "):
        result = detect_video(
            fixed_detector(), source, tmp_path / "out.mp4", on_frame=lambda _, found: seen.append(found.size)
        )
    assert seen == [size[::-1]] * 3  # found in the frames as they are
    frames, _ = read_video(result.output)
    assert [frame.shape for frame in frames] == [(written[1], written[0], 3)] * 3


def test_the_largest_size_is_written_as_it_is(tmp_path):
    source = make_gif(tmp_path / "in.gif", 3, (8190, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    assert read_video(result.output)[0][0].shape == (16, 8190, 3)


def test_frames_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    source = make_video(tmp_path / "in.mp4", frames=3)
    monkeypatch.setenv("REFINEDET_MAX_PIXELS", str(WIDTH * HEIGHT - 1))
    said = rf"in\.mp4: frames of {WIDTH}x{HEIGHT} pixels are more than {WIDTH * HEIGHT - 1}; .*REFINEDET_MAX_PIXELS"
    with pytest.raises(DataError, match=said):
        detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    monkeypatch.setenv("REFINEDET_MAX_PIXELS", str(WIDTH * HEIGHT))
    assert detect_video(fixed_detector(), source, tmp_path / "out.mp4").frames == 3


def test_a_phone_held_upright(tmp_path):
    """The container says that the frames are to be turned."""
    source = make_video(tmp_path / "in.mp4", frames=3)
    content = bytearray(source.read_bytes())
    matrix = content.index(b"tkhd") + 44
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30], ">i4")
    content[matrix : matrix + 36] = turned.tobytes()
    source.write_bytes(content)
    result = detect_video(fixed_detector(), source, tmp_path / "out.mp4")
    assert (result.info.height, result.info.width) == (WIDTH, HEIGHT)
    assert read_video(result.output)[0][0].shape == (WIDTH, HEIGHT, 3)


CONTAINERS = sorted(FOURCC)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_content_makes_a_video(tmp_path, suffix):
    source = make_video(tmp_path / f"in{suffix}", frames=6, size=(64, 48))
    nameless = source if suffix == ".mjpeg" else source.rename(tmp_path / "video")
    assert is_video(nameless)
    result = detect_video(fixed_detector(), nameless, tmp_path / "out.mp4")
    assert (result.frames, result.damaged) == (6, False)
    assert len(read_video(result.output)[0]) == 6


def test_a_gif_that_moves_is_a_video(tmp_path):
    assert is_video(make_gif(tmp_path / "moving.gif", 5))
    assert detect_video(fixed_detector(), tmp_path / "moving.gif", tmp_path / "out.mp4").frames == 5
    assert not is_video(make_gif(tmp_path / "still.gif", 1))


def make_other_files(folder: Path) -> None:
    """What lies beside videos and is none."""
    for name in ("a.txt", "b.json", "c.xml", "d.ts", "e.mts", "f.md", "README"):
        (folder / name).write_text("BMW, P6 and GIF are words\n" * 100)
    (folder / "empty").touch()
    (folder / "zeros.bin").write_bytes(bytes(10_000))
    (folder / "random.bin").write_bytes(np.random.default_rng(0).bytes(100_000))
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "song.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))
    (folder / "song.ogg").write_bytes(b"OggS" + bytes(100))
    make_video(folder / ".hidden.mp4", frames=2)
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16_000))


def test_a_folder_gives_its_images_and_videos_by_their_content(tmp_path):
    make_other_files(tmp_path)
    with pytest.raises(DataError, match="no image or video directly in this folder"):
        find_inputs([str(tmp_path)])
    make_video(tmp_path / "1.flv", frames=3)
    make_video(tmp_path / "2.mp4", frames=3).rename(tmp_path / "2")
    make_video(tmp_path / "3.ts", frames=6)
    make_gif(tmp_path / "4.gif", 3)
    make_gif(tmp_path / "5.gif", 1)
    (tmp_path / "6.mp4").write_bytes(b"damaged, and told as a video that is")
    cv2.imwrite(str(tmp_path / "7.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "7.png").rename(tmp_path / "7.mov")  # an image, whatever its name
    (tmp_path / "8.jpg").write_bytes(b"damaged, and told as an image that is")
    images, videos = find_inputs([str(tmp_path)])
    assert [path.name for path in images] == ["5.gif", "7.mov", "8.jpg"]
    assert [path.name for path in videos] == ["1.flv", "2", "3.ts", "4.gif", "6.mp4"]
    planned = plan_outputs([*images, *videos], tmp_path / "out")
    assert [path.suffix for path in planned.values()] == [".png", ".png", ".jpg", *[".mp4"] * 5]


@pytest.mark.parametrize("name", ["a.txt", "random.bin", "sound.wav", "photo.jpg"])
def test_what_is_no_video_is_refused(tmp_path, name):
    """FFmpeg opens a text file as a video, and a picture as one of one frame."""
    make_other_files(tmp_path)
    Image.new("RGB", (20, 10)).save(tmp_path / "photo.jpg")
    with pytest.raises(DataError, match=rf"{name}: not a video"):
        detect_video(fixed_detector(), tmp_path / name, tmp_path / "out.mp4")


def test_the_command_shows_no_lines_of_opencv(tmp_path):
    """Damage of every kind, and each is told once: by us."""
    good = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    (tmp_path / "damaged.png").write_bytes(good[:1000] + bytes(20) + good[1020:])
    (tmp_path / "cut.tif").write_bytes(cv2.imencode(".tif", np.zeros((64, 64, 3), np.uint8))[1].tobytes()[:90])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "junk.mp4").write_bytes(make_video(tmp_path / "whole.mp4", frames=2).read_bytes()[:500])
    make_video(tmp_path / "fast.avi", frames=2, fps=66.667)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV")}
    command = [sys.executable, "-m", "refinedet", "detect", "bccd", str(tmp_path), "--out"]
    command += [str(tmp_path / "out"), "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert all(line.startswith("refinedet: ") for line in lines), done.stderr
    assert sum("error: " in line for line in lines) == 4
    assert sum("66.667 frames per second" in line for line in lines) == 1
