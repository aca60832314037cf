"""Closed forms for what the iterations of ``dynamics`` do: step limits, cycles, drift, basins, contrast.

Plain numbers in, plain numbers out, in forms that keep their digits. ``orbits`` finds the same numbers by
iterating; the tests hold the two together. Every function raises a ValueError for a number out of range.
"""

from __future__ import annotations

from math import hypot, inf, log, pi, sqrt

from llqr_sam_ref.errors import check_count, check_number


def step_limit(h: float, beta: float = 0.0) -> float:
    """Largest stable step on curvature h: 2 (1 + beta)/h.

    Args:
        h: curvature, positive, in loss per weight squared.
        beta: heavy-ball momentum, 0 <= beta < 1.

    Returns:
        The limit; eta must stay below it.

    Source: the book, (2.2); thm-heavy-ball-edge.
    """
    return 2 * (1 + _momentum(beta)) / _positive("h", h)


def sam_cycle_amplitude(h: float, eta: float, rho: float, beta: float = 0.0) -> float:
    """Half the width of SAM's two-point cycle on curvature h: a = eta rho h/(2 (1 + beta) - eta h).

    Under a diagonal U with the Euclidean norm the same formula holds with U_j h_j for h.

    Args:
        h: curvature of the cycle's direction, positive.
        eta: step size, below ``step_limit(h, beta)``.
        rho: radius of the perturbation, in weights.
        beta: heavy-ball momentum, 0 <= beta < 1.

    Returns:
        The amplitude, in weights.

    Source: Wen, Ma and Li 2023, Thm 4.8; the book, (6.2); thm-sam-two-cycle, thm-sam-cycle-momentum.
    """
    a = _stable("eta", eta, h, beta)
    return _radius(rho) * a / (2 * (1 + beta) - a)


def monge_cycle_amplitude(h: float, eta: float, rho: float, alpha: float = 1.0) -> float:
    """Half the width of M-SAM's two-point cycle: a sqrt(1 + alpha^2 h^2 a^2) = c, with c SAM's amplitude.

    a = c sqrt(2/(1 + sqrt(1 + 4 alpha^2 h^2 c^2))), the form that keeps its digits when alpha h c is small.

    Args:
        h: curvature, positive, in loss per weight squared.
        eta: step size, below ``step_limit(h)``.
        rho: radius of the perturbation, in the metric's unit of length.
        alpha: Monge strength, in weights per loss.

    Returns:
        The amplitude, in weights.

    Source: the book, (10.5); thm-msam-two-cycle.
    """
    c = sam_cycle_amplitude(h, eta, rho)
    return c * _shrink(2 * check_number("alpha", alpha, low=0.0) * h * c)


def monge_cycle_multiplier(h: float, eta: float, rho: float, alpha: float = 1.0) -> float:
    """Multiplier along M-SAM's own cycle: 1 - eta h + (2 - eta h) S/(1 + S) with S = (alpha h a)^2.

    The cycle is stable iff this stays below 1 and h is the largest curvature; SAM (alpha = 0) always is.

    Args:
        h: curvature, positive, in loss per weight squared.
        eta: step size, below ``step_limit(h)``.
        rho: radius of the perturbation, in the metric's unit of length.
        alpha: Monge strength, in weights per loss.

    Returns:
        The multiplier, no unit.

    Source: the book, (12.1); thm-msam-cycle-stability.
    """
    steepness = (alpha * h * monge_cycle_amplitude(h, eta, rho, alpha)) ** 2
    return 1 - eta * h + (2 - eta * h) * steepness / (1 + steepness)


def monge_cycle_radius_limit(h: float, eta: float, alpha: float = 1.0) -> float:
    """Radius above which M-SAM's cycle is unstable: (2 - a)^{3/2}/(2 sqrt(a) (1 - a) alpha h), a = eta h.

    Args:
        h: curvature, positive, in loss per weight squared.
        eta: step size, below ``step_limit(h)``.
        alpha: Monge strength, in weights per loss.

    Returns:
        The limit on rho; infinite for eta h >= 1 and for alpha = 0.

    Source: thm-msam-cycle-stability.
    """
    a = _stable("eta", eta, h, 0.0)
    if a >= 1 or check_number("alpha", alpha, low=0.0) == 0:
        return inf
    return sqrt(2 - a) * (2 - a) / (2 * sqrt(a) * (1 - a) * alpha * h)


def cycle_multipliers(h_j: float, h_k: float, eta: float) -> float:
    """Multiplier of direction j at the cycle of direction k: 1 - eta h_j - (h_j/h_k)^2 (2 - eta h_k).

    Its size is below 1 iff h_j < h_k: only the top curvature's cycle is stable. The same for SAM and M-SAM.

    Args:
        h_j: curvature of the direction that is tested, positive.
        h_k: curvature of the cycle's direction, positive.
        eta: step size, below ``step_limit(h_k)``.

    Returns:
        The multiplier of one step, no unit.

    Source: the book, (6.3); thm-sam-cycle-stability.
    """
    ratio = _positive("h_j", h_j) / _positive("h_k", h_k)
    return 1 - eta * h_j - ratio**2 * (2 - _stable("eta", eta, h_k, 0.0))


