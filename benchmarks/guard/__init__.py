"""`make bench-check`: what the package costs, beside what it has cost (docs/guard.md)."""
