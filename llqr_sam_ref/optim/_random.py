"""Torch's random streams, to be replayed or left as they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def random_state(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """The state of torch's generators on the host and on these devices (not of ``random`` and NumPy).

    Args:
        devices: where parameters live.

    Returns:
        A copy of each generator's state.
    """
    accelerators = {device for device in devices if device.type not in {"cpu", "meta"}}
    states = {device: torch.get_device_module(device).get_rng_state(device) for device in accelerators}
    return {torch.device("cpu"): torch.get_rng_state(), **states}


def set_random_state(states: Mapping[torch.device, Tensor]) -> None:
    """Put the generators back.

    Args:
        states: what :func:`random_state` returned.
    """
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
