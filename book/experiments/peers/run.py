"""One run: a network, a method, a setting, a seed, and what is measured on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from book.experiments.peers.data import Batch
from book.experiments.peers.methods import Method, Place
from book.experiments.peers.tasks import Problem
from llqr_sam_ref import LLQR, SAM, frozen_batch_stats
from llqr_sam_ref.config import InnerLoop
from llqr_sam_ref.train.seeds import derived_seed, generator

WARMUP = 1 / 40  # share of the run in which the learning rate rises
BLOCKS = 80  # of a run; the training loss is kept as the mean of each
LAST = 4  # blocks at the end whose mean is called the final loss
WATCHED = 8  # moments at which the perturbation and U are looked at
PRODUCT = 4 / 3  # gradient evaluations that a product with the Fisher matrix costs
HELD_OUT_BATCH = 250
FAR, WORSE = (
    100.0,
    1.5,
)  # times the first loss: a loss that will not come back, and a final loss that is worse


@dataclass(frozen=True)
class Setting:
    """What is searched.

    Args:
        lr: largest learning rate.
        decay: how far the weights would shrink by decay alone in a whole run, as -log of the factor; the same
            number means the same for every method, however it counts its decay.
        own: the method's own parameter.
    """

    lr: float
    decay: float
    own: float


def rate(step: int, steps: int) -> float:
    """The learning rate of a step as a share of the largest: a short rise, then straight down towards 0."""
    rise = max(1, round(WARMUP * steps))
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


class Training:
    """A network in training.

    Args:
        problem: the task.
        method: the row.
        setting: of the method.
        seed: of weights, batches and probes; the same weights and batches for every method.
        steps: of the whole run, over which the learning rate comes down.
        device: where it computes.
    """

    def __init__(
        self, problem: Problem, method: Method, setting: Setting, seed: int, steps: int, device: str = "cpu"
    ) -> None:
        self.problem, self.device = problem, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "weights"))
            self.model = problem.model().to(device)
        self.batches, self.probes = generator(seed, "batches"), generator(seed, "probes")
        self.evaluations = 0.0
        """Gradient evaluations so far, in units of a training batch."""
        travel = setting.lr * sum(rate(step, steps) for step in range(steps)) * method.decays(setting.own)
        place = Place(self.model, problem.loss, self._probe, setting.lr, setting.decay / travel)
        self.optimizer = method.build(place, setting.own)
        self.schedule = LambdaLR(self.optimizer, lambda step: rate(step, steps))

    @property
    def llqr(self) -> LLQR | None:
        """The LLQR in the optimizer, if there is one."""
        layer = self.optimizer.base if isinstance(self.optimizer, SAM) else self.optimizer
        return layer if isinstance(layer, LLQR) else None

    def step(self) -> float:
        """One step; the loss before it."""
        inputs, targets = self._batch(self.batches)
        loss = self._backward(inputs, targets)
        if isinstance(self.optimizer, SAM):
            with self.optimizer.perturbed(), frozen_batch_stats(self.model):
                self._backward(inputs, targets)
        self.optimizer.step()
        self.schedule.step()
        return loss

    def outputs(self, inputs: Any) -> Tensor:
        """What the model makes of a batch's inputs."""
        result: Tensor = self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
        return result

    def _backward(self, inputs: Any, targets: Tensor) -> float:
        self.optimizer.zero_grad()
        loss: Tensor = self.problem.loss(self.outputs(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.evaluations += 1
        return float(loss.detach())

    def _batch(self, source: torch.Generator) -> Batch:
        inputs, targets = self.problem.data.draw(source, self.problem.batch)
        return _moved(inputs, self.device), targets.to(self.device)

    def _probe(self) -> Batch:
        """A probe batch: one gradient evaluation, and with the inner loop as many products as it has steps."""
        self.evaluations += 1
        if self.llqr is not None and isinstance(self.llqr.config.solver, InnerLoop):
            self.evaluations += PRODUCT * self.llqr.config.solver.steps
        return self._batch(self.probes)

    # What is looked at.

    def watched(self) -> dict[str, float]:
        """Realized radius of the last perturbation; |U - I| as a share of |I|, and the cosine of U g and g."""
        values: dict[str, float] = {}
        if isinstance(self.optimizer, SAM):
            values["radius"] = self.optimizer.realized_radius
        if self.llqr is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            squares = sum(block.distance**2 for block in self.llqr.report())
            values["distance"] = math.sqrt(squares / sum(p.numel() for p in parameters))
            steps = self.llqr.preconditioned_gradients()
            pairs = [(p.grad, s) for p, s in zip(parameters, steps, strict=True) if s is not None]
            g, s = (torch.cat([pair[i].flatten().double() for pair in pairs]) for i in (0, 1))
            values["cosine"] = float(torch.nn.functional.cosine_similarity(g, s, dim=0))
        return values

    @torch.no_grad()
    def measured(self, batch: Batch) -> dict[str, float]:
        """Mean loss on held-out examples, and the share of wrong answers where the answers are classes."""
        self.model.eval()
        total, wrong, count = 0.0, 0, 0
        inputs, targets = batch
        classes = not targets.is_floating_point()
        for start in range(0, len(targets), HELD_OUT_BATCH):
            part = slice(start, start + HELD_OUT_BATCH)
            x = tuple(i[part] for i in inputs) if isinstance(inputs, tuple) else inputs[part]
            y = targets[part].to(self.device)
            outputs = self.outputs(_moved(x, self.device))
            ignored = getattr(self.problem.loss, "ignore_index", None)
            counts = torch.ones_like(y, dtype=torch.bool) if ignored is None else y.ne(ignored)
            terms = int(counts.sum())
            total, count = total + float(self.problem.loss(outputs, y)) * terms, count + terms
            wrong += int(((outputs.argmax(1) != y) & counts).sum()) if classes else 0
        self.model.train()
        return {"loss": total / count, **({"error": wrong / count} if classes else {})}

    def broken(self) -> bool:
        """Whether a weight or a gradient is not a number any more."""
        tensors = [t for p in self.model.parameters() for t in (p.detach(), p.grad) if t is not None]
        return not all(bool(t.isfinite().all()) for t in tensors)


def _moved(inputs: Any, device: str) -> Any:
    return tuple(i.to(device) for i in inputs) if isinstance(inputs, tuple) else inputs.to(device)


def run(
    problem: Problem,
    method: Method,
    setting: Setting,
    seed: int,
    steps: int,
    device: str = "cpu",
    *,
    test: bool = False,
) -> dict[str, Any]:
    """Train once.

    A run has diverged when a loss is not finite or far above the first, when a weight or gradient is not finite and
    the optimizer says so, or when it ends well above where it began.

    Args:
        problem: the task.
        method: the row.
        setting: of the method.
        seed: of the run.
        steps: how many.
        device: where.
        test: whether the test examples are looked at.

    Returns:
        {"diverged", "final" (training loss of the last blocks), "curve" (its mean in each block), "evaluations",
        "seconds" (of the process), "watched" (rows of numbers), "validation" and, if asked for, "test" ({"loss",
        "error"})}; the last five are of what was reached.
    """
    training = Training(problem, method, setting, seed, steps, device)
    losses: list[float] = []
    rows: list[Mapping[str, float]] = []
    moments = {math.ceil((i + 1) * steps / WATCHED) - 1 for i in range(WATCHED)}
    seconds, trouble = 0.0, ""
    for step in range(steps):
        before = time.process_time()
        try:
            losses.append(training.step())
        except (RuntimeError, ValueError) as error:
            if not training.broken():
                raise
            trouble = str(error)
            break
        seconds += time.process_time() - before
        if not math.isfinite(losses[-1]) or losses[-1] > FAR * losses[0]:
            trouble = f"loss {losses[-1]:g} at step {step}"
            break
        if step in moments:
            rows.append({"step": step + 1, **training.watched()})
    curve = blocks(losses) if len(losses) == steps else []
    final = sum(curve[-LAST:]) / len(curve[-LAST:]) if curve else math.inf
    if not trouble and not final <= WORSE * losses[0]:
        trouble = f"final loss {final:g}, first loss {losses[0]:g}"
    result = {
        "diverged": trouble,
        "final": final,
        "curve": curve,
        "evaluations": training.evaluations,
        "seconds": seconds,
        "watched": rows,
    }
    data = problem.data
    for name, batch in {"validation": data.validation, **({"test": data.test} if test else {})}.items():
        result[name] = {"loss": math.inf} if trouble else training.measured(batch)
    return result


def blocks(losses: list[float]) -> list[float]:
    """Means of equal parts of a run, as many as ``BLOCKS`` or as there are steps."""
    count = min(BLOCKS, len(losses))
    edges = [round(i * len(losses) / count) for i in range(count + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
