"""A slow map and a fast question: does it matter that the two have different clocks?

    python -m book.experiments.timescales --out RUNS --store      an hour on one core; --processes N for more

Digits with badly scaled pixels, so that a map helps, and 400 of 1000 labels wrong, so that a question helps. LLQR's
map is refitted every K steps and remembers tau steps; with K = tau = 1 it is made of the last gradient alone and is
as fast as the question: the control in which the two clocks are one. For every map and every radius of the question
the learning rate and decay with the best mean accuracy on validation data, whose labels are right, is run with fresh
seeds. The same steps without a map, U = I, stand beside it. Data, labels, batches and weights are those of
``digits_noise``.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.stats import ttest_rel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from book.experiments import digits_noise
from book.experiments.digits_noise import WIDTHS, batches, initial_weights, wrong_labels
from book.experiments.digits_walk import ill_scaled
from book.experiments.peers.ledger import Ledger
from book.experiments.peers.sources import digest
from book.experiments.peers.study import processes
from book.experiments.store import store
from llqr_sam_ref import LLQR, SAM, ClosedForm, LLQRConfig
from llqr_sam_ref.nets.mlp import mlp
from llqr_sam_ref.train.provenance import environment
from llqr_sam_ref.train.record import rounded

STEPS = 400
PERIODS, MEMORIES, RADII = (1, 10, 50), (1.0, 5.0, 20.0, 100.0), (0.0, 0.05, 0.2)
RATES, DECAYS = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016), (0.3, 3.0)
TUNING_SEEDS, FRESH_SEEDS = tuple(range(3)), tuple(range(400, 410))
AWAY = 2.4  # a loss above that of guessing: the run has come apart
FASTEST = (1, 1.0)


@dataclass(frozen=True)
class Setting:
    """One run's settings.

    Attributes:
        period: K, steps between refits; 0 for U = I.
        memory: tau, steps that the map's curvature and bases remember.
        rho: radius of the question; 0 asks nothing.
        lr: learning rate, under a cosine schedule.
        wd: decay, beside the step.
    """

    period: int
    memory: float
    rho: float
    lr: float
    wd: float


@dataclass(frozen=True)
class Options:
    """Command line of the study.

    Args:
        out: folder of finished runs; the same folder goes on where it was stopped.
        processes: of one thread each.
        store: write book/results/timescales.json.
        quick: sizes at which numbers mean nothing: does it run?
    """

    out: Path = Path("runs/timescales")
    processes: int = 1
    store: bool = False
    quick: bool = False


@cache
def splits() -> tuple[digits_noise.Data, ...]:
    """Training, validation and test digits of badly scaled pixels, in float32."""
    return tuple(
        digits_noise.Data(ill_scaled(part.inputs.float(), torch.Generator().manual_seed(0)), part.labels)
        for part in digits_noise.splits()
    )


def optimizer(setting: Setting, model: nn.Module) -> Optimizer:
    """LLQR with this clock, or with a map that stays the identity, under SAM if there is a radius."""
    if setting.period:
        tau, fastest = setting.memory, setting.memory == 1.0
        solver = ClosedForm(
            curvature_memory=tau,
            basis_memory=tau,
            basis_every=1 if fastest else 10,
            renewal="eigendecomposition" if fastest else "iteration",  # which starts from the last bases
        )
        config, probe = LLQRConfig(every=setting.period, solver=solver), None
    else:
        rule = LLQRConfig().step_rule
        config = LLQRConfig.published(steps=0, acts_on="update", step_rule=rule)
        probe = _some  # is asked for, and not used
    sgd = torch.optim.SGD(
        model.parameters(), lr=setting.lr, weight_decay=setting.wd, momentum=0.9, nesterov=True
    )
    base = LLQR(sgd, model, cross_entropy, config, probe=probe)
    return SAM(base, setting.rho) if setting.rho else base


def _some() -> tuple[Tensor, Tensor]:
    inputs, labels = splits()[0]
    return inputs[:8], labels[:8]


def run(setting: Setting, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Train once.

    Args:
        setting: of the optimizer.
        seed: decides initial weights, wrong labels and batches.
        steps: how many.

    Returns:
        Accuracies on validation and test data, the loss on the training data, and whether the run came apart.
    """
    clean, validation, test = splits()
    labels = wrong_labels(clean.labels, seed)
    model = nets(seed)
    opt = optimizer(setting, model)

    def backward(chosen: Tensor) -> None:
        opt.zero_grad()
        cross_entropy(model(clean.inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]

    apart = False
    for step, chosen in enumerate(batches(seed)[:steps]):
        for group in opt.param_groups:
            group["lr"] = setting.lr * (1 + math.cos(math.pi * step / steps)) / 2
        backward(chosen)
        if isinstance(opt, SAM):
            with opt.perturbed():
                backward(chosen)
        if not all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
            apart = True
            break
        opt.step()
    with torch.no_grad():
        loss = float(cross_entropy(model(clean.inputs), labels))
        right = [float((model(x).argmax(1) == y).double().mean()) for x, y in (validation, test)]
    apart = apart or not loss < AWAY
    return {
        "validation": right[0],
        "test": right[1],
        "loss": loss if not apart else math.inf,
        "apart": float(apart),
    }


def nets(seed: int) -> nn.Module:
    """The network with the seed's weights, in float32."""
    model = mlp(WIDTHS)
    with torch.no_grad():
        for p, value in zip(model.parameters(), initial_weights(seed), strict=True):
            p.copy_(value)
    return model


def kept(options: Options, setting: Setting, seeds: Sequence[int]) -> list[dict[str, float]]:
    """Runs of a setting, from the folder if they are there."""
    steps = 20 if options.quick else STEPS
    key = {
        "task": "timescales",
        "method": f"{setting.period} {setting.memory:g}",
        "setting": asdict(setting),
        "seeds": list(seeds),
        "steps": steps,
        "code": digest(__file__, digits_noise.__file__),
    }

    def compute() -> dict[str, Any]:
        return {"runs": [run(setting, seed, steps) for seed in seeds]}

    here = partial(environment, torch.device("cpu"))
    return list(Ledger(options.out, here).entry(key, compute)["result"]["runs"])


Each = Callable[[Sequence[Callable[[], Any]]], Iterator[Any]]


def column(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    """One number of every run."""
    return [row[name] for row in rows]


def study(options: Options, each: Each, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """For every map and radius the learning rates that were tried, and the best of them with fresh seeds."""
    maps = [(0, 0.0), *itertools.product(PERIODS, MEMORIES)]
    if options.quick:
        maps = maps[:2]
    places = list(itertools.product(maps, RADII))
    tried = {
        (place, lr, wd): Setting(*place[0], place[1], lr, wd)
        for place, lr, wd in itertools.product(places, RATES, DECAYS)
    }
    found = {}
    works = [partial(kept, options, setting, TUNING_SEEDS) for setting in tried.values()]
    for count, (name, rows) in enumerate(zip(tried, each(works), strict=True), start=1):
        found[name] = rows
        say(f"{count} of {len(works)} settings")
    best = {
        place: max(
            (name for name in tried if name[0] == place),
            key=lambda name: np.mean(column(found[name], "validation")),
        )
        for place in places
    }
    works = [partial(kept, options, tried[best[place]], FRESH_SEEDS) for place in places]
    results = []
    for place, rows in zip(places, each(works), strict=True):
        rates = [name for name in tried if name[0] == place]
        row: dict[str, Any] = {
            "what": called(*place[0], place[1]),
            "period": place[0][0],
            "memory": place[0][1],
            "rho": place[1],
            "settings": [list(name[1:]) for name in rates],
            "tuning": [column(found[name], "validation") for name in rates],
            "losses": [column(found[name], "loss") for name in rates],
            "apart": [sum(column(found[name], "apart")) for name in rates],
            "lr": best[place][1],
            "wd": best[place][2],
            **{name: column(rows, name) for name in ("test", "loss")},
        }
        results.append(row)
        say(f"{row['what']}: {np.mean(row['test']):.4f}")
    return results


def called(period: int, memory: float, rho: float) -> str:
    """A row's name."""
    base = f"K {period}, tau {memory:g}" if period else "U = I"
    return f"{base}, rho {rho:g}"


def gains(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the question adds to each map, at the radius with the best validation accuracy; and to the fastest's."""
    by_map: dict[tuple[int, float], dict[float, dict[str, Any]]] = {}
    for row in rows:
        by_map.setdefault((row["period"], row["memory"]), {})[row["rho"]] = row

    def score(row: dict[str, Any]) -> float:
        return max(float(np.mean(runs)) for runs in row["tuning"])

    asking = {place: max((r for rho, r in of.items() if rho), key=score) for place, of in by_map.items()}
    lead = {
        place: np.array(asking[place]["test"]) - np.array(of[0.0]["test"]) for place, of in by_map.items()
    }
    control = lead.get(FASTEST)
    result = []
    for place, gain in lead.items():
        silent = by_map[place][0.0]["test"]
        over = gain - control if control is not None else gain * 0
        result.append({
            "what": called(*place, asking[place]["rho"]),
            "rho": asking[place]["rho"],
            "without": float(np.mean(silent)),
            "with": float(np.mean(asking[place]["test"])),
            "gain": float(gain.mean()),
            "spread": float(gain.std(ddof=1)),
            "p": float(ttest_rel(asking[place]["test"], silent).pvalue) if np.ptp(gain) else 1.0,
            "over_fastest": float(over.mean()),
            "over_fastest_p": float(ttest_rel(gain, control).pvalue) if np.ptp(over) else 1.0,
        })
    return result


def main(options: Options) -> None:
    """Tune, run the fresh seeds, print, and store if asked for."""
    start = time.perf_counter()
    with processes(options.processes) as each:
        rows = study(options, each, partial(print, flush=True))
    results = {"rows": rows, "gains": gains(rows)}
    for row in results["gains"]:
        print(row)
    if options.store:
        protocol = {
            "command": "python -m book.experiments.timescales --out RUNS --store",
            "tuning_seeds": TUNING_SEEDS,
            "fresh_seeds": FRESH_SEEDS,
            "steps": STEPS,
        }
        print(store("timescales", protocol, rounded(results), time.perf_counter() - start))


if __name__ == "__main__":
    main(tyro.cli(Options))
