"""``python benchmarks/gpu_report`` and, with ``benchmarks`` on Python's path, ``python -m gpu_report``."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if sys.path[0] == str(FOLDER):
    sys.path[0] = str(FOLDER.parent)

from gpu_report.command import main  # noqa: E402

sys.exit(main())
