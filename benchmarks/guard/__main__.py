"""``python benchmarks/guard``: see command.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if sys.path[0] == str(ROOT / "benchmarks" / "guard"):
    del sys.path[0]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "benchmarks", "tools", "tests", "tests/ops")]

from guard.command import main  # noqa: E402

sys.exit(main())
