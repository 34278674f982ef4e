#!/usr/bin/env bash
# 2026-11-28, torch 2.13.0 (CPU build; 2.14.1 the same).
#
# A 1x1 convolution of 128 to 64 channels, 40x40, float32, on one thread, for batches of 15 and of 16 images.
# Likely guess: oneDNN runs both, as all float32 convolutions on a CPU, and an image in the larger batch takes no longer.
# Seen: up to 15 images torch takes its own path, a matrix product on the tensor as it lies (called slow_conv2d); from 16
# on, and for any batch with two threads, oneDNN, which rearranges the tensor before and after. On the machine of that day
# (AVX-512) an image took 1.8 times the CPU time in the batch of 16, and 3.8 times where 64 channels become 256. 3x3
# kernels have oneDNN always. So networks with many 1x1 convolutions (MobileNet, EfficientNet, SqueezeNet) get slower at
# 16 images on one thread, and two threads win less than the work they share.
# The ratio is shown, and not compared: it is the processor's.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
cat > run.py <<'PYTHON'
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile


def backend(batch: int, side: int, threads: int) -> str:
    torch.set_num_threads(threads)
    images, kernel = torch.randn(batch, 128, 40, 40), torch.randn(64, 128, side, side)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.conv2d(images, kernel)
    return [event.key for event in profiler.key_averages() if event.key in ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward")][0]


def milliseconds(batch: int) -> float:
    torch.set_num_threads(1)
    images, kernel = torch.randn(batch, 128, 40, 40), torch.randn(64, 128, 1, 1)
    times = []
    for _ in range(51):
        start = time.process_time()
        torch.conv2d(images, kernel)
        times.append(time.process_time() - start)
    return sorted(times)[25] / batch * 1e3


for side, threads in ((1, 1), (1, 2), (3, 1)):
    for batch in (1, 15, 16):
        print(f"{side}x{side}, threads {threads}, batch {batch}: {backend(batch, side, threads)}")
with torch.inference_mode():
    small, large = milliseconds(15), milliseconds(16)
print(f"CPU time of an image, batch of 16 over batch of 15: {large / small:.1f}", file=sys.stderr)
PYTHON
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check --only-binary :all: \
    --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" numpy==2.4.6 2> errors || { cat errors; exit 1; }
env/bin/python run.py > output 2> errors || { cat errors; exit 1; }
cat output
grep "CPU time" errors
diff output - <<'EXPECTED'
1x1, threads 1, batch 1: aten::_slow_conv2d_forward
1x1, threads 1, batch 15: aten::_slow_conv2d_forward
1x1, threads 1, batch 16: aten::mkldnn_convolution
1x1, threads 2, batch 1: aten::mkldnn_convolution
1x1, threads 2, batch 15: aten::mkldnn_convolution
1x1, threads 2, batch 16: aten::mkldnn_convolution
3x3, threads 1, batch 1: aten::mkldnn_convolution
3x3, threads 1, batch 15: aten::mkldnn_convolution
3x3, threads 1, batch 16: aten::mkldnn_convolution
EXPECTED
