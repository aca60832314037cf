"""The clocks of U: how far it can travel in a refit, how long it remembers and should, and what it costs."""

from __future__ import annotations

import math

import numpy as np

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

    Source: the book, (18.7), prop-product-cost.
    """
    check_count("steps", steps, low=0)
    check_count("every", every)
    check_number("product", product, low=0.0)
    check_number("probe", probe, low=0.0)
    return steps * product * probe / every


def decay(memory: float, steps: int) -> float:
    """What an average remembers after some training steps: (1 - 1/tau)^steps.

    Args:
        memory: tau >= 1, the average's time constant in training steps; 1 remembers nothing.
        steps: how many pass from one sample to the next.

    Returns:
        The weight of the past at the next sample, in [0, 1).

    Raises:
        ValueError: a memory below 1, or steps that are no count.

    Source: the book, chapter 18.
    """
    check_number("memory", memory, low=1.0)
    return (1 - 1 / memory) ** check_count("steps", steps)


def refits_between(steps: int, every: int) -> int:
    """The number of refits that comes closest to a number of training steps, at least one.

    Args:
        steps: b, training steps from one renewal of the bases to the next.
        every: K, training steps between refits.

    Returns:
        b/K, rounded.

    Raises:
        ValueError: an argument is no count.

    Source: the book, chapter 18.
    """
    return max(1, round(check_count("steps", steps) / check_count("every", every)))


def averaging_error(memory: float, noise: float, walk: float = 0.0, drift: float = 0.0) -> float:
    """The mean squared error that an average of noisy samples settles at while the truth moves.

        ((tau - 1)^2 walk^2 + noise^2)/(2 tau - 1) + (tau - 1)^2 drift^2

    Args:
        memory: tau >= 1, the average's time constant in samples; 1 is the last sample alone.
        noise: standard deviation of a sample.
        walk: standard deviation of the truth's random move from one sample to the next, in the noise's unit.
        drift: its steady move, in the noise's unit.

    Returns:
        The error, in the square of the noise's unit.

    Raises:
        ValueError: a memory below 1, or a negative deviation.

    Source: the book, thm-memory-optimum.
    """
    check_number("memory", memory, low=1.0)
    for name, value in (("noise", noise), ("walk", walk), ("drift", drift)):
        check_number(name, value, low=0.0)
    late = (memory - 1) ** 2
    return (late * walk**2 + noise**2) / (2 * memory - 1) + late * drift**2


def best_memory(noise: float, walk: float = 0.0, drift: float = 0.0) -> float:
    """The memory with the least ``averaging_error``: (tau - 1)(walk^2 tau + drift^2 (2 tau - 1)^2) = noise^2.

    Args:
        noise: standard deviation of a sample.
        walk: standard deviation of the truth's random move from one sample to the next, in the noise's unit.
        drift: its steady move, in the noise's unit.

    Returns:
        tau, in samples; 1/2 + sqrt(1/4 + (noise/walk)^2) without drift, infinite if nothing moves.

    Raises:
        ValueError: a negative deviation.

    Source: the book, thm-memory-optimum.
    """
    for name, value in (("noise", noise), ("walk", walk), ("drift", drift)):
        check_number(name, value, low=0.0)
    if noise == 0:
        return 1.0
    if walk == drift == 0:
        return math.inf
    a, b = (walk / noise) ** 2, (drift / noise) ** 2
    # in x = tau - 1:  4 b x^3 + (a + 4 b) x^2 + (a + b) x - 1 = 0, which has one positive root
    roots = np.roots([4 * b, a + 4 * b, a + b, -1.0])
    return 1.0 + float(max(root.real for root in roots if abs(root.imag) < 1e-9 * abs(root)))
