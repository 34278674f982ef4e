#!/usr/bin/env bash
# 2026-11-28, opencv-python-headless 5.0.0.93, pillow 13.0.0, numpy 2.4.6.
#
# White pictures as PGM, whose header says what white is (maxval): 15 or 4095, the latter that of a camera with 12 bits.
# Likely guess: a decoder that reads the header scales the samples by it, the same in the text form (P2) and the binary
# one (P5); or it scales none.
# Seen: OpenCV scales P2 to 255 and leaves P5 as it is. White comes out as 15 of 255, nearly black, and a picture of 12
# bits read in colour is divided by 256, which gives 15 again. Pillow scales all of them to the whole range.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: opencv-python-headless==5.0.0.93 \
    pillow==13.0.0 numpy==2.4.6
cat > read.py <<'PYTHON'
import cv2
from PIL import Image

PICTURES = {
    "P2, maxval 15": b"P2 3 2 15\n" + b"15 " * 6,
    "P5, maxval 15": b"P5 3 2 15\n" + b"\x0f" * 6,
    "P5, maxval 4095": b"P5 3 2 4095\n" + b"\x0f\xff" * 6,
}
for name, content in PICTURES.items():
    with open("white.pgm", "wb") as file:
        file.write(content)
    unchanged = cv2.imread("white.pgm", cv2.IMREAD_UNCHANGED)
    colour = cv2.imread("white.pgm", cv2.IMREAD_COLOR)
    pillow = Image.open("white.pgm").getextrema()[1]
    print(f"{name}: OpenCV {unchanged.max()} in {unchanged.dtype}, in colour {colour.max()} of 255; Pillow {pillow}")
PYTHON
venv/bin/python read.py | tee output
diff output - <<'EXPECTED'
P2, maxval 15: OpenCV 255 in uint8, in colour 255 of 255; Pillow 255
P5, maxval 15: OpenCV 15 in uint8, in colour 15 of 255; Pillow 255
P5, maxval 4095: OpenCV 4095 in uint16, in colour 15 of 255; Pillow 65535
EXPECTED
