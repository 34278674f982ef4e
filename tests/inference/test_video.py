"""refinedet.inference.video: reading, annotating and writing videos."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from support.synthetic import FixedNetwork
from support.videos import HEIGHT, WIDTH, make_video

from refinedet.errors import DataError
from refinedet.inference import video
from refinedet.inference.detector import Detector
from refinedet.inference.draw import color_of
from refinedet.inference.video import detect_video


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
