"""Potholes: who is unstable, who leaves a pit, who gets anywhere; on one coordinate and on twenty-five.

    python -m book.experiments.potholes              writes book/results/potholes.json, in minutes on one core
    python -m book.experiments.potholes --quick      prints a small version and writes nothing

Five questions. ``hole``: at which curvature a smooth hole's bottom turns unstable, and at which the iterate leaves it,
without noise. ``road``: which share of twenty flat coordinates leaves its cosine pit and how much of the bowl's loss is
gone, with U nowhere, in the step, in the question, in both. ``thresholds``: radii of first exit and of draining against
theory. ``thermal``: what noise and learning rate do without a question. ``learned``: the same road with maps that were
learned there, the package's own LLQR among them.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from math import inf, isfinite, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from book.experiments.store import store
from llqr_sam_ref import LLQR, SAM, LLQRConfig
from llqr_sam_ref.exact import dynamics, landscapes, stability
from llqr_sam_ref.exact.dynamics import Method, Normalized, Steepest, Unnormalized
from llqr_sam_ref.exact.escape import Pit, escape_radius
from llqr_sam_ref.exact.geometry import Preconditioned
from llqr_sam_ref.exact.landscapes import Landscape

Array = NDArray[np.float64]
STIFF, H_STIFF = 5, 100.0
STEPS, SEEDS = 3000, 8
WIDTH, BASIN, DAMPING = 0.05, 0.2, 0.05  # of the smooth hole, and of what its map believes
ETA, RHO = 0.05, 0.4


def last(orbit: Iterator[Array]) -> Array:
    """Where an orbit ends."""
    return deque(orbit, maxlen=1)[0]


def smooth_holes(curvature: Array) -> Landscape:
    """One coordinate, many holes at once: axis 0 of the weights runs over the curvatures that the holes add."""

    def bump(w: Array) -> Array:
        return np.asarray(curvature[:, None, None] * np.exp(-((w / WIDTH) ** 2) / 2))

    return Landscape(
        "holes",
        1,
        lambda w: (BASIN * w**2 / 2 - WIDTH**2 * bump(w))[..., 0],
        lambda w: BASIN * w + w * bump(w),
        lambda w: (BASIN + (1 - (w / WIDTH) ** 2) * bump(w))[..., None],
    )


def hole_methods(unnormalized: bool, rho: float = RHO) -> dict[str, Method]:
    """Six methods on the hole, U = 1/(0.2 + 0.05) = 4 where there is one."""
    U = np.array([1 / (BASIN + DAMPING)])
    kind = Unnormalized if unnormalized else Normalized
    return {
        "GD": dynamics.gd(ETA),
        "LLQR": dynamics.preconditioned_gd(ETA, U),
        "SAM": Method("neither", ETA, kind(rho)),
        "U in the step": Method("step", ETA, kind(rho), U=U),
        "U in the question": Method("question", ETA, kind(rho, Preconditioned(U))),
        "LLQR+SAM": Method("both", ETA, kind(rho, Preconditioned(U)), U=U),
    }


def hole(
    unnormalized: bool, rho: float = RHO, points: int = 461, steps: int = 1500
) -> dict[str, dict[str, float | None]]:
    """Curvature at the hole's bottom where 1e-6 grows, and where 41 starts in the hole end beyond three widths of it.

    The second is the least curvature with most starts outside; for the first one starts at 1e-6, in float64.
    """
    h = np.geomspace(1.0, 400.0, points)
    near = np.full((points, 1, 1), 1e-6)
    spread = np.broadcast_to(np.linspace(-0.9, 0.9, 41)[None, :, None] * WIDTH + 1e-5, (points, 41, 1)).copy()
    holes = smooth_holes(h - BASIN)
    result: dict[str, dict[str, float | None]] = {}
    for name, method in hole_methods(unnormalized, rho).items():
        grown = np.abs(last(dynamics.orbit(method, holes, near, 60))[:, 0, 0]) > 1e-6
        end = last(dynamics.orbit(method, holes, spread, steps))
        left = (np.abs(end[..., 0]) > 3 * WIDTH).mean(1) > 0.5
        first = {"unstable": grown, "left": left}
        result[name] = {what: float(h[np.argmax(at)]) if at.any() else None for what, at in first.items()}
    return result


def road_of(pit: Pit, h_stiff: float = H_STIFF) -> tuple[Landscape, Array, Array]:
    """The road with such pits, its average curvatures, and the start at the bottom of a pit in every flat direction."""
    road = landscapes.pothole_road(STIFF, pit.flat, h_stiff, pit.h, pit.k, pit.period)
    h = np.concatenate([np.full(STIFF, h_stiff), np.full(pit.flat, pit.h)])
    return road, h, np.concatenate([np.zeros(STIFF), np.full(pit.flat, pit.start)])


def drive(
    method: Method, pit: Pit, *, steps: int = STEPS, seeds: int = SEEDS, h_stiff: float = H_STIFF
) -> dict[str, list[float]]:
    """Run it with every seed: shares of coordinates ever out and out at the end, and bowl losses, one per seed.

    "flat" and "stiff" are the losses of the bowl without its pits, at the end; "start" of it where one begins.
    """
    road, h, start = road_of(pit, h_stiff)
    generators = [np.random.default_rng(seed) for seed in range(seeds)]
    ever = np.zeros((seeds, pit.flat), bool)

    def noise(_: int, shape: tuple[int, ...]) -> Array:
        return pit.sigma * np.stack([generator.standard_normal(shape[1]) for generator in generators])

    starts = np.broadcast_to(start, (seeds, len(start)))
    for w in dynamics.orbit(method, road, starts, steps, noise if pit.sigma else None):
        with np.errstate(invalid="ignore"):
            ever |= ~(np.abs(w[:, STIFF:] - pit.start) <= pit.period / 2)
    with np.errstate(over="ignore", invalid="ignore"):
        loss = h * w**2 / 2
    return {
        "ever": ever.mean(1).tolist(),
        "out": (~(np.abs(w[:, STIFF:] - pit.start) <= pit.period / 2)).mean(1).tolist(),
        "flat": loss[:, STIFF:].sum(1).tolist(),
        "stiff": loss[:, :STIFF].sum(1).tolist(),
    }


BASE = Pit()
U_ROAD = 1 / road_of(BASE)[1]


def road_methods() -> dict[str, Method]:
    """Where U is, with the Euclidean norm and radius 1.5 where there is a question."""
    metric = Preconditioned(U_ROAD)
    return {
        "GD": dynamics.gd(0.01),
        "LLQR": dynamics.preconditioned_gd(0.005, U_ROAD),
        "SAM": dynamics.sam(0.01, 1.5),
        "U in the question": Method("question", 0.01, Normalized(1.5, metric)),
        "U in the step": Method("step", 0.005, Normalized(1.5), U=U_ROAD),
        "LLQR+SAM": dynamics.llqr_sam(0.005, 1.5, U_ROAD),
        "LLQR+SAM, metric norm, rho 0.5": Method("metric", 0.005, Steepest(0.5, metric), U=U_ROAD),
        "LLQR, eta 0.0149": dynamics.preconditioned_gd(0.0149, U_ROAD),
    }


SETTINGS = {
    "base": BASE,
    "noise 0.5": replace(BASE, sigma=0.5),
    "noise 1.5": replace(BASE, sigma=1.5),
    "period 2, k 10": replace(BASE, period=2.0, k=10.0),
    "period 0.5, k 40, eta 0.002": replace(BASE, period=0.5, k=40.0, eta=0.002),
    "5 flat": replace(BASE, flat=5),
    "60 flat": replace(BASE, flat=60),
    "k 40, eta 0.0025": replace(BASE, k=40.0, eta=0.0025),
    "k 10, noise 0.5": replace(BASE, k=10.0, sigma=0.5),
    "eta 0.002": replace(BASE, eta=0.002),
    "start 3": replace(BASE, start=3.0),
}


def exact_sam(pit: Pit, rho: float) -> Method:
    """LLQR+SAM with the exact average curvature in U and the Euclidean norm."""
    return dynamics.llqr_sam(pit.eta, rho, 1 / road_of(pit)[1])


def thresholds(pit: Pit, *, steps: int = 2000, seeds: int = 4, radii: int = 40) -> dict[str, Any]:
    """First radius of a geometric grid with half of the coordinates ever out; first with half of the flat loss gone."""
    smooth = stability.smoothing_radius(
        pit.period, pit.flat, pit.k * pit.period / (2 * pi), pit.h * pit.start
    )
    grid = np.geomspace(0.15 * smooth, 2 * smooth, radii)
    first = pit.flat * pit.h * pit.start**2 / 2
    exit_at = drain_at = None
    for rho in grid:
        end = drive(exact_sam(pit, float(rho)), pit, steps=steps, seeds=seeds)
        if exit_at is None and np.mean(end["ever"]) >= 0.5:
            exit_at = float(rho)
        if drain_at is None and np.mean(end["flat"]) <= first / 2:
            drain_at = float(rho)
        if exit_at is not None and drain_at is not None:
            break
    mean_field = escape_radius(pit, steps)
    return {
        "pit": asdict(pit),
        "exit": exit_at,
        "exit_predicted": mean_field if isfinite(mean_field) else None,
        "drain": drain_at,
        "drain_predicted": smooth,
        "grid_ratio": float(grid[1] / grid[0]),
    }


def thermal(steps: int = STEPS, seeds: int = SEEDS) -> dict[str, list[dict[str, Any]]]:
    """Without a question: noise at eta 0.005, and learning rates at noise 1; without noise: radii."""
    noise = [
        {"sigma": sigma}
        | drive(
            dynamics.preconditioned_gd(0.005, U_ROAD), replace(BASE, sigma=sigma), steps=steps, seeds=seeds
        )
        for sigma in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    ]
    rates = [
        {"eta_q": q, "eta": q * BASE.h / (BASE.k + BASE.h)}
        | drive(
            dynamics.preconditioned_gd(q * BASE.h / (BASE.k + BASE.h), U_ROAD), BASE, steps=steps, seeds=seeds
        )
        for q in (1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5)
    ]
    silent = []
    road, h, start = road_of(BASE)
    for rho in (0.3, 0.5, 0.7, 1.0, 1.25, 1.5, 1.75, 2.0):
        starts = start + 0.01 * np.random.default_rng(0).standard_normal((seeds, len(start)))
        w = last(dynamics.orbit(exact_sam(BASE, rho), road, starts, steps))
        out = np.abs(w[:, STIFF:] - BASE.start) > BASE.period / 2
        silent.append({
            "rho": rho,
            "out": out.mean(1).tolist(),
            "flat": (h * w**2 / 2)[:, STIFF:].sum(1).tolist(),
        })
    return {"noise": noise, "rates": rates, "silent": silent}


class Road(nn.Module):
    """The road as a module: its weights are the point, its output the loss with the noise as a tilt."""

    def __init__(self, pit: Pit) -> None:
        super().__init__()
        _, h, start = road_of(pit)
        self.pit = pit
        self.w = nn.Parameter(torch.from_numpy(start.copy()))
        self.register_buffer("h", torch.from_numpy(h))
        self.h: torch.Tensor

    def forward(self, xi: torch.Tensor) -> torch.Tensor:
        """The loss at the weights, tilted by the noise xi, shape (25,)."""
        omega = 2 * pi / self.pit.period
        pits = self.pit.k / omega**2 * (1 - torch.cos(omega * self.w[STIFF:])).sum()
        return (self.h * self.w**2).sum() / 2 + pits + (xi * self.w).sum()


def shipped(
    pit: Pit,
    config: LLQRConfig | None,
    lr: float,
    rho: float,
    seed: int,
    steps: int = STEPS,
    *,
    unit: bool = False,
) -> dict[str, float]:
    """SAM(LLQR(SGD)) on the road as the package ships it, cosine decay to 0; a config of None is SGD.

    ``unit`` gives SGD the default's steps of root mean square 1: the default with U = I. "flat_over_stiff" is U's mean
    over the flat directions, divided by that over the stiff ones.
    """
    model = Road(pit)
    base = torch.optim.SGD(model.parameters(), lr=lr)
    inner: torch.optim.Optimizer = base if config is None else LLQR(base, model, config=config)
    opt = SAM(inner, rho=rho) if rho else inner
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        xi = torch.from_numpy(pit.sigma * rng.standard_normal(len(model.w)))
        opt.zero_grad()
        model(xi).backward()
        if isinstance(opt, SAM):
            with opt.perturbed():
                opt.zero_grad()
                model(xi).backward()
        if unit:
            assert model.w.grad is not None
            model.w.grad /= model.w.grad.square().mean().sqrt()
        opt.step()
        schedule.step()
    w = model.w.detach().numpy()
    result = {
        "out": float((np.abs(w[STIFF:] - pit.start) > pit.period / 2).mean()),
        "flat": float(pit.h * (w[STIFF:] ** 2).sum() / 2),
        "stiff": float(H_STIFF * (w[:STIFF] ** 2).sum() / 2),
    }
    if isinstance(inner, LLQR):
        (step,) = inner.preconditioned_gradients()
        assert step is not None
        assert model.w.grad is not None
        U = (step / model.w.grad).numpy()  # a diagonal U, read off where it was last used
        result["flat_over_stiff"] = float(U[STIFF:].mean() / U[:STIFF].mean())
    return result


def walked(
    memory: float, points: int, eta: float, rho: float, seed: int, steps: int = STEPS
) -> dict[str, float]:
    """U = 1/(c + mu), c the mean curvature that a walk of that memory has seen, at that many random places a step.

    Newton's curvature, at places within half a bowl of the iterate; points = 0 takes the iterate itself. mu = 0.1.
    """
    road, h, w = road_of(BASE)
    rng = np.random.default_rng(seed)
    c = h + np.where(np.arange(len(h)) < STIFF, 0.0, BASE.k)
    U = 1 / (c + 0.1)
    for _ in range(steps):
        if not np.all(np.abs(w) < 1e6):  # diverged; a walk that has met NaN has no curvature
            w = np.full_like(w, inf)
            break
        at = w + rng.uniform(-4, 4, (points, len(w))) if points else w[None]
        seen = np.einsum("pjj->pj", road.curvature(at)).mean(0)
        c = c + (seen - c) / memory
        U = 1 / (np.maximum(c, 0.0) + 0.1)
        method = dynamics.llqr_sam(eta, rho, U) if rho else dynamics.preconditioned_gd(eta, U)
        w = dynamics.step(method, road, w, rng.standard_normal(len(w)))
    out = np.abs(w[STIFF:] - BASE.start) > BASE.period / 2
    return {
        "out": float(out.mean()),
        "flat": float((h * w**2 / 2)[STIFF:].sum()),
        "stiff": float((h * w**2 / 2)[:STIFF].sum()),
        "flat_over_stiff": float(U[STIFF:].mean() / U[:STIFF].mean()),
    }


RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
Map = Callable[[float, float, int], dict[str, float]]  # learning rate, radius, seed -> what the walk came to
DIAGONAL = LLQRConfig(structure="diagonal")
RAW = LLQRConfig(structure="diagonal", step_rule="none", acts_on="gradient")


def learned(steps: int = STEPS, seeds: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Every map with its own best learning rate, least flat loss plus stiff loss, at radius 0 and 1.5."""

    def ours(config: LLQRConfig | None, unit: bool = False) -> Map:
        return lambda lr, rho, seed: shipped(BASE, config, lr, rho, seed, steps, unit=unit)

    def newton(memory: float, points: int, factor: float) -> Map:
        return lambda lr, rho, seed: walked(memory, points, factor * lr, rho, seed, steps)

    maps: dict[str, Map] = {
        "SGD": ours(None),
        "U = I, steps of fixed length": ours(None, unit=True),
        "LLQR, the default": ours(DIAGONAL),
        "LLQR, no step rule": ours(RAW),
        "Newton curvature underfoot, memory 20": newton(20.0, 0, 3.0),
        "Newton curvature, 64 places per step, memory 1000": newton(1000.0, 64, 1.0),
    }
    return {str(rho): [_best(label, run, rho, seeds) for label, run in maps.items()] for rho in (0.0, 1.5)}


