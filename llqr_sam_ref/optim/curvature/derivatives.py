"""Two ways to differentiate a pure module many times at one point.

``Traced`` evaluates graphs that were traced once for the shapes at hand: 4 forward passes' worth of
arithmetic a Gauss-Newton product, 6 a Hessian product, whatever the layers. ``Kept`` uses autograd alone: the
Jacobian product is the derivative of the adjoint, which is linear (the R-operator); it needs nothing but
second derivatives, and on convolutions it costs about twice as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from llqr_sam_ref.optim.curvature.functional import Point, PureModule
from llqr_sam_ref.optim.curvature.outputs import floats
from llqr_sam_ref.optim.curvature.trace import SplitFunction

Tensors = Sequence[Tensor]


class Jacobian(Protocol):
    """J of outputs and states at one point, both ways."""

    values: list[Tensor]

    def tangent(self, v: Tensors) -> list[Tensor]:
        """J v, one tensor for the output and for each state."""

    def adjoint(self, cotangents: Tensors) -> list[Tensor]:
        """J^T c, one tensor a parameter."""


class HessianProduct(Protocol):
    """The Hessian of the loss at one point."""

    def product(self, v: Tensors) -> list[Tensor]:
        """H v, one tensor a parameter."""


def trace_jacobian(pure: PureModule, point: Point) -> SplitFunction:
    """Trace (w, rest; v; c) -> f, J v, J^T c at the shapes of ``point``."""
    count, layout = len(point.params), point.layout

    def both(primals: Tensors, v: Tensors, cotangents: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        def f(*params: Tensor) -> tuple[Tensor, ...]:
            return tuple(pure.forward(params, primals[count:], layout))

        values, tangents = jvp(f, tuple(primals[:count]), tuple(v))  # type: ignore[misc]
        _, pull = vjp(f, *primals[:count])  # type: ignore[misc]
        return values, tangents, pull(tuple(cotangents))

    with torch.no_grad():
        shapes = pure.forward(point.params, point.rest, layout)
    primals = [*point.params, *point.rest]
    return SplitFunction(both, primals, _like(point.params), _like(shapes))


def trace_hessian(pure: PureModule, point: Point) -> SplitFunction:
    """Trace (w, rest; v) -> H v at the shapes of ``point``."""
    count, layout = len(point.params), point.layout

    def product(primals: Tensors, v: Tensors) -> tuple[Tensors, Tensors]:
        rest = primals[count:]

        def loss(params: tuple[Tensor, ...]) -> Tensor:
            return pure.loss(pure.run(params, rest, layout)[0], rest, layout)

        return (), jvp(grad(loss), (tuple(primals[:count]),), (tuple(v),))[1]

    return SplitFunction(product, [*point.params, *point.rest], _like(point.params))


class TracedJacobian:
    """J v and J^T c from traced graphs.

    Args:
        split: what ``trace_jacobian`` returned.
        point: where.
    """

    def __init__(self, split: SplitFunction, point: Point) -> None:
        self._split = split
        with torch.no_grad():
            self.values, self._residuals = split.set_up([*point.params, *point.rest])

    def tangent(self, v: Tensors) -> list[Tensor]:
        """J v, one tensor for the output and for each state."""
        with torch.no_grad():
            return self._split.map(0, self._residuals, v)

    def adjoint(self, cotangents: Tensors) -> list[Tensor]:
        """J^T c, one tensor a parameter."""
        with torch.no_grad():
            return self._split.map(1, self._residuals, cotangents)


class TracedHessian:
    """H v from a traced graph.

    Args:
        split: what ``trace_hessian`` returned.
        point: where.
    """

    def __init__(self, split: SplitFunction, point: Point) -> None:
        self._split = split
        with torch.no_grad():
            _, self._residuals = split.set_up([*point.params, *point.rest])

    def product(self, v: Tensors) -> list[Tensor]:
        """H v, one tensor a parameter."""
        with torch.no_grad():
            return self._split.map(0, self._residuals, v)


class KeptJacobian:
    """J v and J^T c from kept autograd graphs: g(u) = J^T u is linear in u, so J v = d<g(u), v>/du.

    Args:
        pure: the module.
        point: where.
    """

    def __init__(self, pure: PureModule, point: Point) -> None:
        with torch.enable_grad():
            self._params = [p.detach().requires_grad_() for p in point.params]
            self.output, states = pure.run(self._params, point.rest, point.layout)
            self._outputs = [*floats(self.output), *states]
            self._dummies = [torch.zeros_like(z).requires_grad_() for z in self._outputs]
            self._adjoint = _gradients(self._outputs, self._params, self._dummies, create_graph=True)
        self.values = [z.detach() for z in self._outputs]

    def tangent(self, v: Tensors) -> list[Tensor]:
        """J v, one tensor for the output and for each state."""
        return _gradients(self._adjoint, self._dummies, v)

    def adjoint(self, cotangents: Tensors) -> list[Tensor]:
        """J^T c, one tensor a parameter."""
        return _gradients(self._outputs, self._params, cotangents)


class KeptHessian:
    """H v = d<grad(w), v>/dw from the kept graph of the gradient.

    Args:
        pure: the module and its loss.
        point: where.
    """

    def __init__(self, pure: PureModule, point: Point) -> None:
        with torch.enable_grad():
            self._params = [p.detach().requires_grad_() for p in point.params]
            output, _ = pure.run(self._params, point.rest, point.layout)
            loss = pure.loss(output, point.rest, point.layout)
            self._gradient = _gradients([loss], self._params, [torch.ones_like(loss)], create_graph=True)

    def product(self, v: Tensors) -> list[Tensor]:
        """H v, one tensor a parameter."""
        return _gradients(self._gradient, self._params, v)


def _gradients(
    outputs: Tensors, inputs: Tensors, cotangents: Tensors, *, create_graph: bool = False
) -> list[Tensor]:
    """Sum of outputs' derivatives in the inputs, graphs kept; zeros where there is no dependence."""
    pairs = [(z, c) for z, c in zip(outputs, cotangents, strict=True) if z.requires_grad]
    if not pairs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    found = torch.autograd.grad(
        [z for z, _ in pairs],
        list(inputs),
        [c for _, c in pairs],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return [torch.zeros_like(t) if d is None else d for t, d in zip(inputs, found, strict=True)]


def _like(tensors: Tensors) -> list[Tensor]:
    return [torch.zeros_like(tensor) for tensor in tensors]
