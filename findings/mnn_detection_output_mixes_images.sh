#!/usr/bin/env bash
# 2026-11-29, MNN 3.6.1, numpy 2.4.6, Python 3.11. MNN's Caffe converter reads a DetectionOutput of RefineDet's five inputs.
#
# Four boxes that do not meet, of one class: in the first image they score 0.9, 0.8, 0.7, 0.6, in the second 0.5, 0.4, 0.3, 0.2.
# Likely guess: `top_k: 2` of nms_param lets the two best of a class through to suppression, and two images give the rows of
# each, which begin with the number of the image, as in Caffe.
# Seen: `top_k` has no effect. Two images give four rows, without a number: boxes 1 and 2 with scores of the first image,
# boxes 3 and 4 with those that boxes 1 and 2 have in the second.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check --only-binary :all: MNN==3.6.1 numpy==2.4.6
cat > detect.py <<'PYTHON'
import sys

import MNN
import numpy as np
from _tools import mnnconvert

IMAGES, TOP_K = int(sys.argv[1]), int(sys.argv[2])
SCORES = np.float32([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2]])[:IMAGES]
CORNERS = np.float32([[0.1, 0.1, 0.2, 0.2], [0.3, 0.1, 0.4, 0.2], [0.5, 0.1, 0.6, 0.2], [0.7, 0.1, 0.8, 0.2]])
VARIANCES = np.tile(np.float32([0.1, 0.1, 0.2, 0.2]), 4)
OFFSETS = np.zeros((IMAGES, 16), np.float32)
INPUTS = {
    "odm_loc": OFFSETS,
    "odm_conf": np.stack([1 - SCORES, SCORES], 2).reshape(IMAGES, 8),
    "anchors": np.stack([CORNERS.ravel(), VARIANCES])[None],
    "arm_conf": np.full((IMAGES, 8), 0.5, np.float32),
    "arm_loc": OFFSETS,
}
LAYER = 'layer { name: "%s" type: "Input" top: "%s" input_param { shape { %s } } }\n'
with open("net.prototxt", "w") as file:
    for name, value in INPUTS.items():
        file.write(LAYER % (name, name, " ".join(f"dim: {size}" for size in value.shape)))
    bottoms = " ".join(f'bottom: "{name}"' for name in INPUTS)
    file.write(f'layer {{ name: "rows" type: "DetectionOutput" {bottoms} top: "rows" detection_output_param {{ num_classes: 2')
    file.write(" share_location: true background_label_id: 0 code_type: CENTER_SIZE confidence_threshold: 0.01 keep_top_k: 10")
    file.write(f" objectness_score: 0.01 nms_param {{ nms_threshold: 0.45 top_k: {TOP_K} }} }} }}\n")
with open("net.caffemodel", "wb") as file:
    file.write(b"\x0a\x03net")  # a NetParameter with a name and no weights
files = ["--prototxt", "net.prototxt", "--modelFile", "net.caffemodel", "--MNNModel", "net.mnn"]
mnnconvert(["mnnconvert", "-f", "CAFFE", *files])

F = MNN.expr
module = MNN.nn.load_module_from_file("net.mnn", list(INPUTS), ["rows"])
values = [F.convert(F.const(value, list(value.shape), F.NCHW), F.NC4HW4) for value in INPUTS.values()]
rows = F.convert(module.onForward(values)[0], F.NCHW)
for label, score, *box in rows.read().reshape(-1, 6).tolist():
    place = np.abs(CORNERS - box).sum(1).argmin() + 1
    print(f"images {IMAGES}, top_k {TOP_K}: class {label:g}, score {score:.1f}, box {place}")
PYTHON
for setting in "1 200" "1 2" "2 200"; do
    environment/bin/python detect.py $setting | grep "^images" | tee -a output
done
diff output - <<'EXPECTED'
images 1, top_k 200: class 1, score 0.9, box 1
images 1, top_k 200: class 1, score 0.8, box 2
images 1, top_k 200: class 1, score 0.7, box 3
images 1, top_k 200: class 1, score 0.6, box 4
images 1, top_k 2: class 1, score 0.9, box 1
images 1, top_k 2: class 1, score 0.8, box 2
images 1, top_k 2: class 1, score 0.7, box 3
images 1, top_k 2: class 1, score 0.6, box 4
images 2, top_k 200: class 1, score 0.9, box 1
images 2, top_k 200: class 1, score 0.8, box 2
images 2, top_k 200: class 1, score 0.5, box 3
images 2, top_k 200: class 1, score 0.4, box 4
EXPECTED
