"""Random numbers that depend on where they are used, not on what was drawn before.

Every use has a generator of its own, seeded by (seed, use, counters). A run that continues, or that is spread over
more workers, sees the same data order, augmentation, dropout and probes; nothing has to be saved.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, use: str, *counters: int) -> int:
    """A 63-bit number for one use at one place.

    Args:
        seed: of the run.
        use: what the numbers are for.
        *counters: epoch, step, rank and the like.

    Returns:
        The first eight bytes of a hash of all of them.
    """
    text = "/".join((str(seed), use, *map(str, counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, use: str, *counters: int) -> torch.Generator:
    """A generator on the host for one use at one place; see :func:`derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, use, *counters))


def uniforms(count: int, width: int, seed: int, use: str, *counters: int) -> torch.Tensor:
    """Numbers in [0, 1), (count, width), for one use at one place."""
    return torch.rand(count, width, generator=generator(seed, use, *counters))
