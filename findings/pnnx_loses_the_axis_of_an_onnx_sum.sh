#!/usr/bin/env bash
# 2026-11-29, pnnx 20261020, ncnn 1.0.20261020, onnx 1.23.2, numpy 2.4.6, Python 3.11.
#
# An ONNX graph (opset 18) of a convolution that changes nothing and an L2 normalisation, x / sqrt(sum of x * x + 1e-10), once
# over channels, once over channels and rows. onnx's own evaluator says what is right.
# Likely guess: ncnn gives the same for both once pnnx has converted them.
# Seen: the sum over two axes is right. That over one is written with an empty list of axes, so that ncnn sums nothing and every
# positive value becomes 1. As TorchScript of torch 2.14.1, tried by hand, the network keeps its axis.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check --only-binary :all: ncnn==1.0.20261020 onnx==1.23.2 \
    numpy==2.4.6
environment/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps pnnx==20261020  # without torch
cat > normalise.py <<'PYTHON'
import glob
import subprocess

import ncnn
import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

PNNX = glob.glob("environment/lib/python3*/site-packages/pnnx/pnnx")[0]
X = np.float32([3, 6, 4, 8]).reshape(1, 2, 2, 1)


def graph(axes):
    constants = {"eye": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1), "axes": np.int64(axes), "tiny": np.float32(1e-10)}
    nodes = [
        helper.make_node("Conv", ["in0", "eye"], ["x"], kernel_shape=[1, 1]),
        helper.make_node("Mul", ["x", "x"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "tiny"], ["positive"]),
        helper.make_node("Sqrt", ["positive"], ["norm"]),
        helper.make_node("Div", ["x", "norm"], ["out0"]),
    ]
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, X.shape)] for name in ("in0", "out0")]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(helper.make_graph(nodes, "net", *ends, weights), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


for axes in ([1], [1, 2]):
    onnx.save(graph(axes), "net.onnx")
    expected = ReferenceEvaluator("net.onnx").run(None, {"in0": X})[0]
    subprocess.run([PNNX, "net.onnx", "inputshape=[1,2,2,1]", "fp16=0"], check=True, capture_output=True)
    layer = next(line for line in open("net.ncnn.param") if line.startswith("Reduction"))
    with ncnn.Net() as net:
        net.load_param("net.ncnn.param")
        net.load_model("net.ncnn.bin")
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(X[0]).clone())
            got = np.array(extractor.extract("out0")[1])
    print(f"axes {axes}: {layer.split()[-3]}")
    print(f"    onnx {expected.ravel().astype(float).round(3).tolist()}")
    print(f"    ncnn {got.ravel().astype(float).round(3).tolist()}")
PYTHON
environment/bin/python normalise.py | tee output
diff output - <<'EXPECTED'
axes [1]: -23303=0
    onnx [0.6, 0.6, 0.8, 0.8]
    ncnn [1.0, 1.0, 1.0, 1.0]
axes [1, 2]: -23303=2,0,1
    onnx [0.268, 0.537, 0.358, 0.716]
    ncnn [0.268, 0.537, 0.358, 0.716]
EXPECTED
