#!/usr/bin/env bash
# 2026-11-29, opencv-python-headless 5.0.0.93 and 4.13.0.92, numpy 2.4.6.
#
# Two boxes of two classes, 50 x 50, far from each other: x, y = 100, 100 and -51, -51, as where 0 is the middle of an image
# or boxes are not clipped.
# Likely guess: NMSBoxesBatched suppresses within each class, so both are kept, as they are when they lie at one place.
# Seen: the box of class 1 goes. Boxes of class k are moved by k times (largest coordinate + 1), here 151, in x and in y, and
# so come to lie on those of another class. Apart by class, NMSBoxes keeps both.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
cat > suppress.py <<'PYTHON'
import cv2

SCORES, CLASSES = [0.9, 0.8], [0, 1]
for words, second in {"one place": [100, 100, 50, 50], "two places": [-51, -51, 50, 50]}.items():
    boxes = [[100, 100, 50, 50], second]
    together = cv2.dnn.NMSBoxesBatched(boxes, SCORES, CLASSES, 0.0, 0.5)
    apart = [len(cv2.dnn.NMSBoxes(boxes[k : k + 1], SCORES[k : k + 1], 0.0, 0.5)) for k in CLASSES]
    print(f"{cv2.__version__} {words}: {len(together)} kept, class by class {sum(apart)}")
PYTHON
for version in 4.13.0.92 5.0.0.93; do
    python3 -m venv $version
    $version/bin/pip install --quiet --disable-pip-version-check --only-binary :all: opencv-python-headless==$version \
        numpy==2.4.6
    $version/bin/python suppress.py | tee -a output
done
diff output - <<'EXPECTED'
4.13.0 one place: 2 kept, class by class 2
4.13.0 two places: 1 kept, class by class 2
5.0.0 one place: 2 kept, class by class 2
5.0.0 two places: 1 kept, class by class 2
EXPECTED
