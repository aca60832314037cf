"""What the figures that compute in the page must compute, figure after figure (hence the length).

Each function here takes the arguments of the JavaScript function of the same name (the keys of its one
argument) and returns the same mapping, with numbers from ``llqr_sam_ref.exact``. Tests hold the two together,
and the build draws from these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.exact import (
    clock,
    dynamics,
    geometry,
    landscapes,
    lqr,
    network,
    optima,
    orbits,
    relaxation,
    stability,
)
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.preconditioner import identity_preconditioner
from llqr_sam_ref.figures.noise import road_noise

Vector = Sequence[float]
Numbers = dict[str, Any]
Figure = Callable[..., Numbers]
FIGURES: dict[str, Figure] = {}


def reference(name: str, arguments: dict[str, Any]) -> Numbers:
    """The numbers of a figure's function, by formulas other than the page's wherever there are any.

    Args:
        name: of the function in ``book/figures``, for instance ``"cycle"``.
        arguments: its arguments, by name.

    Returns:
        What the function returns: numbers, lists of numbers and booleans by name.

    Raises:
        ValueError: an unknown name.
    """
    return {
        key: _plain(value) for key, value in FIGURES[check_choice("name", name, FIGURES)](**arguments).items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _figure(name: str) -> Callable[[Figure], Figure]:
    def register(function: Figure) -> Figure:
        FIGURES[name] = function
        return function

    return register


def _circle(w: Array, radii: Array | Vector, K: int) -> Float[np.ndarray, "K 2"]:
    angle = 2 * np.pi * np.arange(K) / K
    points: Float[np.ndarray, "K 2"] = w + np.stack(
        [radii[0] * np.cos(angle), radii[1] * np.sin(angle)], axis=-1
    )
    return points


def _rule(rule: str, eta: float, rho: float) -> dynamics.Method:
    """GD, SAM or M-SAM, or SAM with the clipped radius, as the figures name them."""
    makers: dict[str, Callable[[float, float], dynamics.Method]] = {
        "sam": dynamics.sam,
        "monge": dynamics.monge_sam,
        "clip": dynamics.clipped_sam,
    }
    return dynamics.gd(eta) if rule == "gd" else makers[rule](eta, rho)


def _sam(eta: float, rho: float, alpha: float) -> dynamics.Method:
    return dynamics.monge_sam(eta, rho, alpha) if alpha > 0 else dynamics.sam(eta, rho)


@_figure("compass")
def _compass(g: Vector, d: Vector, phi: float, rho: float) -> Numbers:
    turn = np.array([[math.cos(phi), -math.sin(phi)], [math.sin(phi), math.cos(phi)]])
    metric = geometry.PositiveDefinite(turn @ np.diag(d) @ turn.T)
    gradient = np.asarray(g, dtype=float)
    step = geometry.ascent_step(gradient, 1.0, metric)
    across = gradient[0] * step[1] - gradient[1] * step[0]
    return {
        "eps": geometry.ascent_step(gradient, rho, metric),
        "gain": geometry.ascent_gain(gradient, rho, metric),
        "angle": math.degrees(math.atan2(abs(across), gradient @ step)),
    }


@_figure("ravine")
def _ravine(h: Vector, eta: float, u: Vector, w: Vector, n: int = 40) -> Numbers:
    bowl, method = (
        landscapes.bowl(np.asarray(h, dtype=float)),
        dynamics.preconditioned_gd(eta, np.asarray(u, float)),
    )
    rate = float(np.abs(np.linalg.eigvals(np.eye(2) - eta * np.diag(u) @ bowl.hessian(np.zeros(2)))).max())
    return {
        "path": dynamics.trajectory(method, bowl, np.asarray(w, dtype=float), n),
        "rate": rate,
        "stepsToMillionth": math.inf if rate >= 1 else 0.0 if rate == 0 else math.log(1e-6) / math.log(rate),
    }


@_figure("rulers")
def _rulers(w: float, kl: float) -> Numbers:
    def chances(v: float) -> Float[np.ndarray, " 2"]:  # of both outcomes, each without cancellation
        return np.array([1 / (1 + math.exp(-v)), 1 / (1 + math.exp(v))])

    def divergence(v: float) -> float:
        here = chances(w)
        return float(here @ (np.log(here) - np.log(chances(v))))

    def end(direction: int) -> float:
        far = 1.0
        while divergence(w + direction * far) < kl:
            far *= 2
        return w + direction * orbits.bisect(lambda r: divergence(w + direction * r) < kl, 0.0, far, 1e-15)

    fisher = float(chances(w).prod())
    return {
        "left": end(-1),
        "right": end(1),
        "fisherHalf": math.sqrt(2 * kl / fisher),
        "F": fisher,
        "p": float(chances(w)[0]),
    }


@_figure("twin")
def _twin(a: float, rho: float, K: int = 3600) -> Numbers:
    banana, w = landscapes.banana(), np.array([a, 1 / a])
    return {
        "hmax": np.linalg.eigvalsh(banana.hessian(w))[-1],
        "worst": banana.value(_circle(w, (rho, rho), K)).max(),
        "adaptive": banana.value(_circle(w, rho * w, K)).max(),
    }


@_figure("rename")
def _rename(w: Vector, A: Vector, rho: float, rule: str) -> Numbers:
    def step(g: Float[np.ndarray, " 2"], v: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
        metrics: dict[str, geometry.Metric] = {
            "sam": geometry.EUCLIDEAN,
            "monge": geometry.Monge(g),
            "relative": geometry.Adaptive(v),
        }
        return geometry.ascent_step(g, rho, metrics[rule])

    point, scale = np.asarray(w, dtype=float), np.asarray(A, dtype=float)
    gradient = landscapes.banana().gradient(point)
    here, there = step(gradient, point), scale * step(scale * gradient, point / scale)
    length = float(np.linalg.norm(here))
    return {
        "here": here,
        "there": there,
        "change": float(np.linalg.norm(there - here)) / length if length else math.nan,
    }


@_figure("samstep")
def _samstep(w: Vector, rho: float, eta: float, alpha: float, K: int = 3600) -> Numbers:
    banana, point, method = landscapes.banana(), np.asarray(w, dtype=float), _sam(eta, rho, alpha)
    g = banana.gradient(point)
    e = dynamics.perturbation(method, g)
    radius = float(np.linalg.norm(e))
    around = banana.value(_circle(point, (radius, radius), K))
    return {
        "g": g,
        "e": e,
        "wp": point + e,
        "gp": banana.gradient(point + e),
        "L": banana.value(point),
        "Lp": banana.value(point + e),
        "linear": banana.value(point) + g @ e,
        "worst": around.max(),
        "worstAngle": 360 * int(around.argmax()) / K,
        "next": dynamics.step(method, banana, point),
        "plain": dynamics.step(dynamics.gd(eta), banana, point),
    }


@_figure("cycle")
def _cycle(h: float, eta: float, rho: float, x: float, alpha: float, n: int = 40) -> Numbers:
    path = dynamics.trajectory(_sam(eta, rho, alpha), landscapes.bowl(np.array([h])), np.array([x]), n)[:, 0]
    if eta >= stability.step_limit(h):
        amplitude = math.nan
    elif alpha > 0:
        amplitude = stability.monge_cycle_amplitude(h, eta, rho, alpha)
    else:
        amplitude = stability.sam_cycle_amplitude(h, eta, rho)
    return {"path": path, "amplitude": amplitude}


@_figure("valley")
def _valley(w: Vector, eta: float, rho: float, alpha: float, n: int = 500) -> Numbers:
    path = dynamics.trajectory(
        _sam(eta, rho, alpha), landscapes.curved_valley(), np.asarray(w, dtype=float), n
    )
    return {"path": path}


@_figure("trap")
def _trap(w: Vector, h: float, eta: float, rho: float, alpha: float, n: int = 400) -> Numbers:
    path = dynamics.trajectory(
        _sam(eta, rho, alpha), landscapes.double_well_saddle(h), np.asarray(w, dtype=float), n
    )
    return {"path": path, "basin": stability.monge_basin_radius(h, rho, alpha)}


@_figure("escapes")
def _escapes(h: float, eta: float, rho: float, alpha: float, n: int = 400) -> Numbers:
    starts = [
        (x, side * k * 0.115) for x in (-1, -0.5, 0, 0.5, 1) for side in (-1, 1) for k in (1, 2, 3, 4, 5, 6)
    ]
    ends = dynamics.trajectory(_sam(eta, rho, alpha), landscapes.double_well_saddle(h), np.array(starts), n)[
        -1
    ]
    return {"left": np.abs(ends[:, 1]) > 0.5}


@_figure("graphwalk")
def _graphwalk(c: float, x: float, rho: float) -> Numbers:
    curve, place = landscapes.bowl(np.array([c])), np.array([x], dtype=float)
    slope = curve.gradient(place)
    reached: dict[str, geometry.Metric] = {"Sam": geometry.EUCLIDEAN, "Monge": geometry.Monge(slope)}
    found: Numbers = {"slope": slope[0]}
    for name, metric in reached.items():
        end = place + geometry.ascent_step(slope, rho, metric)
        found[name.lower()] = end[0]
        found[f"rise{name}"] = curve.value(end) - curve.value(place)
        found[f"linear{name}"] = geometry.ascent_gain(slope, rho, metric)
    return found


@_figure("race")
def _race(rule: str, w: Vector, eta: float, rho: float, n: int = 200) -> Numbers:
    banana, method = landscapes.banana(), _rule(rule, eta, rho)
    path = dynamics.trajectory(method, banana, np.asarray(w, dtype=float), n)
    moved = dynamics.perturbation(method, banana.gradient(path[:-1]))
    return {"path": path, "radius": np.linalg.norm(moved, axis=-1)}


@_figure("stranded")
def _stranded(rule: str, eta: float, rho: float) -> Numbers:
    side = (2 * np.arange(10) - 9) / 3  # symmetric to the last bit: the antidiagonal is a knife's edge
    starts = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(100, 2)
    ends = dynamics.trajectory(_rule(rule, eta, rho), landscapes.banana(), starts, 200)[-1]
    return {"count": int((np.linalg.norm(ends, axis=-1) < 0.5).sum())}


@_figure("steer")
def _steer(A: float, B: float, Q: float, R: float, QN: float, N: int, x: float) -> Numbers:
    found = lqr.solve(lqr.Problem.repeated(N, A=A, B=B, Q=Q, R=R, Q_end=QN), np.array([x]))
    return {
        "P": [P.item() for P in found.P],
        "K": [K.item() for K in found.K],
        "xs": [state.item() for state in found.x],
        "us": [control.item() for control in found.u],
        "cost": found.value,
    }


@_figure("rival")
def _rival(A: float, B: float, Q: float, R: float, QN: float, N: int, x: float, plan: str) -> Numbers:
    problem = lqr.Problem.repeated(N, A=A, B=B, Q=Q, R=R, Q_end=QN)
    prices = [Q] * (N - 1) + [QN]
    gains = {
        "nothing": [0.0] * N,
        "once": [-A / B] + [0.0] * (N - 1),
        "greedy": [-B * price * A / (R + B * price * B) for price in prices],
    }[check_choice("plan", plan, ("nothing", "once", "greedy"))]
    position, efforts = x, []
    for gain in gains:
        efforts.append(gain * position)
        position = A * position + B * efforts[-1]
    controls = [np.array([effort]) for effort in efforts]
    states = lqr.rollout(problem, controls, np.array([x]))
    return {
        "xs": [state.item() for state in states],
        "us": efforts,
        "cost": lqr.cost(problem, controls, np.array([x])),
    }


@_figure("twoweight")
def _twoweight(w0: float, w1: float, mu: float, newton: bool) -> Numbers:
    net, data, target = network.two_weight_network()
    banana, w = landscapes.banana(), np.array([w0, w1], dtype=float)
    problem = network.layerwise_lqr(
        net, w, data, target, divergence="newton" if newton else "gauss-newton", damping=mu
    )
    sweep = lqr.riccati(problem)
    step = lqr.stationary_point(problem).step
    stages = [stage.item() for stage in sweep.R_tilde]
    return {
        "x": [state.item() for state in net.states(w, data)],
        "lambda": [costate.item() for costate in net.costates(w, data, target)[1:]],
        "g": net.gradient(w, data, target),
        "stages": stages,
        "M1": sweep.M_tilde[1].item(),
        "P1": sweep.P[1].item(),
        "p1": sweep.p[1].item(),
        "K1": sweep.K[1].item(),
        "k1": sweep.k[1].item(),
        "step": step,
        "minimum": sweep.is_minimum,
        "det": math.prod(stages),
        "next": w + step,
        "Lnext": banana.value(w + step),
    }


@_figure("probes")
def _probes(
    turn: float,
    T: int,
    a: float,
    size: float,
    refits: int,
    gamma: float,
    G: Sequence[Vector] = ((1.1, 0.9), (0.9, 1.1)),
) -> Numbers:
    curvature = np.asarray(G, dtype=float)
    U, target = identity_preconditioner([[(2,)]], "dense"), optima.dense_optimum(curvature)
    start, history = float(np.linalg.norm(np.eye(2) - target)), []
    with np.errstate(over="ignore", invalid="ignore"):  # a diverging inner loop is a result
        for refit in range(refits):
            angle = math.radians(refit * turn)
            g = size * np.array([math.cos(angle), math.sin(angle)])
            U = relaxation.average(
                U, relaxation.inner_loop(U, g, curvature, steps=T, eta_U=a, beta=0.0, clip=None), gamma
            )
            history.append({
                "error": float(np.linalg.norm(U.to_dense() - target)) / start,
                "J": relaxation.relaxed_objective(U, g, curvature),
            })
    return {"U": U.to_dense(), "hist": history}


@_figure("rotated")
def _rotated(theta: float, k: float) -> Numbers:
    c, s = math.cos(math.radians(theta)), math.sin(math.radians(theta))
    turn = np.array([[c, -s], [s, c]])
    H = turn @ np.diag([k, 1.0]) @ turn.T
    H = (H + H.T) / 2
    left = relaxation.condition_left
    return {
        "H": [H[0, 0], H[0, 1], H[1, 1]],
        "scalar": left(optima.scalar_optimum(H) * np.eye(2), H),
        "diagonal": left(np.diag(optima.diagonal_optimum(H)), H),
        "dense": left(optima.dense_optimum(H), H),
    }


@_figure("contrast")
def _contrast(eta: float, rho: float, beta: float, mu: float, hbar: float, h: float) -> Numbers:
    bottom, edge = stability.contrast(1.0, hbar, mu), stability.contrast_limit
    limits = {"gd": edge(eta, 0.0, beta), "sam": edge(eta, rho, beta)}
    steps = {"gd": (h, 0.0), "llqr": (h * bottom, 0.0), "sam": (h, rho), "both": (h * bottom, rho)}
    return {
        "chi": limits["sam"],
        "U": bottom,
        "contrast": stability.contrast(h, hbar, mu),
        "thresholds": limits | {"llqr": limits["gd"] / bottom, "both": limits["sam"] / bottom},
        "multipliers": {name: stability.unnormalized_multiplier(x, eta, r) for name, (x, r) in steps.items()},
    }


@_figure("road")
def _road(
    P: bool, eta: float, rho: float, seed: int, k: float, sigma: float, every: int = 20, steps: int = 3000
) -> Numbers:
    path = _road_path(P, eta, rho, seed, k, sigma, steps)
    return {"w": path[-1], "frames": path[::every]}


@lru_cache(maxsize=4)
def _road_path(
    P: bool, eta: float, rho: float, seed: int, k: float, sigma: float, steps: int
) -> Float[np.ndarray, "time 25"]:
    road = landscapes.pothole_road(pit_curvature=k)
    h = np.concatenate([np.full(5, 100.0), np.full(20, 0.1)])
    method = dynamics.llqr_sam(eta, rho, 1 / h) if P else dynamics.sam(eta, rho)
    start = np.concatenate([np.zeros(5), np.full(20, 4.0)])
    return dynamics.trajectory(method, road, start, steps, sigma * road_noise(seed, steps, 25))


@_figure("clock")
def _clock(
    T: int,
    every: int,
    product: float,
    probe: float,
    gamma: float,
    lrU: float,
    clip: float,
    beta: float,
    perturbed: bool,
) -> Numbers:
    overhead, travel = clock.overhead(T, every, product, probe), clock.travel_budget(T, lrU, clip, beta)
    return {
        "overhead": overhead,
        "total": overhead + (2 if perturbed else 1),
        "memory": clock.memory(every, gamma),
        "travelPerRefit": travel,
        "keptPerRefit": (1 - gamma) * travel,
    }


@_figure("filter")
def _filter(w: float, T: int, a: float) -> Numbers:
    return {
        "s": optima.early_stopping_filter(w, T, a),
        "newton": 1 / w if w else math.inf,
        "stable": a * w < 2,
    }


@_figure("fight")
def _fight(curves: dict[str, Vector], costs: dict[str, float], steps: int, budget: float) -> Numbers:
    loss = {}
    for name, curve in curves.items():
        share = (np.arange(len(curve)) + 0.5) / len(curve)
        loss[name] = float(np.interp(budget, costs[name] * steps * share, curve))
    return {"loss": loss, "done": {name: budget >= cost * steps for name, cost in costs.items()}}
