"""Set up once at the weights of a module and a probe batch, then take many exact curvature-vector products.

With outputs z = f(w, x), loss l(z, y), Jacobian J = dz/dw, and states x_i = outputs of named modules with J_i = dx_i/dw:

    Gauss-Newton   G v = J^T l''(z) J v        Fisher   F v = J^T E[score score^T] J v
    Hessian        H v = d/de grad L(w + e v)  states   + sum_i J_i^T S_i J_i v on top of any of them

The set-up keeps what a product needs of the forward pass, so that a Gauss-Newton product costs about 4/3 of a
gradient and a Hessian product about 2. Graphs are traced once for given shapes; at new weights only what depends on
the weights alone is evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llqr_sam_ref.errors import check_choice, check_number, unknown_name
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn, infer_likelihood
from llqr_sam_ref.optim.products import (
    HessianOf,
    Jacobian,
    KeptHessian,
    KeptJacobian,
    TracedHessian,
    TracedJacobian,
    trace_hessian,
    trace_jacobian,
)
from llqr_sam_ref.optim.pure import Batch, Point, PureModule, Vector, isolated
from llqr_sam_ref.optim.trace import SplitFunction, UntraceableError

BACKENDS = ("auto", "traced", "kept")
KEPT_TRACES = 4  # shapes remembered, least recently used dropped first
Result = TypeVar("Result")


class Linearization:
    """A module linearized on a probe batch; vectors are dicts of tensors keyed by parameter name.

    Frozen parameters have no entry, tied ones a single entry. Parameters in half precision are computed in float32.
    Nothing of the module changes: not its gradients, buffers, flags, nor the random state.

    Args:
        module: f, any module whose forward is deterministic: dropout and batch norm in evaluation mode.
        loss_fn: l, called as loss_fn(outputs, targets), or loss_fn(outputs) when ``targets`` is None.
        inputs: the probe batch x: a tensor, a tuple of positional or a mapping of keyword arguments.
        targets: the labels y.
        likelihood: of the labels, for Fisher products; inferred from ``loss_fn`` when None.
        states: costs S_i on the change of named modules' outputs: a number s >= 0 for s I, or a positive
            semidefinite matrix (d, d) on one example's flattened output; a module called twice counts twice.
        state_reduction: "mean" divides the costs on states by the number of examples, "sum" does not.
        backend: "traced" graphs, "kept" autograd graphs (no forward-mode rules needed, slower on convolutions), or
            "auto": traced where the module can be traced.

    Raises:
        ValueError: a bad argument, a module in training mode, a batch that does not fit, is not finite, or gives
            different outputs when evaluated twice.
        RuntimeError: the module cannot be differentiated twice by the backend.

    Source: Schraudolph (2002), section 3 (products with curvature matrices); book, chapter "The relaxation".
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFn,
        inputs: Batch,
        targets: Any = None,
        *,
        likelihood: Likelihood | None = None,
        states: Mapping[str, float | Float[Tensor, "d d"]] | None = None,
        state_reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        self.backend = check_choice("backend", backend, BACKENDS)
        self._mean_states = check_choice("state_reduction", state_reduction, ("mean", "sum")) == "mean"
        self._costs = {name: _checked_cost(name, cost) for name, cost in (states or {}).items()}
        self._pure = PureModule(module, loss_fn, tuple(self._costs))
        self._likelihood = likelihood
        self._inputs, self._targets = inputs, targets
        self._jacobians: dict[Any, SplitFunction | None] = {}
        self._hessians: dict[Any, SplitFunction | None] = {}
        self._checked: set[Any] = set()
        self.traces = 0
        self.relinearize()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable parameters, in the order of ``module.named_parameters()``."""
        return self._pure.names

    @property
    def outputs(self) -> Float[Tensor, "n ..."]:
        """z at the point."""
        return self._here().values[0]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """l(z, y) at the point."""
        return self._loss.detach()

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood given, or inferred from the loss.

        Raises:
            ValueError: none was given and the loss is not one known.
        """
        if self._likelihood is None:
            self._likelihood = infer_likelihood(self._pure.loss_fn)
        return self._likelihood

    def relinearize(self, inputs: Batch = None, targets: Any = None) -> Linearization:
        """Move to the module's current weights, and to another batch if one is given.

        Costs one forward pass when the shapes have been seen before.

        Args:
            inputs: the new probe batch; None keeps the old batch and its targets.
            targets: its labels.

        Returns:
            This object.

        Raises:
            ValueError: as at construction.
            RuntimeError: as at construction.
        """
        if inputs is not None:
            self._inputs, self._targets = inputs, targets
        self.release()
        pure, point = self._pure, self._pure.at(self._inputs, self._targets)
        if point.key not in self._checked:
            pure.check(point)
            self._checked.add(point.key)
        with isolated(pure.device):
            split = self._traced(self._jacobians, point, trace_jacobian)
            jacobian: Jacobian
            if split is None:
                jacobian = self._differentiable(lambda: KeptJacobian(pure, point), "adjoint")
            else:
                jacobian = TracedJacobian(split, point)
            self._point, self._jacobian = point, jacobian
            with torch.enable_grad():
                self._output = jacobian.values[0].detach().requires_grad_()
                self._loss = pure.loss(self._output, point.rest, point.layout)
        if not bool(torch.isfinite(self._loss) & torch.isfinite(self._output).all()):
            raise ValueError(f"the probe batch gives a loss of {self._loss.item()} or outputs that are not finite.")
        return self

    def release(self) -> None:
        """Free what was kept of the forward pass; traces stay, products need ``relinearize`` again."""
        self._jacobian: Jacobian | None = None
        self._hessian: HessianOf | None = None
        self._slope: Tensor | None = None
        self._gradient: list[Tensor] | None = None
        self._point: Point | None = None

    def gradient(self) -> Vector:
        """J^T l'(z): the gradient of the loss, with the loss's own reduction.

        Returns:
            A new dict of tensors; compute it twice and it is the same tensors.
        """
        jacobian = self._here()
        if self._gradient is None:
            self._gradient = self._adjoint(jacobian, self._output_slope().detach())
        return self._dict(self._gradient)

    def jvp(self, v: Vector) -> Float[Tensor, "n ..."]:
        """J v: the change of the outputs, to first order, when the weights change by v.

        Args:
            v: a vector of weights.

        Returns:
            A tensor of the outputs' shape.
        """
        return self._tangent(self._here(), v)[0]

    def vjp(self, cotangent: Float[Tensor, "n ..."]) -> Vector:
        """J^T c.

        Args:
            cotangent: c, of the outputs' shape.

        Returns:
            A vector of weights.
        """
        return self._dict(self._adjoint(self._here(), cotangent))

    def ggn(self, v: Vector) -> Vector:
        """The Gauss-Newton product J^T l''(z) J v, plus the costs on states.

        Args:
            v: a vector of weights.

        Returns:
            A vector of weights.

        Raises:
            RuntimeError: the loss has no second derivative in the outputs.
        """
        slope = self._output_slope()
        if not slope.requires_grad:
            raise RuntimeError(
                "the loss is linear in the outputs or has no second derivative, so its Gauss-Newton matrix is zero or "
                'undefined; use a Fisher product (divergence="fisher") or another loss.'
            )

        def curvature(change: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(slope, self._output, change, retain_graph=True)
            return product

        return self._sandwich(v, curvature)

    def fisher(self, v: Vector, reduction: str | None = None) -> Vector:
        """The Fisher product J^T Q J v, Q the output Fisher of the likelihood, plus the costs on states.

        Args:
            v: a vector of weights.
            reduction: "sum" over the likelihood's terms, "mean" over them, or None for the loss's own.

        Returns:
            A vector of weights.

        Raises:
            ValueError: the likelihood is not known, or ``reduction`` is not one of these.
        """
        likelihood = self.likelihood
        mean = check_choice("reduction", reduction or likelihood.reduction, ("mean", "sum")) == "mean"
        point = self._at()
        targets = self._pure.targets(point.rest, point.layout)
        outputs = self._output.detach()

        def curvature(change: Tensor) -> Tensor:
            product = likelihood.curvature(outputs, targets, change)
            return product / likelihood.terms(outputs, targets) if mean else product

        return self._sandwich(v, curvature)

    def hessian(self, v: Vector) -> Vector:
        """The Hessian product H v of the loss, plus the costs on states.

        Args:
            v: a vector of weights.

        Returns:
            A vector of weights.

        Raises:
            RuntimeError: the module or the loss cannot be differentiated twice.
        """
        point = self._at()
        with isolated(self._pure.device):
            if self._hessian is None:
                split = self._traced(self._hessians, point, trace_hessian)
                if split is None:
                    self._hessian = self._differentiable(lambda: KeptHessian(self._pure, point), "product")
                else:
                    self._hessian = TracedHessian(split, point)
            product = self._hessian.product(self._list(v))
        if self._costs:
            extra = self._sandwich(v, torch.zeros_like)
            product = [a + extra[name] for a, name in zip(product, self.names, strict=True)]
        return self._dict(product)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but traces and residuals: a copy sets up again by ``relinearize``."""
        dropped = {"_jacobians": {}, "_hessians": {}, "_checked": set(), "traces": 0, "_output": None, "_loss": None}
        kept = {"_jacobian": None, "_hessian": None, "_slope": None, "_gradient": None, "_point": None}
        return {**self.__dict__, **dropped, **kept}

    def _traced(
        self,
        known: dict[Any, SplitFunction | None],
        point: Point,
        trace: Callable[[PureModule, Point], SplitFunction],
    ) -> SplitFunction | None:
        """The graphs for the shapes of ``point``, from memory or traced now; None where there are none."""
        if self.backend == "kept":
            return None
        if point.key in known:
            known[point.key] = known.pop(point.key)  # most recently used last
            return known[point.key]
        try:
            split = trace(self._pure, point)
            self.traces += 1
        except UntraceableError as error:
            if self.backend == "traced":
                raise RuntimeError(f"the module cannot be traced; use backend='kept'. {_reason(error)}") from error
            split = None
        known[point.key] = split
        while len(known) > KEPT_TRACES:
            known.pop(next(iter(known)))
        return split

    def _differentiable(self, make: Callable[[], Result], test: str) -> Result:
        """Build kept graphs and differentiate them once more, so that what is missing shows at once."""
        try:
            made = make()
            if isinstance(made, KeptJacobian):
                made.tangent([torch.zeros_like(p) for p in made.parameters])
            return made
        except (RuntimeError, NotImplementedError) as error:
            raise RuntimeError(f"the module cannot be differentiated twice. {_reason(error)}") from error

    def _at(self) -> Point:
        point = self._point
        if point is None:
            raise RuntimeError("the set-up was released or copied; call relinearize() before taking products.")
        if point.stale():
            raise RuntimeError("weights or buffers changed in place since the set-up; call relinearize().")
        return point

    def _here(self) -> Jacobian:
        self._at()
        assert self._jacobian is not None
        return self._jacobian

    def _output_slope(self) -> Tensor:
        """l'(z), with its graph."""
        self._at()
        if self._slope is None:
            with torch.enable_grad(), isolated(self._pure.device):
                (self._slope,) = torch.autograd.grad(self._loss, self._output, create_graph=True)
        return self._slope

    def _tangent(self, jacobian: Jacobian, v: Vector) -> list[Tensor]:
        with torch.autocast(self._pure.device.type, enabled=False):
            return jacobian.tangent(self._list(v))

    def _adjoint(self, jacobian: Jacobian, *cotangents: Tensor) -> list[Tensor]:
        missing = [torch.zeros_like(x) for x in jacobian.values[len(cotangents) :]]
        with torch.autocast(self._pure.device.type, enabled=False):
            return jacobian.adjoint([*cotangents, *missing])

    def _sandwich(self, v: Vector, curvature: Callable[[Tensor], Tensor]) -> Vector:
        """J^T Q J v + sum_i J_i^T S_i J_i v."""
        jacobian = self._here()
        change, *states = self._tangent(jacobian, v)
        with torch.autocast(self._pure.device.type, enabled=False):
            cotangents = [curvature(change), *self._state_costs(states)]
        return self._dict(self._adjoint(jacobian, *cotangents))

    def _state_costs(self, changes: list[Tensor]) -> list[Tensor]:
        """S_i times the change of each state."""
        ...

    def _list(self, v: Vector) -> list[Tensor]:
        point = self._at()
        missing = [name for name in self.names if name not in v]
        if missing or len(v) != len(self.names):
            unknown = [name for name in v if name not in self.names]
            raise ValueError(f"a vector needs one tensor a parameter; missing {missing}, unknown {unknown}.")
        return [v[name].detach().to(p.dtype) for name, p in zip(self.names, point.params, strict=True)]

    def _dict(self, tensors: list[Tensor]) -> Vector:
        return dict(zip(self.names, tensors, strict=True))
