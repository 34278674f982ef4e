"""One file per kind of input, each with a ``TARGET``."""
