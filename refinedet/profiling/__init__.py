"""What kernels and networks need and what they cost."""
