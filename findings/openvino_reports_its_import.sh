#!/usr/bin/env bash
# 2026-11-29, openvino 2026.4.1, openvino-telemetry 2025.2.0, which it requires, nncf 3.4.0.
#
# `import openvino`, in a fresh home folder, with a proxy that notes what is asked for and answers nothing.
# Likely guess: an import computes nothing and tells nobody.
# Seen: it connects to www.google-analytics.com, having asked nobody, and leaves a folder ~/intel with a number of its
# own for this user. What stops it: CI=true in the environment, `opt_in_out --opt_out`, or openvino_telemetry absent
# when openvino is imported, for which openvino has a stand-in.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: \
    openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6
cat > watch.py <<'PYTHON'
import os
import socket
import subprocess
import sys
import tempfile

WITHOUT = "import sys; sys.modules['openvino_telemetry'] = None; "
for name, code in (("as it is", ""), ("without openvino_telemetry", WITHOUT)):
    with socket.create_server(("127.0.0.1", 0)) as proxy, tempfile.TemporaryDirectory() as home:
        proxy.settimeout(20)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {"PATH": os.environ["PATH"], "HOME": home, "https_proxy": address}
        process = subprocess.Popen([sys.executable, "-c", code + "import openvino"], env=environment)
        try:
            connection, _ = proxy.accept()
            asked = connection.recv(4096).decode().split(" HTTP/")[0]
            connection.close()
        except TimeoutError:
            asked = "nothing"
        process.wait()
        print(f"{name}: asks for {asked}; in the home folder: {sorted(os.listdir(home))}")
PYTHON
venv/bin/python watch.py 2> messages | tee output
diff output - <<'EXPECTED'
as it is: asks for CONNECT www.google-analytics.com:443; in the home folder: ['intel']
without openvino_telemetry: asks for nothing; in the home folder: []
EXPECTED
