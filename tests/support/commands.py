"""What the tests of the commands share."""

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
