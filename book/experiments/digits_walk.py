"""From the published LLQR to the sampled one and on to the default, one change at a time, on badly scaled digits.

    python -m book.experiments.digits_walk           writes book/results/digits_walk.json, in minutes on one core

Every pixel of scikit-learn's digits is shifted and multiplied by a factor between 1/30 and 1: a task that needs a
preconditioner. Every method gets the same six learning rates around its customary one and the same five tuning
seeds; the rate with the lowest mean training loss at the end is run again with ten fresh seeds. All runs are
cosine to 0 over 300 steps, batch 64, no decay.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from book.experiments.store import store
from llqr_sam_ref import LLQR, SAM, ClosedForm, LLQRConfig
from llqr_sam_ref.nets.mlp import mlp
from llqr_sam_ref.train.sharpness import sharpness

TRAIN, VALIDATION, BATCH, STEPS = 1000, 300, 64, 300
TUNING_SEEDS, FRESH_SEEDS = tuple(range(5)), tuple(range(100, 110))
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
Data = tuple[Tensor, Tensor]
Maker = Callable[[nn.Module, float, Callable[[], Data]], Optimizer]


def ill_scaled(x: Tensor, generator: torch.Generator) -> Tensor:
    """(x + 2) 10^(-1.5 u) for images x (n, 64), u uniform per pixel, the same for all of them; in the type of x."""
    squeeze = 10.0 ** (-1.5 * torch.rand(64, generator=generator, dtype=torch.float64))
    return ((x + 2) * squeeze).to(x.dtype)


def data() -> tuple[Data, Data]:
    """Training and test set of badly scaled digits."""
    inputs, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    x = ill_scaled(torch.from_numpy(inputs) / 16, generator)[order].float()
    y = torch.from_numpy(labels)[order]
    test = slice(TRAIN + VALIDATION, None)
    return (x[:TRAIN], y[:TRAIN]), (x[test], y[test])


def _sgd(model: nn.Module, lr: float, nesterov: bool = False) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=nesterov)


def _llqr(config: LLQRConfig, nesterov: bool = False, rho: float = 0.0) -> Maker:
    def make(model: nn.Module, lr: float, probe: Callable[[], Data]) -> Optimizer:
        batches = None if config.probe_vector == "step" else probe
        opt: Optimizer = LLQR(_sgd(model, lr, nesterov), model, cross_entropy, config, probe=batches)
        return SAM(opt, rho=rho) if rho else opt

    return make


PUBLISHED = LLQRConfig.published()
CLOCK: dict[str, Any] = {"every": 50, "steps": 20, "lr": 1e-2, "ema": 0.5}
NORMED: dict[str, Any] = {"acts_on": "update", "step_rule": "rms"}
SAMPLED = LLQRConfig.sampled()
MEMORY: dict[str, Any] = {"curvature_memory": 20.0}
BASES: dict[str, Any] = {"basis_memory": 20.0, "gram_every": 10, "basis_every": 10}
TENSORS: dict[str, Any] = {"step_rule": "rms-per-tensor", "damping_kind": "per-tensor", "damping": 0.1}

METHODS: dict[str, tuple[str, float, Maker]] = {
    "sgd": ("SGD, momentum 0.9", 0.05, lambda model, lr, probe: _sgd(model, lr)),
    "adamw": (
        "AdamW",
        0.01,
        lambda model, lr, probe: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0),
    ),
    "sam": ("SAM, rho 0.05", 0.05, lambda model, lr, probe: SAM(_sgd(model, lr), rho=0.05)),
    "published": ("LLQR, published", 0.05, _llqr(PUBLISHED)),
    "structure": ("... E-KFAC instead of diagonal", 0.05, _llqr(LLQRConfig.published(structure="ekfac"))),
    "clock": ("... and a faster clock", 0.05, _llqr(LLQRConfig.published(structure="ekfac", **CLOCK))),
    "normed": (
        "... and U on the momentum, step of fixed RMS",
        0.004,
        _llqr(LLQRConfig.published(structure="ekfac", **CLOCK, **NORMED), nesterov=True),
    ),
    "identity": (
        "control: that step rule with U = I",
        0.004,
        _llqr(LLQRConfig.published(steps=0, **NORMED), nesterov=True),
    ),
    "identity-tensors": (
        "control: the same for every tensor by itself, U = I",
        0.004,
        _llqr(LLQRConfig.published(steps=0, acts_on="update", step_rule="rms-per-tensor"), nesterov=True),
    ),
    "closed": (
        "closed form, sampled probes every 50 steps",
        0.004,
        _llqr(SAMPLED.replace(every=50), nesterov=True),
    ),
    "sampled": ("LLQR, sampled (every 10 steps)", 0.004, _llqr(SAMPLED, nesterov=True)),
    "memory": ("... and a memory of 20 steps", 0.004, _llqr(SAMPLED.replace(**MEMORY), nesterov=True)),
    "bases": (
        "... and new bases every 10 steps",
        0.004,
        _llqr(SAMPLED.replace(**MEMORY, **BASES), nesterov=True),
    ),
    "tensors": (
        "... and one RMS, one damping per tensor",
        0.004,
        _llqr(SAMPLED.replace(**MEMORY, **BASES, **TENSORS), nesterov=True),
    ),
    "steps": (
        "... and the step's gradient as the probe",
        0.004,
        _llqr(LLQRConfig(solver=ClosedForm(renewal="eigendecomposition")), nesterov=True),
    ),
    "default": ("... and iterated bases: LLQR, the default", 0.004, _llqr(LLQRConfig(), nesterov=True)),
    "blocks": (
        "... with bases in blocks of 32",
        0.004,
        _llqr(LLQRConfig(max_side=32), nesterov=True),
    ),
    "narrow": (
        "... with no basis for a side wider than 32",
        0.004,
        _llqr(LLQRConfig(max_side=32, wide="identity"), nesterov=True),
    ),
    "default+sam": ("LLQR+SAM, the default, rho 0.05", 0.004, _llqr(LLQRConfig(), nesterov=True, rho=0.05)),
}


def train(make: Maker, lr: float, seed: int, *, measure: bool = False) -> dict[str, float]:
    """One run: mean training loss at steps 20, 100, 200 and the end; test accuracy and top eigenvalue on request."""
    (x, y), (x_test, y_test) = data()
    torch.manual_seed(seed)
    model = mlp((64, 64, 64, 10), activation="tanh")
    batches = torch.Generator().manual_seed(1000 + seed)
    probes = torch.Generator().manual_seed(2000 + seed)

    def draw(generator: torch.Generator) -> Data:
        pick = torch.randint(TRAIN, (BATCH,), generator=generator)
        return x[pick], y[pick]

    opt = make(model, lr, lambda: draw(probes))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    found: dict[str, float] = {}
    start = time.process_time()
    for step in range(STEPS + 1):
        if step in {20, 100, 200, STEPS}:
            with torch.no_grad():
                found[f"loss_{step}"] = float(cross_entropy(model(x), y))
        if step == STEPS:
            break
        batch, target = draw(batches)
        opt.zero_grad()
        torch.autograd.backward(cross_entropy(model(batch), target))
        if isinstance(opt, SAM):
            with opt.perturbed():
                opt.zero_grad()
                torch.autograd.backward(cross_entropy(model(batch), target))
        opt.step()
        schedule.step()
    found["ms_per_step"] = 1e3 * (time.process_time() - start) / STEPS
    if measure:
        with torch.no_grad():
            found["accuracy"] = float((model(x_test).argmax(1) == y_test).float().mean())
        found["top_eigenvalue"] = sharpness(model, cross_entropy, x, y, rho=0.05)["top_eigenvalue"]
    return found


def main() -> None:
    """Tune, run the fresh seeds, and store everything."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, (label, customary, make) in METHODS.items():
        grid = [customary * factor for factor in FACTORS]
        tuning = [
            statistics.mean(train(make, lr, seed)[f"loss_{STEPS}"] for seed in TUNING_SEEDS) for lr in grid
        ]
        finite = [loss if math.isfinite(loss) else math.inf for loss in tuning]
        best = grid[min(range(len(grid)), key=finite.__getitem__)]
        runs = [train(make, best, seed, measure=True) for seed in FRESH_SEEDS]
        results[name] = {
            "label": label,
            "grid": grid,
            "tuning_loss": [loss if math.isfinite(loss) else None for loss in tuning],
            "lr": best,
            "runs": runs,
        }
        final = [run[f"loss_{STEPS}"] for run in runs]
        print(f"{label:46} lr {best:<7g} loss {statistics.mean(final):.2e} +- {statistics.stdev(final):.1e}")
    protocol = {
        "command": "python -m book.experiments.digits_walk",
        "tuning_seeds": TUNING_SEEDS,
        "fresh_seeds": FRESH_SEEDS,
        "steps": STEPS,
        "batch": BATCH,
    }
    store("digits_walk", protocol, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
