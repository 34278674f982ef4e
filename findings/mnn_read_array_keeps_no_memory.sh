#!/usr/bin/env bash
# 2026-11-29, MNN 3.6.1, numpy 2.4.6, Python 3.11.
#
# Likely guess: the array that `read` of an MNN variable gives is a copy, or keeps the variable's memory as numpy's views do.
# Seen: it is a view of that memory (what is written to it is in the variable) which names no owner, so that it keeps nothing:
# once the variable is gone, as in `[output.read() for output in module.onForward(inputs)]`, it shows freed memory, and
# whatever comes to lie there: outputs of a network change after another call, with no error. Copy it while the variable
# lives. (Reading freed memory is left out here.)
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check --only-binary :all: MNN==3.6.1 numpy==2.4.6
environment/bin/python - <<'PYTHON' | grep -v "^The device supports" | tee output
import MNN

variable = MNN.expr.const([1.0, 2.0, 3.0], [3]) * MNN.expr.const([2.0, 2.0, 2.0], [3])
array = variable.read()
print(f"owns its memory: {array.flags.owndata}, whose it is: {array.base}")
array[0] = 7
print(f"the variable: {variable.read().tolist()}")
PYTHON
diff output - <<'EXPECTED'
owns its memory: False, whose it is: None
the variable: [7.0, 4.0, 6.0]
EXPECTED
