"""Running out of memory is no property of a model or a batch: it is told from other errors, and raised as it is."""

from __future__ import annotations

import torch

_SAYS_SO = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def raise_out_of_memory(error: Exception) -> None:
    """Raise an error again if it says that memory ran out, on whatever device.

    Args:
        error: that was caught, and would be taken for something else.

    Raises:
        Exception: ``error`` itself, where it is torch.OutOfMemoryError, MemoryError, or a RuntimeError whose message
            says so, as those of allocators without a class of their own do.
    """
    says_so = any(words in str(error).lower() for words in _SAYS_SO)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and says_so
    ):
        raise error
