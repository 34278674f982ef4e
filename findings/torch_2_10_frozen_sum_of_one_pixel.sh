#!/usr/bin/env bash
# 2026-11-29, torch 2.10.0 (build for CUDA, run on the CPU; 2.14.1 computes both).
#
# torch.compile with freezing, on the CPU, of a convolution whose output is added to another map, then ReLU: the end of a
# residual block; for maps of 2x2 pixels and of one.
# Likely guess: fusing is an optimisation, so what runs without it runs with it, whatever the size of the map; as a
# network does whose last maps shrink to one pixel (ResNet at a small image, squeeze-and-excitation).
# Seen: 2x2 is right; for one pixel oneDNN raises "could not create a memory" when the compiled code runs, and says
# neither which layer nor that the fused sum is the cause. A plain convolution of one pixel and the sum apart both work.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
cat > run.py <<'PYTHON'
import torch
import torch._inductor.config as config
from torch import nn

config.freezing = True


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x, y):
        return (self.convolution(x) + y).relu()


torch.manual_seed(0)
block = Block().eval().to(memory_format=torch.channels_last)
with torch.no_grad():
    for side in (2, 1):
        x, y = (torch.randn(1, 32, side, side).to(memory_format=torch.channels_last) for _ in range(2))
        try:
            torch._dynamo.reset()
            found = torch.compile(block)(x, y)
            print(f"{side}x{side}: compiled, {'equal' if torch.allclose(found, block(x, y), atol=1e-5) else 'not equal'}")
        except Exception as error:
            print(f"{side}x{side}: {type(error).__name__}: {str(error).splitlines()[0]}")
PYTHON
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.10.0 numpy==2.4.6 setuptools 2> errors || { cat errors; exit 1; }
OMP_NUM_THREADS=1 env/bin/python run.py > output 2> errors || { cat errors; exit 1; }
cat output
diff output - <<'EXPECTED'
2x2: compiled, equal
1x1: RuntimeError: could not create a memory
EXPECTED
