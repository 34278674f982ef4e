"""Training, evaluation and checkpoints: everything that runs a model, as opposed to being one."""