def sam_loss_floor(h: float, eta: float, rho: float) -> float:
    """Loss on SAM's cycle, h a^2/2 = eta^2 rho^2 h^3/(2 (2 - eta h)^2).

    Args:
        h: largest curvature, positive, in loss per weight squared.
        eta: step size, below ``step_limit(h)``.
        rho: radius of the perturbation, in weights.

    Returns:
        The loss above the minimum.

    Source: cor-sam-loss-floor.
    """
    return h * sam_cycle_amplitude(h, eta, rho) ** 2 / 2


def sam_neighbor_floor(h: float, eta: float, rho: float) -> float:
    """Loss at the perturbed point of SAM's cycle, 2 rho^2 h/(2 - eta h)^2; it tends to rho^2 h/2 with eta.

    Args:
        h: largest curvature, positive, in loss per weight squared.
        eta: step size, below ``step_limit(h)``.
        rho: radius of the perturbation, in weights.

    Returns:
        The loss above the minimum.

    Source: cor-sam-loss-floor.
    """
    return h * (sam_cycle_amplitude(h, eta, rho) + rho) ** 2 / 2


def valley_drift(h: float, h_slope: float, eta: float, rho: float) -> float:
    """Drift along a valley L = h(u) x^2/2, one step of SAM's cycle across it: -2 eta rho^2 h'/(2 - eta h)^2.

    Leading order in rho, the same for M-SAM; unnormalized SAM has none.

    Args:
        h: curvature across the valley at u, positive.
        h_slope: h'(u).
        eta: step size, below ``step_limit(h)``.
        rho: radius of the perturbation, in weights.

    Returns:
        The change of u.

    Source: the book, (7.1); thm-sam-valley-drift.
    """
    return (
        -2 * eta * (_radius(rho) / (2 - _stable("eta", eta, h, 0.0))) ** 2 * check_number("h_slope", h_slope)
    )


def stochastic_sam_shift(h_left: float, h_right: float, rho: float) -> float:
    """Shift of batch-one SAM's mean on two parabolas: -rho (h_left - h_right)/(h_left + h_right).

    Args:
        h_left: curvature of the parabola whose center is on the left, positive.
        h_right: curvature of the other, positive.
        rho: radius; the shifted mean must stay between the centers.

    Returns:
        The mean of the iterates minus the minimizer, for small eta.

    Source: the book, (7.4); thm-sam-stochastic-bias.
    """
    return -_radius(rho) * (_positive("h_left", h_left) - _positive("h_right", h_right)) / (h_left + h_right)


def unnormalized_multiplier(chi: float, eta: float, rho: float) -> float:
    """One step of the unnormalized rule on one coordinate: 1 - eta chi (1 + rho chi).

    Args:
        chi: curvature h, or contrast U h; of any sign.
        eta: step size, in units of 1/curvature; no unit under U.
        rho: radius of epsilon = rho U g.

    Returns:
        The multiplier, no unit.

    Source: the book, (6.4) with chi = h, (19.2) with chi = U h; cex-stale-preconditioner for large chi.
    """
    chi = check_number("chi", chi)
    return 1 - check_number("eta", eta, low=0.0) * chi * (1 + _radius(rho) * chi)


def contrast(h: float, hbar: float, mu: float) -> float:
    """Contrast chi = U h = h/(hbar + mu) of the local curvature with what the slow preconditioner believes.

    Args:
        h: local curvature, of any sign.
        hbar: averaged or past curvature, not negative.
        mu: damping; hbar + mu must be positive.

    Returns:
        chi, no unit.

    Source: the book, (19.1).
    """
    believed = check_number("hbar", hbar, low=0.0) + check_number("mu", mu, low=0.0)
    return check_number("h", h) / _positive("hbar + mu", believed)


def contrast_limit(eta: float, rho: float, beta: float = 0.0) -> float:
    """Contrast at which a bottom turns unstable under epsilon = rho U g.

    chi* = (sqrt(1 + 4 rho l) - 1)/(2 rho) with l = 2 (1 + beta)/eta. Written 2 l/(1 + sqrt(1 + 4 rho l)) it
    keeps its digits for small rho and is l at rho = 0. With U = I it limits the curvature itself.

    Args:
        eta: step size, positive, in units of 1/curvature; no unit under U.
        rho: radius of epsilon = rho U g.
        beta: heavy-ball momentum, 0 <= beta < 1.

    Returns:
        chi*, no unit.

    Source: the book, (19.3) and (19.4); thm-pothole-contrast, thm-pothole-momentum, thm-usam-edge.
    """
    limit = step_limit(_positive("eta", eta), beta)
    return 2 * limit / (1 + sqrt(1 + 4 * _radius(rho) * limit))


