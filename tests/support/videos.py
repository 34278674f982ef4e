"""Small videos for the tests."""

from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 72, 128
FOURCC = {
    **dict.fromkeys((".mp4", ".mov", ".m4v", ".3gp"), "mp4v"),
    **dict.fromkeys((".avi", ".mkv", ".asf", ".mjpeg"), "MJPG"),
    **dict.fromkeys((".ts", ".mts", ".m2ts", ".mpg"), "mpg2"),
    **dict.fromkeys((".webm", ".ogv"), "VP80"),
    **{".wmv": "WMV2", ".flv": "FLV1", ".nut": "FFV1", ".y4m": "I420"},
}  # by container: a codec that the wheels of OpenCV write


def make_video(path: Path, frames: int = 12, fps: float = 10.0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*FOURCC[path.suffix]), fps, size)
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * index % 256, np.uint8))
    writer.release()
    return path
