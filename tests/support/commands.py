"""What the tests of the commands share."""

import sys

TIMEOUT = 600  # seconds; far above what any process takes, so that a busy machine fails no test
RECIPE = """
[model]
backbone = "squeezenet"
size = 64
tcb_channels = 16

[train]
steps = {steps}
batch_size = 2
lr = 1e-4
workers = 0
log_every = 1

[evaluate]
batch_size = 2
"""

# prctl(PR_SET_PDEATHSIG, SIGKILL), which stays in force over exec.
_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


def mortal(*arguments: str) -> list[str]:
    """The command `python ARGUMENTS`, whose process ends when the one that starts it is killed: no training is left of
    a run of tests that was cut off."""
    return [sys.executable, "-c", _DIE_WITH_PARENT, sys.executable, *arguments]
