#!/usr/bin/env bash
# 2026-11-28, torch 2.13.0 (CPU build; 2.14.1 the same).
#
# A convolution of a channels-last image by channels-last weights on the CPU, as a FakeTensor of the CPU, and on the meta
# device; then what a detector's head does with the map: permute to NHWC and reshape.
# Likely guess: meta tensors have the shapes and strides that the operation has on a real device, so that what is counted
# on them (bytes, copies, peak memory) is what will run.
# Seen: the CPU and the FakeTensor give a channels-last map, of which permute and reshape are a view; the meta device a
# contiguous one, of which they are a copy. Normalisation, pooling and ReLU keep the format on the meta device: the
# convolution alone forgets it. Whoever counts there counts a copy of every map that does not happen.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
cat > run.py <<'PYTHON'
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

LAST = torch.channels_last


def tensors(device):
    return (torch.zeros(shape, device=device).to(memory_format=LAST) for shape in ((1, 4, 32, 32), (8, 4, 3, 3)))


def show(name, image, weight):
    maps = F.conv2d(image, weight)
    rows = maps.permute(0, 2, 3, 1).reshape(1, -1, 4)
    others = [F.relu(image), F.max_pool2d(image, 2), F.batch_norm(image, image[0, :, 0, 0], image[0, :, 0, 0])]
    kept = all(each.is_contiguous(memory_format=LAST) for each in others)
    convolution = "channels last" if maps.is_contiguous(memory_format=LAST) else "contiguous"
    print(f"{name}: convolution {convolution}, reshaped as a {'view' if rows._base is not None else 'copy'}; others kept: {kept}")


with torch.no_grad():
    show("cpu", *tensors("cpu"))
    with FakeTensorMode():
        show("fake", *tensors("cpu"))
    show("meta", *tensors("meta"))
PYTHON
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check --only-binary :all: \
    --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" numpy==2.4.6 2> errors || { cat errors; exit 1; }
env/bin/python run.py > output 2> errors || { cat errors; exit 1; }
cat output
diff output - <<'EXPECTED'
cpu: convolution channels last, reshaped as a view; others kept: True
fake: convolution channels last, reshaped as a view; others kept: True
meta: convolution contiguous, reshaped as a copy; others kept: True
EXPECTED
