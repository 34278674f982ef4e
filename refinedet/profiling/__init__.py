"""What the kernels need and what they should cost."""
