"""The road's random numbers: a generator that Python and JavaScript share bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

_WORD = 0xFFFFFFFF


def mulberry32(seed: int) -> Iterator[float]:
    """Uniform numbers in [0, 1) from a 32-bit state.

    Args:
        seed: the state before the first number.

    Yields:
        One number after the other.

    Source: T. Ettinger's mulberry32 (public domain).
    """
    state = seed & _WORD
    while True:
        state = (state + 0x6D2B79F5) & _WORD
        t = ((state ^ (state >> 15)) * (state | 1)) & _WORD
        t ^= (t + (((t ^ (t >> 7)) * (t | 61)) & _WORD)) & _WORD
        yield (t ^ (t >> 14)) / 4294967296


def road_noise(seed: int, steps: int, dimension: int) -> Float[np.ndarray, "steps dimension"]:
    """Standard normal noise for every step and coordinate: the cosine branch of Box and Muller.

    Args:
        seed: of the uniform numbers.
        steps: number of steps.
        dimension: number of coordinates.

    Returns:
        Draws in the order in which the page draws them.
    """
    uniform = mulberry32(seed)
    draws = [
        math.sqrt(-2 * math.log(1 - next(uniform))) * math.cos(2 * math.pi * next(uniform))
        for _ in range(steps * dimension)
    ]
    return np.array(draws).reshape(steps, dimension)
