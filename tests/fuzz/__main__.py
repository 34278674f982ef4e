"""``make fuzz``: fresh inputs of every kind, or those of one seed again.

python tests/fuzz [--seed N] [--count N] [--only coco ...] [--out DIR]
"""

import argparse
import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from fuzz import find_targets
from fuzz.engine import fuzz


def main() -> int:
    """Exit status: 0 when every input was read or refused in one sentence, else 1."""
    targets = find_targets()
    parser = argparse.ArgumentParser(description="Fuzz everything that reads a file.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: another one every time")
    parser.add_argument("--count", type=int, help="inputs of each kind (default: of the bar, see docs)")
    parser.add_argument("--only", nargs="+", choices=sorted(targets), metavar="KIND", default=sorted(targets))
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for seeds and failing inputs")
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.only:
        target, count = targets[name], arguments.count or targets[name].count
        with tqdm(total=count, desc=name, unit="input", delay=2) as bar:
            report = fuzz(target, count, arguments.seed, arguments.out / name, bar.update)
        print(report)
        for failure in report.failures:
            print(f"  {failure.kind}: {failure.file}\n    " + failure.detail.strip().replace("\n", "\n    "))
        failed += len(report.failures)
    print(f"{failed} failures" + (f"; the inputs are in {arguments.out}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
