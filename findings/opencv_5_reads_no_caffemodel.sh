#!/usr/bin/env bash
# 2026-11-28, opencv-python-headless 4.14.0.94 and 5.0.0.93.
#
# The same network of Caffe, one ReLU, is read by the last OpenCV 4 and by OpenCV 5.
# Likely guess: OpenCV's dnn module imports Caffe's models, as every release since 3.3 has; a .caffemodel that runs there
# today is a way to deploy without Caffe, and an upgrade changes speed at most.
# Seen: 4.14 reads and runs it. In 5.0 `readNetFromCaffe` is gone, with Darknet's and Torch's, and `readNet` of such files
# raises an error. `pip install opencv-python` without a bound gives 5: who deploys .caffemodel files so has to pin
# "opencv-python<5", or to convert them.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
cat > net.prototxt <<'PROTOTXT'
name: "net"
input: "data"
input_shape { dim: 1 dim: 1 dim: 1 dim: 3 }
layer { name: "relu" type: "ReLU" bottom: "data" top: "out" }
PROTOTXT
printf '\x0a\x03net' > net.caffemodel # its name; a ReLU has no weights
cat > read.py <<'PYTHON'
import cv2
import numpy as np

print(cv2.__version__.split(".")[0], "has", sorted(name for name in dir(cv2.dnn) if name.startswith("readNetFrom")))
try:
    net = cv2.dnn.readNet("net.caffemodel", "net.prototxt")
    net.setInput(np.array([1, 0, 2], np.float32).reshape(1, 1, 1, 3))
    print("output", net.forward().ravel().tolist())
except cv2.error as error:
    print("error:", error.err)
PYTHON
for version in 4.14.0.94 5.0.0.93; do
    python3 -m venv "$version"
    "$version/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
        "opencv-python-headless==$version" numpy==2.4.6
    "$version/bin/python" read.py
done 2> errors | tee output || { cat errors; exit 1; }
diff output - <<'EXPECTED'
4 has ['readNetFromCaffe', 'readNetFromDarknet', 'readNetFromModelOptimizer', 'readNetFromONNX', 'readNetFromTFLite', 'readNetFromTensorflow', 'readNetFromTorch']
output [1.0, 0.0, 2.0]
5 has ['readNetFromModelOptimizer', 'readNetFromONNX', 'readNetFromTFLite', 'readNetFromTensorflow']
error: Caffe importer has been removed. Please use ONNX-converted models or use an older OpenCV version.
EXPECTED
