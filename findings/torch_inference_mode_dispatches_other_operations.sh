#!/usr/bin/env bash
# 2026-11-29, torch 2.13.0 (CPU build; 2.14.1 the same).
#
# A TorchDispatchMode that counts the floating-point operations of a network by torch's own table, flop_registry, in a
# forward pass under torch.no_grad() and under torch.inference_mode().
# Likely guess: both see the same operations, for inference_mode only leaves out what autograd would need.
# Seen: under no_grad the mode is called with aten.convolution and aten.addmm, under inference_mode with aten.conv2d and
# aten.linear, which autograd's dispatch would have taken apart. The table has no line for these two, so the same counter
# finds no work at all, without a word; torch's FlopCounterMode, which takes such operations apart itself, counts it.
# Whoever times or counts operations of a model in deployment has to leave inference_mode: inference_mode(False), no_grad().
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
cat > run.py <<'PYTHON'
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry


class Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen, self.flop = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.seen.append(str(func))
        self.flop += formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        return result


network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
images = torch.rand(1, 3, 8, 8)
for mode in (torch.no_grad, torch.inference_mode):
    with mode():
        with Counter() as counter:
            network(images)
        with FlopCounterMode(display=False) as official:
            network(images)
    seen = [name for name in counter.seen if "view" not in name and name != "aten.t.default"]
    print(f"{mode.__name__}: {' '.join(seen)}; {counter.flop} FLOP, FlopCounterMode {official.get_total_flops()}")
PYTHON
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check --only-binary :all: \
    --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" numpy==2.4.6 2> errors || { cat errors; exit 1; }
env/bin/python run.py > output 2> errors || { cat errors; exit 1; }
cat output
diff output - <<'EXPECTED'
no_grad: aten.convolution.default aten.addmm.default; 9216 FLOP, FlopCounterMode 9216
inference_mode: aten.conv2d.default aten.flatten.using_ints aten.linear.default; 0 FLOP, FlopCounterMode 9216
EXPECTED
