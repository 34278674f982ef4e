"""``python -m refinedet``: the command line."""

import sys

from refinedet.cli import main

if __name__ == "__main__":
    sys.exit(main())
