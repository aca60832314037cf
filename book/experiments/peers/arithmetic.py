"""A table of sums with holes: what a network has to find out and cannot remember."""

from __future__ import annotations

import torch

from book.experiments.peers.data import Batch, Data

MODULUS = 31
SHOWN = 0.4  # of all pairs; less is hard for everybody, more is easy
UNASKED = -100  # a target that does not count, as torch's cross-entropy has it


def sums() -> Data:
    """Pairs of numbers and their sum modulo 31: 384 of the 961 to learn from, the rest for validation and test.

    Inputs are (first, second, "="), targets the sum at the third place.
    """
    first, second = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS)).T
    inputs = torch.stack((first, second, torch.full_like(first, MODULUS)), 1)
    targets = torch.full_like(inputs, UNASKED)
    targets[:, 2] = (first + second) % MODULUS
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(5))
    shown = round(SHOWN * len(inputs))
    validation = shown + (len(inputs) - shown) // 2

    def draw(generator: torch.Generator, size: int) -> Batch:
        chosen = order[torch.randint(shown, (size,), generator=generator)]
        return inputs[chosen], targets[chosen]

    held_out = order[shown:validation], order[validation:]
    return Data(draw, *((inputs[part], targets[part]) for part in held_out))
