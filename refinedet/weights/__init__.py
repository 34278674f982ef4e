"""Weights of other implementations: their names and layouts, and ours."""
