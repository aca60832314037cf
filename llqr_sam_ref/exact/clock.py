"""The clock of a refit: how far U can travel in one, how long it remembers, and what it costs."""

from __future__ import annotations

import math

from llqr_sam_ref.errors import check_count, check_number


def travel_budget(steps: int, eta_U: float, clip: float, beta: float) -> float:
    """How far one stored array can move in a refit: eta_U clip sum_t (1 - beta^t)/(1 - beta).

    Args:
        steps: T, number of inner steps.
        eta_U: inner learning rate, in units of the stored array per unit of its clipped gradient.
        clip: largest norm of the array's gradient, in the gradient's unit.
        beta: inner momentum, 0 <= beta < 1.

    Returns:
        The bound on |U_T - U_0| (Frobenius); an average with decay gamma keeps 1 - gamma of it.

    Raises:
        ValueError: a setting out of its range.

    Source: the book, (18.2), thm-travel-budget.
    """
    check_count("steps", steps, low=0)
    check_number("eta_U", eta_U, low=0.0)
    check_number("clip", clip, low=0.0)
    check_number("beta", beta, low=0.0, high=1.0, open_high=True)
    reach = sum((1 - beta**t) / (1 - beta) for t in range(1, steps + 1))
    return eta_U * clip * reach


def memory(every: int, gamma: float, q: float = 0.0) -> float:
    """The time constant of U in training steps: every / ((1 - gamma)(1 - q)).

    Args:
        every: number of training steps between refits.
        gamma: decay of the average over refits; 1 never learns (infinite memory).
        q: what a refit leaves of the distance to its target: 0 if it gets there, near 1 if it is weak.

    Returns:
        The memory, in training steps.

    Raises:
        ValueError: every is not a count, or gamma or q is outside [0, 1].

    Source: the book, (18.1), thm-ema-relaxed-step.
    """
    check_count("every", every)
    check_number("gamma", gamma, low=0.0, high=1.0)
    check_number("q", q, low=0.0, high=1.0)
    share = (1 - gamma) * (1 - q)
    return math.inf if share == 0 else every / share


def overhead(steps: int, every: int, product: float = 4 / 3, probe: float = 1.0) -> float:
    """What refits cost, in gradients per training step: T product probe / every.

    Args:
        steps: T, inner steps (curvature products per refit).
        every: number of training steps between refits.
        product: cost of one curvature product over one gradient of the same batch (4/3 GGN, 2 Hessian).
        probe: probe batch over training batch.

    Returns:
        The relative cost: 0.067 is 6.7 percent of a plain step.

    Raises:
        ValueError: a setting out of its range.

    Source: the book, (18.4), prop-product-cost.
    """
    check_count("steps", steps, low=0)
    check_count("every", every)
    check_number("product", product, low=0.0)
    check_number("probe", probe, low=0.0)
    return steps * product * probe / every
