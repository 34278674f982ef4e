#!/usr/bin/env bash
# 2026-11-29, ncnn 1.0.20261020, opencv-python-headless 4.14.0.94, numpy 2.4.6, Python 3.11. A DetectionOutput layer with the
# five inputs of RefineDet: offsets, probabilities and anchors, then ARM probabilities and ARM offsets.
#
# Two boxes, run twice. First the ARM takes both for objects and moves none; then it takes the first for background and moves
# the second by half its width.
# Likely guess: the layer uses its inputs, so that the second run gives one row, whose box lies elsewhere, or it refuses them.
# Seen: both runs give the same two rows, without a word. OpenCV reads over `objectness_score`, as over every unknown field.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check --only-binary :all: ncnn==1.0.20261020 \
    opencv-python-headless==4.14.0.94 numpy==2.4.6
cat > detect.py <<'PYTHON'
import cv2
import ncnn
import numpy as np

INPUTS = {
    "odm_loc": np.zeros((1, 8), np.float32),
    "odm_conf": np.float32([[0.2, 0.8, 0.4, 0.6]]),
    "anchors": np.float32([[[0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 0.8, 0.8], [0.1, 0.1, 0.2, 0.2] * 2]]),
}
ARMS = {
    "two objects": {"arm_conf": np.float32([[0, 1, 0, 1]]), "arm_loc": np.zeros((1, 8), np.float32)},
    "one, moved": {"arm_conf": np.float32([[1, 0, 0, 1]]), "arm_loc": np.float32([[0, 0, 0, 0, 5, 0, 0, 0]])},
}


def by_opencv(inputs):
    text = ""
    for name, value in inputs.items():
        text += f'input: "{name}" input_shape {{ {" ".join(f"dim: {size}" for size in value.shape)} }}\n'
    bottoms = " ".join(f'bottom: "{name}"' for name in inputs)
    text += f'layer {{ name: "rows" type: "DetectionOutput" {bottoms} top: "rows" detection_output_param {{ num_classes: 2'
    text += " share_location: true background_label_id: 0 code_type: CENTER_SIZE confidence_threshold: 0.1 keep_top_k: 2"
    text += " objectness_score: 0.1 nms_param { nms_threshold: 0.45 top_k: 100 } } }\n"
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8))
    for name, value in inputs.items():
        net.setInput(value, name)
    return net.forward("rows").reshape(-1, 7)[:, 1:]  # without the number of the image


def by_ncnn(inputs):
    lines = ["7767517", "6 6", *(f"Input {name} 0 1 {name}" for name in inputs)]
    lines.append(f"DetectionOutput rows 5 1 {' '.join(inputs)} rows 0=2 1=0.45 2=100 3=2 4=0.1")
    open("net.bin", "wb").close()  # no weights
    with ncnn.Net() as net:
        net.load_param_mem("\n".join(lines) + "\n")
        net.load_model("net.bin")
        with net.create_extractor() as extractor:
            for name, value in inputs.items():
                extractor.input(name, ncnn.Mat(value[0]).clone())
            return np.array(extractor.extract("rows")[1])


for library, run in {f"OpenCV {cv2.__version__}": by_opencv, f"ncnn {ncnn.__version__}": by_ncnn}.items():
    for arm, values in ARMS.items():
        for row in run(INPUTS | values).astype(float).round(3).tolist():
            print(f"{library}, {arm}: {row}")
PYTHON
environment/bin/python detect.py | tee output
diff output - <<'EXPECTED'
OpenCV 4.14.0, two objects: [1.0, 0.8, 0.1, 0.1, 0.3, 0.3]
OpenCV 4.14.0, two objects: [1.0, 0.6, 0.6, 0.6, 0.8, 0.8]
OpenCV 4.14.0, one, moved: [1.0, 0.8, 0.1, 0.1, 0.3, 0.3]
OpenCV 4.14.0, one, moved: [1.0, 0.6, 0.6, 0.6, 0.8, 0.8]
ncnn 1.0.20261020, two objects: [1.0, 0.8, 0.1, 0.1, 0.3, 0.3]
ncnn 1.0.20261020, two objects: [1.0, 0.6, 0.6, 0.6, 0.8, 0.8]
ncnn 1.0.20261020, one, moved: [1.0, 0.8, 0.1, 0.1, 0.3, 0.3]
ncnn 1.0.20261020, one, moved: [1.0, 0.6, 0.6, 0.6, 0.8, 0.8]
EXPECTED
