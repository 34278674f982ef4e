"""``make fuzz``: fresh inputs of every kind and kills of training runs, or those of one seed again.

python tests/fuzz [--seed N] [--count N] [--only coco ...] [--out DIR]
"""

import argparse
import os
import secrets
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # readers are forked, which OpenMP's threads do not outlive
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from fuzz import find_targets
from fuzz.engine import Report, fuzz
from fuzz.kills import COUNT, KillReport, kill_runs

KILLS = "kills"


def main() -> int:
    """Exit status: 0 when every input was read or refused in one sentence and every run went on exactly, else 1."""
    targets = find_targets()
    parser = argparse.ArgumentParser(description="Fuzz everything that reads a file, and kill training runs.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: another one every time")
    parser.add_argument("--count", type=int, help="inputs of each kind, kills (default: the kind's own)")
    kinds = [*sorted(targets), KILLS]
    parser.add_argument("--only", nargs="+", choices=kinds, metavar="KIND", default=kinds)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for seeds and failing inputs")
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.only:
        count = arguments.count or (COUNT if name == KILLS else targets[name].count)
        with tqdm(total=count, desc=name, unit="input", delay=2) as bar:
            report: Report | KillReport
            if name == KILLS:
                report = kill_runs(count, arguments.seed, arguments.out / name, bar.update)
            else:
                report = fuzz(targets[name], count, arguments.seed, arguments.out / name, bar.update)
        print(report)
        for failure in report.failures:
            print(f"  {failure.kind}: {failure.file}\n    " + failure.detail.strip().replace("\n", "\n    "))
        failed += len(report.failures)
    print(f"{failed} failures" + (f"; the inputs are in {arguments.out}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
