#!/usr/bin/env bash
# 2026-11-29, supervision 0.31.2, globox 2.9.0.
#
# One VOC file: a difficult object over the first ten columns and eight rows, which VOC writes as 1, 1, 10, 8.
# Likely guess: readers of VOC agree on the box, and keep that it is difficult.
# Seen: supervision takes the corners for VOC's pixels, 1-based and inclusive, and gives the edges 0, 0, 10, 8; globox
# takes them for edges, so that the box begins a pixel later and has 63 of its 80 pixels. Neither keeps "difficult": what
# is measured on their ground truth counts objects that VOC's metric leaves out.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: \
    supervision==0.31.2 globox==2.9.0 opencv-python-headless numpy==2.4.6
cat > a.xml <<'XML'
<annotation><filename>a.png</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>8</ymax></bndbox></object></annotation>
XML
cat > read.py <<'PYTHON'
import cv2
import globox
import numpy as np
import supervision

cv2.imwrite("a.png", np.zeros((30, 40, 3), np.uint8))
((_, _, found),) = supervision.DetectionDataset.from_pascal_voc(".", ".")
print("supervision:", found.xyxy[0].tolist(), found.area[0], sorted(found.data))
(box,) = globox.Annotation.from_pascal_voc("a.xml").boxes
print("globox:", list(box.ltrb), box.area, [name for name in dir(box) if "difficult" in name])
PYTHON
venv/bin/python read.py > output
cat output
diff output - <<'EXPECTED'
supervision: [0.0, 0.0, 10.0, 8.0] 80.0 ['class_name']
globox: [1.0, 1.0, 10.0, 8.0] 63.0 []
EXPECTED
