"""SAM over any optimizer and metric, one class whole (hence the length): the gradient of the worst neighbor.

    epsilon = rho G^{-1} v / sqrt(v^T G^{-1} v),      w <- base(w, grad L(w + epsilon))

    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)
    for x, y in loader:
        opt.zero_grad(); loss_fn(model(x), y).backward()
        with opt.perturbed(), frozen_batch_stats(model):      # w + epsilon; w again afterwards, bit for bit
            opt.zero_grad(); loss_fn(model(x), y).backward()
        opt.step()

Between the two lines of a pass there may be any number of backward passes (accumulation). Clipping, a
GradScaler's ``unscale_`` and the step belong after the block. Under DDP the plain loop perturbs by the
averaged gradient, the same on every rank; with ``model.no_sync()`` around forward and backward of the first
pass every rank perturbs by its own gradient: m-sharpness with m the batch of a rank, as in the SAM paper.
Under FSDP2 the first is the only one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llqr_sam_ref.errors import check_choice, check_count, check_number, unknown_name
from llqr_sam_ref.optim._amp import loss_scale_of
from llqr_sam_ref.optim._closure import GradientWatch, check_options, options_now
from llqr_sam_ref.optim._random import random_state, set_random_state
from llqr_sam_ref.optim._wrapper import OptimizerWrapper, check_rates, layers
from llqr_sam_ref.optim.batchnorm import frozen_batch_stats
from llqr_sam_ref.optim.distributed.shards import check_gradient, local_tensors, match_sharding, on, widen
from llqr_sam_ref.optim.metric import (
    NORMS,
    Adaptive,
    Ascent,
    Euclidean,
    Fisher,
    Metric,
    Monge,
    Perturbation,
    Preconditioned,
    perturbation,
)


class SAM(OptimizerWrapper):
    """Sharpness-aware minimization around a base optimizer, under any metric.

    epsilon = rho G^{-1}v / sqrt(v^T G^{-1}v) over all parameters together; the base then steps from w with
    the gradient at w + epsilon. Weight decay of the base acts at w and does not enter v.

    ``rho`` may differ from group to group (``{"params": ..., "rho": 0.1}``) and may be scheduled in
    ``param_groups``; the norm is shared. Costs one more forward and backward pass a step, and keeps one copy
    of the parameters.

    Pure bfloat16 weights round a small perturbation away (rho = 0.05 over a million weights of size 0.03: two
    in three do not move): keep float32 weights and use autocast.

    Args:
        base: takes the step; any first-order torch optimizer, or LLQR.
        rho: radius of the perturbation, in weights (with norm="dual" in the metric's unit of length).
        metric: G; None is the base's own geometry, the learned preconditioner over LLQR, Euclidean otherwise.
        every: perturb at every so many steps only; steps counts those of ``step()``.
        start: steps of the bare base before the first perturbation.
        norm: "dual" or "euclidean", see :func:`llqr_sam_ref.optim.metric.perturbation`; None is the metric's
            default: "euclidean" for a learned preconditioner, "dual" otherwise.
        layerwise: normalize tensor by tensor, with rho/sqrt(number of tensors).
        ascent_ema: None for v = g; a decay gamma in [0, 1) for v = g - m with m <- gamma m + (1 - gamma) g
            after its use: Friendly SAM with sigma = 1, whose authors use 0.9. One more copy of the
            parameters.
        nonfinite: what to do when v has a NaN or Inf: "skip" perturbs nothing in that step and counts it
            (``nonfinite_count``), as a GradScaler needs it; "raise" raises before a weight is touched (and
            waits for the device to know).
        model: lets ``step(closure)`` freeze batch statistics in the second pass.
        foreach: one launch for all tensors (True) or one after the other (False); None is what torch does:
            True on accelerators.

    Raises:
        ValueError: an argument is out of range, or ``base`` is a SAM itself or not usable.

    Source: Foret et al. 2021 (arXiv 2010.01412), algorithm 1; the book, (1.2) and (5.3); Friendly SAM, Li et
    al. 2024 (arXiv 2403.12350); M-SAM, arXiv 2502.08448; LLQR+SAM, arXiv 2605.16134.
    """

    PREFIX = "sam_"

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        metric: Metric | None = None,
        *,
        every: int = 1,
        start: int = 0,
        norm: str | None = None,
        layerwise: bool = False,
        ascent_ema: float | None = None,
        nonfinite: str = "skip",
        model: nn.Module | None = None,
        foreach: bool | None = None,
    ) -> None:
        _check_metric(metric)
        if isinstance(base, Optimizer) and any(isinstance(layer, SAM) for layer in layers(base)):
            raise ValueError("base is a SAM already; pass the optimizer inside it.")
        self.metric = metric
        self.every = check_count("every", every)
        self.start = check_count("start", start, low=0)
        self.norm = norm if norm is None else check_choice("norm", norm, NORMS)
        self.layerwise = layerwise
        if ascent_ema is not None:
            check_number("ascent_ema", ascent_ema, low=0.0, high=1.0, open_high=True)
        self.ascent_ema = ascent_ema
        self.nonfinite = check_choice("nonfinite", nonfinite, ("skip", "raise"))
        self.model = model
        self.foreach = foreach
        super().__init__(base, rho=rho, sam_steps=0)

    @property
    def perturbation_due(self) -> bool:
        """Whether the next step perturbs: ``start`` steps are over and it is one of every ``every``.

        Where it is false ``perturbed()`` perturbs nothing, and a loop may save itself the second pass.
        """
        steps = int(self.param_groups[0]["sam_steps"]) - self.start
        return steps >= 0 and steps % self.every == 0

    @property
    def realized_radius(self) -> float:
        """|epsilon| of the last perturbation: Euclidean, over all tensors (waits for the device)."""
        return float(self.progress.radius)

    @property
    def nonfinite_count(self) -> int:
        """How many perturbations were skipped because v was not finite (waits for the device)."""
        return int(self.progress.nonfinite)

    @contextmanager
    def perturbed(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """Inside, the weights are w + epsilon; afterwards they are w again, bit for bit, whatever was raised.

        epsilon is computed on entry from the gradients that are there. Parameters without one stay where they
        are, and no gradients, or zero gradients, perturb nothing. Weights change in place: addresses stay.

        Args:
            scaler: the GradScaler that scaled the loss. Its scale is read, for metrics and averages that need
                gradients in their own units; nothing is unscaled. SAM and ASAM do not depend on the scale.

        Yields:
            Nothing.

        Raises:
            RuntimeError: called inside itself or a closure, after ``scaler.unscale_``, with sparse gradients, or with
                a NaN or Inf in v and nonfinite="raise".

        Source: the book, (5.2).
        """
        if self.inside_perturbation:
            raise RuntimeError(
                "perturbed() inside perturbed(): the weights are perturbed already; leave it first."
            )
        if self.progress.in_closure:
            raise RuntimeError(
                "perturbed() inside the closure of step(): step(closure) evaluates the closure at both places itself; "
                "take the block out of it, or call step() without a closure."
            )
        loss_scale = loss_scale_of(scaler, self)
        parameters: list[Tensor] = []
        epsilon: Perturbation | None = None
        stack = [layer for layer in layers(self) if isinstance(layer, OptimizerWrapper)]
        if self.perturbation_due and any(p.grad is not None for p in self._parameters()):
            for layer in stack:
                layer.progress.loss_scale = loss_scale
            try:
                parameters, epsilon = self._perturbation(loss_scale)
            finally:
                for layer in stack:
                    layer.progress.loss_scale = 1.0
        weights = local_tensors(parameters)
        foreach = self._foreach(weights)
        saved = self._buffers(parameters, weights)
        _copy(saved, weights, foreach)
        try:
            for layer in stack:
                layer.progress.inside = True
            if epsilon is not None:
                epsilon.add_to(weights, foreach)
                epsilon = None  # it holds the gradients of the first pass
            yield
        finally:
            _copy(weights, saved, foreach)
            for layer in stack:
                layer.progress.inside = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the base step from w with the gradients that are there, or do both passes with a closure.

        With a closure: it is evaluated at w, then at w + epsilon if a perturbation is due, with gradients
        enabled and with the same random numbers (torch's; dropout drops the same units), and with batch
        statistics frozen the second time if the model is known. The random stream goes on as if it had been
        evaluated once. A closure that makes no gradients (it clips, logs, or does nothing: some training loops always
        hand one on) is evaluated once, at w, and the step goes by the gradients that are there: after a ``perturbed()``
        block that is SAM's step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss. One that does not
                clear them does as well where there are none: the second pass starts without any.

        Returns:
            The first loss, the one at w; None without a closure.

        Raises:
            RuntimeError: called inside ``perturbed()`` or its own closure; with a closure by a GradScaler, which
                unscales before the closure has made gradients; or with one that adds to gradients from before, which
                the second pass could not make again, or that changes options, which is evaluated twice.
            ValueError: a learning rate or weight decay is negative or not finite.

        Source: Foret et al. 2021, algorithm 1.
        """
        self.check_step(closure, "use `with opt.perturbed(scaler):` and then scaler.step(opt)")
        loss = None if closure is None else self._both_passes(closure)
        gradients = any(p.grad is not None for p in self._parameters())
        counts = gradients and not self.idle
        if counts and self.perturbation_due and not self.progress.perturbed_before:
            self.progress.perturbed_before = True
            warnings.warn(
                "SAM.step() without a perturbation: this is the base optimizer's step. Compute the gradient "
                "for it inside `with opt.perturbed():`, or pass a closure; to begin plainly pass start=.",
                stacklevel=3,
            )
        if self.ascent_ema is not None:
            for parameter in self._parameters():
                if parameter.grad is not None:
                    self._ema(parameter)
        self.base.step()
        if counts:
            for group in self.param_groups:
                group["sam_steps"] = int(group["sam_steps"]) + 1
        return loss

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Check a group's radius and whatever the base class checks.

        Args:
            group: the group, all defaults filled in.

        Raises:
            ValueError: rho is negative, not finite, or a tensor of several elements.
        """
        super().check_group(group)
        check_rates(group, ("rho",))

    def check_own(self, parameter: Tensor, entries: Mapping[str, Any]) -> None:
        """Check the average of gradients that a checkpoint holds.

        Args:
            parameter: the parameter that it belongs to.
            entries: {"ema": m} or nothing.

        Raises:
            ValueError: the checkpoint is of a SAM with another ascent vector, or of another model.
        """
        if entries and (self.ascent_ema is None or entries.keys() != {"ema"}):
            raise ValueError(
                f"state_dict has {sorted(self._prefixed(entries))} but ascent_ema={self.ascent_ema}; build "
                "SAM with the ascent_ema it was saved with."
            )
        if entries and entries["ema"].shape != parameter.shape:
            raise ValueError(
                f"state_dict has sam_ema of shape {tuple(entries['ema'].shape)} for a parameter of shape "
                f"{tuple(parameter.shape)}; load a checkpoint of the same model."
            )

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    @torch.no_grad()
    def _perturbation(self, loss_scale: Tensor | float) -> tuple[list[Tensor], Perturbation]:
        """The parameters that have a gradient, and epsilon for each."""
        geometry = self.geometry()  # also when it is not used: the base may bring itself up to date in it
        metric = geometry if self.metric is None else self.metric
        parameters: list[Tensor] = []
        raw: list[Tensor] = []
        names: list[str | None] = []
        rho: list[Tensor | float] = []
        for number, group in enumerate(self.param_groups):
            self.check_group(group)
            named = group.get("param_names") or [None] * len(group["params"])
            for index, (parameter, name) in enumerate(zip(group["params"], named, strict=True)):
                if parameter.grad is None:
                    continue
                check_gradient(parameter, parameter.grad, f"parameter {index} of group {number}")
                parameters.append(parameter)
                raw.append(parameter.grad)
                names.append(name)
                rho.append(-group["rho"] if group.get("maximize") else group["rho"])
        self._note(parameters)
        gradients = widen(local_tensors(match_sharding(raw, parameters)))
        vectors = gradients
        if self.ascent_ema is not None:
            averages = local_tensors([self._ema(p) for p in parameters])
            vectors = [g - on(loss_scale, g) * m for g, m in zip(gradients, averages, strict=True)]
        foreach = self._foreach(gradients)
        ascent = Ascent(parameters, vectors, gradients, names, loss_scale, foreach)
        epsilon = perturbation(ascent, rho, metric, self.norm, self.layerwise)
        if self.nonfinite == "raise" and not bool(epsilon.finite):
            raise RuntimeError(_nonfinite_message(vectors, names))
        if self.ascent_ema is not None:
            for m, g in zip(averages, gradients, strict=True):
                newer = self.ascent_ema * m + (1.0 - self.ascent_ema) * (g / on(loss_scale, g))
                m.copy_(torch.where(epsilon.finite.to(m.device), newer, m))
        self.progress.radius = epsilon.length
        self.progress.nonfinite = self.progress.nonfinite + (~epsilon.finite).long()
        return parameters, epsilon

    def _foreach(self, tensors: list[Tensor]) -> bool:
        """As torch does: one launch for all tensors unless they are on the host, where it would not pay."""
        return all(t.device.type != "cpu" for t in tensors) if self.foreach is None else self.foreach

    def _buffers(self, parameters: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """Room for a copy of the weights, kept from step to step: fresh memory costs more than the copy."""
        buffers: dict[Tensor, Tensor] = self.progress.cache
        for parameter, weight in zip(parameters, weights, strict=True):
            kept = buffers.get(parameter)
            if kept is None or any(
                getattr(kept, a) != getattr(weight, a) for a in ("shape", "dtype", "device")
            ):
                buffers[parameter] = torch.empty_like(weight)
        return [buffers[parameter] for parameter in parameters]

    def _ema(self, parameter: Tensor) -> Tensor:
        """m, the running average of a parameter's gradients; at least float32, zero at first."""
        entries = self.own.setdefault(parameter, {})
        if "ema" not in entries:
            half = parameter.dtype in {torch.float16, torch.bfloat16}
            entries["ema"] = torch.zeros_like(parameter, dtype=torch.float32 if half else None)
        average: Tensor = entries["ema"]
        return average

    def _note(self, parameters: list[Tensor]) -> None:
        if not self.progress.perturbed_before and any(p.dtype is torch.bfloat16 for p in parameters):
            warnings.warn(
                "SAM over bfloat16 weights: rounding removes much of a small perturbation. Keep float32 "
                "weights and compute under torch.autocast.",
                stacklevel=5,
            )
        self.progress.perturbed_before = True

    def _both_passes(self, closure: Callable[[], Any]) -> Any:
        if not self.perturbation_due:
            with torch.enable_grad(), self.evaluating():
                return closure()
        devices = {parameter.device for parameter in self._parameters()}
        before = random_state(devices)
        watch = GradientWatch(self._parameters())
        with torch.enable_grad(), self.evaluating(), watch.evaluation():
            loss = closure()
        if not watch.made:  # the step is made of the gradients that are there, as without a closure
            return loss
        watch.check_cleared()
        after = random_state(devices)
        try:
            with torch.enable_grad(), ExitStack() as second:
                second.enter_context(self.perturbed())
                if self.model is not None:
                    second.enter_context(frozen_batch_stats(self.model))
                set_random_state(before)
                for parameter in self._parameters():  # the first pass's, where the closure itself keeps them
                    parameter.grad = None
                options = options_now(self.param_groups)
                with self.evaluating():
                    closure()
                check_options(options, self.param_groups)
        finally:
            set_random_state(after)
        return loss


def _check_metric(metric: object) -> None:
    if metric is None or isinstance(metric, Metric):
        return
    names = [kind.__name__ for kind in (Euclidean, Adaptive, Fisher, Monge, Preconditioned)]
    hint = f" {unknown_name('metric', metric, names)}" if isinstance(metric, str) else ""
    raise ValueError(f"metric={metric!r} is not a metric; pass an object, such as Monge(alpha=1.0).{hint}")


def _copy(targets: list[Tensor], sources: list[Tensor], foreach: bool) -> None:
    """Write the sources into the targets."""
    if foreach and targets:
        torch._foreach_copy_(targets, sources)
    else:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def _nonfinite_message(vectors: list[Tensor], names: list[str | None]) -> str:
    bad = [
        name or f"number {i}"
        for i, (v, name) in enumerate(zip(vectors, names, strict=True))
        if not v.isfinite().all()
    ]
    where = f"in the gradient of parameter {bad[0]}" if bad else "in v^T U v (U is not positive definite)"
    return f'NaN or Inf {where}; lower the learning rate or rho, or pass nonfinite="skip".'
