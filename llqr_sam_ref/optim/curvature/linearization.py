"""Set up once at a module's weights and a batch, then take many curvature products: one class (hence the length).

With outputs z = f(w, x), loss l(z, y), Jacobian J = dz/dw, and states x_i = outputs of named modules with J_i
= dx_i/dw:

    Gauss-Newton   G v = J^T l''(z) J v        Fisher   F v = J^T E[score score^T] J v
    Hessian        H v = d/de grad L(w + e v)  states   + sum_i J_i^T S_i J_i v on top of any of them

The set-up keeps what a product needs of the forward pass, so that a Gauss-Newton product costs about 4/3 of a
gradient and a Hessian product about 2. Graphs are traced once for given shapes; at new weights only what
depends on the weights alone is evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llqr_sam_ref.errors import check_choice, check_number
from llqr_sam_ref.optim.curvature.belonging import held_against
from llqr_sam_ref.optim.curvature.derivatives import (
    HessianProduct,
    Jacobian,
    KeptHessian,
    KeptJacobian,
    TracedHessian,
    TracedJacobian,
    trace_hessian,
    trace_jacobian,
)
from llqr_sam_ref.optim.curvature.functional import Batch, Point, PureModule, Vector, isolated
from llqr_sam_ref.optim.curvature.memory import raise_out_of_memory
from llqr_sam_ref.optim.curvature.outputs import (
    Outputs,
    alike,
    all_finite,
    floats,
    likelihood_curvature,
    loss_curvature,
    rebuilt,
)
from llqr_sam_ref.optim.curvature.trace import SplitFunction, UntraceableError
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn, infer_likelihood

BACKENDS = ("auto", "traced", "kept")
KEPT_TRACES = 4  # shapes remembered; the least recently used goes first
Split = SplitFunction | None  # None: cannot be traced


@dataclass
class _Traces:
    """What survives a move to new weights."""

    jacobians: dict[Any, Split] = field(default_factory=dict)
    hessians: dict[Any, Split] = field(default_factory=dict)
    count: int = 0


@dataclass
class _Setup:
    """What belongs to one point."""

    point: Point
    jacobian: Jacobian
    outputs: list[Tensor]  # leaves, the roots of the graph of the loss
    output: Outputs  # as the module returns them, made of the leaves
    loss: Tensor
    slope: list[Tensor] | None = None
    held: bool = False  # whether the likelihood was held against the loss here
    gradient: list[Tensor] | None = None
    hessian: HessianProduct | None = None


_AROUND: ContextVar[Callable[[str], AbstractContextManager[object]]] = ContextVar(
    "around", default=lambda _: nullcontext()
)


@contextmanager
def observed(around: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """Count or time curvature products, wherever they are taken: in a refit, for instance.

    Args:
        around: called with "ggn", "fisher" or "hessian" for each product, which then runs inside the context that it
            returns.

    Yields:
        Nothing.
    """
    token = _AROUND.set(around)
    try:
        yield
    finally:
        _AROUND.reset(token)


class Linearization:
    """A module linearized on a probe batch; vectors are dicts of tensors keyed by parameter name.

    Frozen parameters have no entry, tied ones a single entry. Half precision is computed in float32. Nothing
    of the module changes: not its gradients, buffers or flags, nor the random state.

    Args:
        module: f, any module whose forward is deterministic: dropout and batch norm in evaluation mode.
        loss_fn: l, called as loss_fn(outputs, targets), or loss_fn(outputs) when ``targets`` is None.
        inputs: the probe batch x: a tuple of positional or a mapping of keyword arguments; anything else is the one
            argument.
        targets: the labels y, or whatever ``loss_fn`` takes.
        likelihood: of the labels, for Fisher products; inferred from ``loss_fn`` when None, and held against it: its
            score at the outputs must be the gradient that autograd finds.
        states: costs S_i on the change of named modules' outputs: a number s >= 0 for s I, or a positive
            semidefinite matrix (d, d) that acts on each example's flattened output.
        state_reduction: "mean" divides the costs on states by the number of examples, "sum" does not.
        backend: "traced" graphs, "kept" autograd graphs (they need no forward-mode rules; on convolutions
            they are slower), or "auto": traced where the module can be traced.

    Raises:
        ValueError: a bad argument, a module in training mode, a batch that does not fit, is not finite, or
            gives different outputs when evaluated twice.
        RuntimeError: the module cannot be differentiated twice.

    Source: Schraudolph (2002), "Fast curvature matrix-vector products", section 3.
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
        self._state_reduction = check_choice("state_reduction", state_reduction, ("mean", "sum"))
        self._costs = {name: _checked_cost(name, cost) for name, cost in (states or {}).items()}
        self._pure = PureModule(module, loss_fn, tuple(self._costs))
        self._likelihood, self._belongs = likelihood, False
        self._batch = (inputs, targets)
        self._traces = _Traces()
        self._setup: _Setup | None = None
        self.relinearize()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable parameters, in the order of ``module.named_parameters()``."""
        return self._pure.names

    @property
    def traces(self) -> int:
        """How many times a graph was traced; new weights or data of known shapes do not add to it."""
        return self._traces.count

    @property
    def outputs(self) -> Outputs:
        """What the module returns at the point."""
        here = self._here()
        return rebuilt(here.output, [z.detach() for z in here.outputs])

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The loss l(z, y) at the point."""
        return self._here().loss.detach()

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood given, else the one inferred from the loss; ValueError if it is not the loss's.

        It is held against the loss on the first batch that tells (once per set-up).
        """
        if self._likelihood is None:
            self._likelihood = infer_likelihood(self._pure.loss_fn)
        here = self._setup
        if here is not None and not (self._belongs or here.held):
            here.held = True
            targets = self._pure.targets(here.point.rest, here.point.layout)
            with isolated(self._pure.device):
                output, loss = self._pure.look(here.point)
            self._likelihood, self._belongs = held_against(
                self._likelihood, self._pure.loss_fn, output, targets, loss=loss
            )
        return self._likelihood

    def relinearize(self, inputs: Batch = None, targets: Any = None) -> Linearization:
        """Move to the module's current weights, and to another batch if one is given: one forward pass.

        Args:
            inputs: the new probe batch; None keeps the old batch and its targets.
            targets: its labels.

        Returns:
            This object.

        Raises:
            ValueError: as at construction.
        """
        if inputs is not None:
            self._batch = (inputs, targets)
        self.release()
        pure = self._pure
        point = pure.at(*self._batch)
        new = point.key not in self._traces.jacobians
        output = pure.check(point) if new else None
        with isolated(pure.device):
            split = self._split(self._traces.jacobians, trace_jacobian, point)
            jacobian: Jacobian
            if split is not None:
                jacobian = TracedJacobian(split, point)
                if not new:
                    output, states = pure.now(point)
                    if not alike(
                        jacobian.values, [*floats(output), *states]
                    ):  # the key cannot see everything
                        self._traces = _Traces(count=self._traces.count)
                        split = self._split(self._traces.jacobians, trace_jacobian, point)
                        jacobian = jacobian if split is None else TracedJacobian(split, point)
            if split is None:
                with _twice_differentiable():
                    jacobian = kept = KeptJacobian(pure, point)
                    output = kept.output
                    if new:  # what cannot be differentiated shows here and not at the first product
                        jacobian.tangent([torch.zeros_like(p) for p in point.params])
            with torch.enable_grad():
                count = len(jacobian.values) - len(self._costs)
                outputs = [z.detach().requires_grad_() for z in jacobian.values[:count]]
                output = rebuilt(output, outputs)
                loss = pure.loss(output, point.rest, point.layout)
        if not bool(torch.isfinite(loss) & all_finite(output)):
            raise ValueError(f"the probe batch gives a loss of {loss.item()} or outputs that are not finite.")
        self._setup = _Setup(point, jacobian, outputs, output, loss)
        return self

    def release(self) -> None:
        """Free what was kept of the forward pass; traces stay, products need ``relinearize()`` first."""
        self._setup = None

    def gradient(self) -> Vector:
        """J^T l'(z): the gradient of the loss, with the loss's own reduction.

        Returns:
            A vector of weights; its tensors are shared between calls, do not write into them.
        """
        here = self._here()
        if here.gradient is None:
            here.gradient = self._adjoint(here, [slope.detach() for slope in self._slope(here)])
        return self._dict(here.gradient)

    def jvp(self, v: Vector) -> Outputs:
        """J v: the first-order change of the outputs when the weights change by v.

        Args:
            v: a vector of weights.

        Returns:
            A tensor of the outputs' shape, in the containers that the module returns.
        """
        here = self._here()
        return rebuilt(here.output, self._tangent(here, v)[: len(here.outputs)])

    def vjp(self, cotangent: Outputs) -> Vector:
        """J^T c.

        Args:
            cotangent: c, of the outputs' shape.

        Returns:
            A vector of weights.
        """
        return self._dict(self._adjoint(self._here(), [c.detach() for c in floats(cotangent)]))

    def ggn(self, v: Vector) -> Vector:
        """The Gauss-Newton product J^T l''(z) J v, plus the costs on states.

        Args:
            v: a vector of weights.

        Returns:
            A vector of weights.

        Raises:
            RuntimeError: the loss has no second derivative in the outputs.
        """
        here = self._here()
        slopes = self._slope(here)
        if not any(slope.requires_grad for slope in slopes):
            raise RuntimeError(
                "the loss is linear in the outputs or has no second derivative, so it has no Gauss-Newton "
                'matrix; use a Fisher product (divergence="fisher") or another loss.'
            )

        def curvature(change: list[Tensor]) -> list[Tensor]:
            return loss_curvature(slopes, here.outputs, change)

        with _AROUND.get()("ggn"):
            return self._sandwich(here, v, curvature)

    def fisher(self, v: Vector, reduction: str | None = None) -> Vector:
        """The Fisher product J^T Q J v, with Q of the likelihood's labels, plus the costs on states.

        Args:
            v: a vector of weights.
            reduction: "sum" over the likelihood's terms, "mean" over them, or None for the loss's own.

        Returns:
            A vector of weights.
        """
        here, likelihood = self._here(), self.likelihood
        if reduction is not None:
            check_choice("reduction", reduction, ("mean", "sum"))
            likelihood = replace(likelihood, reduction=reduction)
        labels = likelihood.read_labels(self._pure.targets(here.point.rest, here.point.layout))

        def curvature(change: list[Tensor]) -> list[Tensor]:
            return likelihood_curvature(likelihood, here.output, here.outputs, labels, change)

        with _AROUND.get()("fisher"):
            return self._sandwich(here, v, curvature)

    def hessian(self, v: Vector) -> Vector:
        """The Hessian product H v of the loss, plus the costs on states.

        Args:
            v: a vector of weights.

        Returns:
            A vector of weights.
        """
        here = self._here()
        with _AROUND.get()("hessian"), isolated(self._pure.device), _twice_differentiable():
            if here.hessian is None:
                split = self._split(self._traces.hessians, trace_hessian, here.point)
                here.hessian = (
                    TracedHessian(split, here.point) if split else KeptHessian(self._pure, here.point)
                )
            product = here.hessian.product(self._list(here, v))
        if self._costs:
            extra = self._sandwich(here, v, lambda change: [torch.zeros_like(dz) for dz in change])
            product = [a + extra[name] for a, name in zip(product, self.names, strict=True)]
        return self._dict(product)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but traces and residuals: a copy needs ``relinearize()`` before its first product."""
        return {**self.__dict__, "_traces": _Traces(), "_setup": None}

    def _split(
        self, known: dict[Any, Split], trace: Callable[[PureModule, Point], SplitFunction], point: Point
    ) -> Split:
        """The graphs for the shapes of ``point``, remembered or traced now."""
        if point.key in known:
            known[point.key] = known.pop(point.key)  # most recently used last
            return known[point.key]
        split: Split = None
        if self.backend != "kept":
            try:
                split = trace(self._pure, point)
                self._traces.count += 1
            except UntraceableError as error:
                if self.backend == "traced":
                    raise RuntimeError(
                        f"the module cannot be traced ({error}); use backend='kept'."
                    ) from error
        known[point.key] = split
        if len(known) > KEPT_TRACES:
            del known[next(iter(known))]
        return split

    def _here(self) -> _Setup:
        if self._setup is None:
            raise RuntimeError(
                "the set-up was released or copied; call relinearize() before taking products."
            )
        if self._setup.point.stale():
            raise RuntimeError("weights or buffers changed in place since the set-up; call relinearize().")
        return self._setup

    def _slope(self, here: _Setup) -> list[Tensor]:
        """l'(z), with its graph; one tensor for each that the module returns."""
        if here.slope is None:
            with torch.enable_grad():
                parts = torch.autograd.grad(here.loss, here.outputs, create_graph=True, allow_unused=True)
            pairs = zip(here.outputs, parts, strict=True)
            here.slope = [torch.zeros_like(z) if part is None else part for z, part in pairs]
        return here.slope

    def _sandwich(self, here: _Setup, v: Vector, curvature: Callable[[list[Tensor]], list[Tensor]]) -> Vector:
        """J^T Q J v + sum_i J_i^T S_i J_i v."""
        with torch.autocast(self._pure.device.type, enabled=False):
            changes = self._tangent(here, v)
            change, states = changes[: len(here.outputs)], changes[len(here.outputs) :]
            cotangents = curvature(change)
            for state, cost in zip(states, self._costs.values(), strict=True):
                share = 1 / len(state) if self._state_reduction == "mean" else 1.0
                if isinstance(cost, Tensor):
                    cotangents.append((state.flatten(1) @ (share * cost.to(state))).view_as(state))
                else:
                    cotangents.append(share * cost * state)
        return self._dict(self._adjoint(here, cotangents))

    def _tangent(self, here: _Setup, v: Vector) -> list[Tensor]:
        with torch.autocast(self._pure.device.type, enabled=False):
            return here.jacobian.tangent(self._list(here, v))

    def _adjoint(self, here: _Setup, cotangents: list[Tensor]) -> list[Tensor]:
        cotangents = cotangents + [torch.zeros_like(x) for x in here.jacobian.values[len(cotangents) :]]
        with torch.autocast(self._pure.device.type, enabled=False):
            return here.jacobian.adjoint(cotangents)

    def _list(self, here: _Setup, v: Vector) -> list[Tensor]:
        if set(v) != set(self.names):
            missing, unknown = sorted(set(self.names) - set(v)), sorted(set(v) - set(self.names))
            raise ValueError(
                f"a vector has one tensor a trainable parameter; missing {missing}, unknown {unknown}."
            )
        return [v[name].detach().to(p.dtype) for name, p in zip(self.names, here.point.params, strict=True)]

    def _dict(self, tensors: Sequence[Tensor]) -> Vector:
        return dict(zip(self.names, tensors, strict=True))