def pothole_multiplier(h: float, hbar: float, mu: float, eta: float, rho: float) -> float:
    """One step of LLQR+SAM with epsilon = rho U g on one coordinate: 1 - eta chi (1 + rho chi).

    chi = U h = h/(hbar + mu) is the contrast.

    Args:
        h: local curvature, of any sign.
        hbar: curvature the slow preconditioner believes.
        mu: damping, in units of curvature.
        eta: step size; no unit.
        rho: radius; 0 gives preconditioned descent.

    Returns:
        The multiplier, no unit.

    Source: the book, (19.2); thm-pothole-amplification.
    """
    return unnormalized_multiplier(contrast(h, hbar, mu), eta, rho)


def unnormalized_saddle_threshold(h: float) -> float:
    """Radius above which epsilon = rho g is drawn to a saddle or maximum, as eta tends to 0: 1/|h|.

    Args:
        h: the negative curvature, or its size; under U the product U h.

    Returns:
        The threshold on rho.

    Source: Kim et al. 2023 (arXiv 2301.06308), Thm 1; the book, (8.3); thm-usam-saddle-threshold.
    """
    return 1 / _size_of("h", h)


def unnormalized_saddle_limit(h: float, eta: float) -> float:
    """Radius above which a step overshoots and the saddle no longer attracts: (1 + 2/(eta |h|))/|h|.

    Args:
        h: the negative curvature, or its size; under U the product U h.
        eta: step size, positive, in units of 1/curvature; no unit under U.

    Returns:
        The upper limit on rho.

    Source: thm-usam-saddle-threshold, thm-negative-curvature-attraction.
    """
    return (1 + 2 / (_positive("eta", eta) * _size_of("h", h))) * unnormalized_saddle_threshold(h)


def pullback_slope(h: float, rho: float, alpha: float = 0.0) -> float:
    """Gradient norm s below which an escaping direction is pushed back: s sqrt(1 + alpha^2 s^2) = rho |h|.

    Args:
        h: the negative curvature, or its size.
        rho: radius of the perturbation, in weights.
        alpha: Monge strength; 0 is SAM.

    Returns:
        The slope, in units of loss per weight.

    Source: the book, (8.2); thm-saddle-pull-back.
    """
    sam_slope = _radius(rho) * _size_of("h", h)
    return sam_slope * _shrink(2 * check_number("alpha", alpha, low=0.0) * sam_slope)


def sam_basin_radius(h: float, rho: float) -> float:
    """Half-width of the region around a maximum that traps SAM: rho, whatever the curvature.

    It needs eta |h| < 1.

    Args:
        h: the negative curvature, or its size.
        rho: radius of the perturbation, in weights.

    Returns:
        The half-width, in weights.

    Source: the book, (8.1); thm-sam-maximum-basin.
    """
    return monge_basin_radius(h, rho, alpha=0.0)


def monge_basin_radius(h: float, rho: float, alpha: float = 1.0) -> float:
    """Half-width r of the region around a maximum that traps M-SAM: r sqrt(1 + alpha^2 h^2 r^2) = rho.

    It needs eta |h| rho < r; beyond that, starts near the top are thrown out.

    Args:
        h: the negative curvature, or its size.
        rho: radius of the perturbation, in the metric's unit of length.
        alpha: Monge strength, in weights per loss.

    Returns:
        The half-width, in weights.

    Source: the book, (12.2); thm-msam-maximum-basin.
    """
    return pullback_slope(h, rho, alpha) / _size_of("h", h)


def smoothing_radius(period: float, flat: int, force: float, slope: float) -> float:
    """Radius that averages cosine pits away (a heuristic): (l/2 pi) sqrt(2 d ln(force/slope)).

    Args:
        period: l, distance between pits, in weights.
        flat: d, number of flat coordinates that share the perturbation.
        force: largest slope of a pit, above ``slope``.
        slope: slope of the bowl at the pit, positive.

    Returns:
        The radius, in weights.

    Source: the book, (20.3); heu-smoothing-threshold.
    """
    excess = check_number("force", force, low=_positive("slope", slope)) / slope
    return _positive("period", period) / (2 * pi) * sqrt(2 * check_count("flat", flat) * log(excess))


def _shrink(twice: float) -> float:
    """The factor sqrt(2/(1 + sqrt(1 + y^2))): x = c * factor at y = 2 k c solves x sqrt(1 + k^2 x^2) = c."""
    return sqrt(2 / (1 + hypot(1.0, twice)))


def _positive(argument: str, value: float) -> float:
    return check_number(argument, value, low=0.0, open_low=True)


def _radius(rho: float) -> float:
    return check_number("rho", rho, low=0.0)


def _momentum(beta: float) -> float:
    return check_number("beta", beta, low=0.0, high=1.0, open_high=True)


def _size_of(argument: str, h: float) -> float:
    return _positive(f"|{argument}|", abs(check_number(argument, h)))


def _stable(argument: str, eta: float, h: float, beta: float) -> float:
    """The product eta h, if it lies in (0, 2 (1 + beta)) where the cycle exists."""
    check_number(argument, eta, low=0.0, high=step_limit(h, beta), open_low=True, open_high=True)
    return eta * h
