#!/usr/bin/env bash
# 2026-11-28, opencv-python-headless 5.0.0.93 and 4.13.0.92, pillow 13.0.0, numpy 2.4.6.
#
# The same picture, 30 wide and 20 high on disk, as TIFF and as JPEG, whose orientation tag says 6: turn it to 20 by 30.
# Likely guess: as for JPEG, imread turns it, and IMREAD_IGNORE_ORIENTATION gives the stored pixels.
# Seen: imread gives no picture at all for the TIFF, with or without the flag (it prints an assertion of its own about the
# memory of the picture). imdecode of the same bytes reads it, and turns it in spite of the flag, which is followed for the
# JPEG. So scans go missing, or boxes that were drawn on the stored pixels lie on turned ones.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
cat > read.py <<'PYTHON'
import cv2
import numpy as np
from PIL import Image

ORIENTATION = 0x112
exif = Image.Exif()
exif[ORIENTATION] = 6
picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
FLAGS = {"by default": cv2.IMREAD_COLOR, "orientation ignored": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION}


def size(image):
    return "nothing" if image is None else f"{image.shape[1]}x{image.shape[0]}"


for name in ("a.tif", "a.jpg"):
    picture.save(name, exif=exif)
    for words, flags in FLAGS.items():
        decoded = cv2.imdecode(np.fromfile(name, np.uint8), flags)
        print(f"{cv2.__version__} {name} {words}: imread {size(cv2.imread(name, flags))}, imdecode {size(decoded)}")
PYTHON
for version in 4.13.0.92 5.0.0.93; do
    python3 -m venv $version
    $version/bin/pip install --quiet --disable-pip-version-check --only-binary :all: opencv-python-headless==$version \
        pillow==13.0.0 numpy==2.4.6
    $version/bin/python read.py 2> messages | tee -a output
done
diff output - <<'EXPECTED'
4.13.0 a.tif by default: imread nothing, imdecode 20x30
4.13.0 a.tif orientation ignored: imread nothing, imdecode 20x30
4.13.0 a.jpg by default: imread 20x30, imdecode 20x30
4.13.0 a.jpg orientation ignored: imread 30x20, imdecode 30x20
5.0.0 a.tif by default: imread nothing, imdecode 20x30
5.0.0 a.tif orientation ignored: imread nothing, imdecode 20x30
5.0.0 a.jpg by default: imread 20x30, imdecode 20x30
5.0.0 a.jpg orientation ignored: imread 30x20, imdecode 30x20
EXPECTED