def _best(label: str, run: Map, rho: float, seeds: int) -> dict[str, Any]:
    tried = [(lr, [run(lr, rho, 100 + seed) for seed in range(seeds)]) for lr in RATES]
    cost = [np.mean([r["flat"] + r["stiff"] for r in runs]) for _, runs in tried]
    at = int(np.argmin(np.nan_to_num(cost, nan=inf)))
    return {"label": label, "lr": tried[at][0], "tried": dict(zip(map(str, RATES), cost, strict=True))} | {
        key: [run[key] for run in tried[at][1]] for key in tried[at][1][0]
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run all five, print a summary, and store it unless it is the quick version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is written")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    begin = time.perf_counter()
    points = 61 if quick else 461
    steps, seeds = (400, 2) if quick else (STEPS, SEEDS)
    names = ["base", "5 flat"] if quick else list(SETTINGS)
    result: dict[str, Any] = {
        "hole": {
            "unnormalized, rho 0.4": hole(True, 0.4, points),
            "Euclidean, rho 0.4": hole(False, 0.4, points),
            "Euclidean, rho 0.02": hole(False, 0.02, points),
        }
    }
    print(result["hole"], flush=True)
    result["road"] = {name: drive(m, BASE, steps=steps, seeds=seeds) for name, m in road_methods().items()}
    for name, end in result["road"].items():
        print(name, {key: round(float(np.mean(value)), 3) for key, value in end.items()}, flush=True)
    result["thresholds"] = {}
    for name in names:
        row = thresholds(SETTINGS[name], steps=steps, seeds=2 if quick else 4, radii=12 if quick else 40)
        result["thresholds"][name] = row
        print(
            name,
            {key: row[key] for key in ("exit", "exit_predicted", "drain", "drain_predicted")},
            flush=True,
        )
    result["thermal"] = thermal(steps, seeds)
    for group in result["thermal"].values():
        for row in group:
            print({k: round(float(np.mean(v)), 3) for k, v in row.items()}, flush=True)
    result["learned"] = learned(60 if quick else STEPS, 1 if quick else 3)
    for rho, rows in result["learned"].items():
        for row in rows:
            print(
                rho,
                row["label"],
                row["lr"],
                {k: np.round(np.mean(row[k]), 3) for k in row if k not in {"label", "lr", "tried"}},
            )
    if not quick:
        protocol = {
            "command": "python -m book.experiments.potholes",
            "seeds": list(range(SEEDS)),
            "learned_seeds": [100, 101, 102],
            "steps": STEPS,
            "threshold_steps": 2000,
        }
        store("potholes", protocol, result, time.perf_counter() - begin)
    return result


if __name__ == "__main__":
    main()
