#!/usr/bin/env bash
# 2026-11-28, opencv-python-headless 5.0.0.93, numpy 2.4.6.
#
# The list of images of a split, two hundred lines such as VOC has them, opened as a video.
# Likely guess: cv2.VideoCapture(file).isOpened() tells a video from any other file.
# Seen: called .txt it is opened and gives frames of 640 by 400 at 25 a second, pictures of its letters: FFmpeg has a
# demuxer for the art of terminals, which takes texts of some length and this suffix. Called .md it is not opened. A
# program that takes every file which OpenCV opens for a video finds videos among the labels of a data set.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: opencv-python-headless==5.0.0.93 numpy==2.4.6
cat > open.py <<'PYTHON'
import cv2

for name in ("train.txt", "train.md"):
    with open(name, "w") as file:
        file.write("".join(f"{number:06d}\n" for number in range(200)))
    video = cv2.VideoCapture(name)
    opened, (read, frame) = video.isOpened(), video.read()
    print(f"{name}: opened {opened}, frame {frame.shape if read else None}, {video.get(cv2.CAP_PROP_FPS):.0f} a second")
PYTHON
venv/bin/python open.py 2> messages | tee output
diff output - <<'EXPECTED'
train.txt: opened True, frame (400, 640, 3), 25 a second
train.md: opened False, frame None, -1 a second
EXPECTED
