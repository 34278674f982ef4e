#!/usr/bin/env bash
# 2026-11-29, MNN 3.6.1, numpy 2.4.6, Python 3.11. A pip that only tells how it was called stands first in PATH.
#
# Likely guess: `from MNN.tools import mnnconvert`, as the command `mnnconvert` and programs that convert do it, imports
# a module.
# Seen: it runs `pip install -U aliyun-log-python-sdk` through the shell, while it is imported; with that package the
# import asks a server for credentials and the command reports what was converted. The compiled module `_tools`, which
# does the work, has `mnnconvert` with the same arguments and does neither.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check --only-binary :all: MNN==3.6.1 numpy==2.4.6
mkdir first
printf '#!/bin/sh\necho "pip was called: $*"\n' > first/pip
chmod +x first/pip
for module in _tools MNN.tools.mnnconvert; do
    PATH="$top/first:$PATH" environment/bin/python -c "import $module; print('imported $module')" | tee -a output
done
grep -v "^The device supports" output | sort -u | diff - <(cat << 'EXPECTED'
imported MNN.tools.mnnconvert
imported _tools
pip was called: install -U aliyun-log-python-sdk
try 'pip install -U aliyun-log-python-sdk'
EXPECTED
)
