"""``python -m refinedet``: the command line."""

import sys

from refinedet.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