def _checked_cost(name: str, cost: float | Tensor) -> float | Tensor:
    """A number >= 0 or a symmetric positive semidefinite matrix."""
    if not isinstance(cost, Tensor):
        return check_number(f"states[{name!r}]", cost, low=0.0)
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or not bool(torch.isfinite(cost).all()):
        raise ValueError(
            f"states[{name!r}] has shape {tuple(cost.shape)}; pass a finite square matrix or a number."
        )
    size = float(cost.abs().max())
    if (
        float((cost - cost.mT).abs().max()) > 1e-6 * size
        or float(torch.linalg.eigvalsh(cost)[0]) < -1e-6 * size
    ):
        raise ValueError(f"states[{name!r}] is not symmetric positive semidefinite; pass a cost that is.")
    return cost.detach()


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Say what can be done when a derivative is not implemented."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        raise_out_of_memory(error)
        reason = str(error).splitlines()[0]
        remedy = "replace the operation by one that torch can differentiate twice"
        if "attention" in str(error) or "flash" in str(error):
            remedy = (
                "fused attention has neither forward-mode nor second derivatives: call "
                "scaled_dot_product_attention without forcing a kernel, or write softmax(Q K^T) V out"
            )
        raise RuntimeError(
            f"the module or its loss cannot be differentiated twice ({reason}); {remedy}."
        ) from error
