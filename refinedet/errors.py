"""Errors a user can cause and mend. Each message names the file or input, the value found, and the fix."""

_OUT_OF_MEMORY = (  # as CUDA, torch's CPU allocator, cuBLAS or cuDNN, OpenCV, the system and its shared memory say it
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "Insufficient memory",
    "Cannot allocate memory",
    "</torch_",  # the name of a piece of shared memory
)
_SHOWN = 80  # characters of a value in a message


class RefineDetError(Exception):
    """Base of every error meant for the user; the command line prints its message without a traceback."""


class DataError(RefineDetError):
    """An image, annotation or data set that cannot be used as it is."""


class CheckpointError(RefineDetError):
    """A weights or checkpoint file that is missing, damaged, unsafe or does not fit the model."""


class RecipeError(RefineDetError):
    """A training recipe with an unknown key, a wrong type or a value out of range."""


class InputError(RefineDetError, ValueError):
    """A function argument of the wrong type, shape or range."""


class ExtensionError(RefineDetError, ImportError):
    """The compiled extension is missing or does not fit this Python or torch."""


def shorten(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are, for a message."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, of any library, says that memory was refused."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def show(value: object) -> str:
    """``value`` as Python writes it, cut after some 80 characters: for a message that names a value of any origin."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a whole number of thousands of digits
        return f"a value of type {type(value).__name__}, too long to be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
