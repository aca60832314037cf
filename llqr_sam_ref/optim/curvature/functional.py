"""A module and its loss as pure functions of tensors, evaluated without side effects.

Nothing outside is touched: buffers are copied, the global random state is restored, flags are only read,
autocast is off, and attention is computed by its written-out form, because the fused kernels have no second
derivative.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from llqr_sam_ref.errors import unknown_name
from llqr_sam_ref.optim._tree import Tree, flatten, map_tensors, tensors_of, unflatten
from llqr_sam_ref.optim.curvature.memory import raise_out_of_memory
from llqr_sam_ref.optim.curvature.outputs import Outputs, alike, all_finite, described, floats
from llqr_sam_ref.optim.curvature.settings import settings
from llqr_sam_ref.optim.likelihood import LossFn

Vector = dict[str, Tensor]
Batch = Any  # a tuple of positional or a mapping of keyword arguments; anything else is the one argument


class _Hole:
    """Stands where a batch has a tensor."""

    def __repr__(self) -> str:
        return "tensor"


HOLE = _Hole()


@dataclass(frozen=True)
class Layout:
    """How the tensors of a point make up frozen parameters, buffers and the batch."""

    fixed: tuple[str, ...]  # names of frozen parameters and buffers, first in ``rest``
    leaves: tuple[Any, ...]  # of ((arguments, keywords), targets), HOLE where a tensor goes
    tree: Tree
    inputs: int  # how many tensors of the batch are arguments; targets come after them


@dataclass
class Point:
    """Where a module is evaluated: every tensor it reads, in float32 or better.

    Args:
        params: trainable parameters, detached, in the order of ``PureModule.names``.
        rest: frozen parameters, copies of the buffers, tensors of the batch.
        layout: what ``rest`` is made of.
        key: what a trace is good for: shapes, dtypes, devices, layout, training flags.
        sources: the module's own tensors with their versions, to notice in-place changes.
    """

    params: list[Tensor]
    rest: list[Tensor]
    layout: Layout
    key: Hashable
    sources: list[tuple[Tensor, int]]

    def stale(self) -> bool:
        """Whether a weight or buffer was changed in place since."""
        return any(tensor._version != version for tensor, version in self.sources)


class PureModule:
    """z = f(w, x) and l(z, y) for one module.

    Args:
        module: any module whose forward is a deterministic function of its tensors.
        loss_fn: loss_fn(outputs, targets), or loss_fn(outputs) without targets, to a scalar.
        states: names of submodules whose outputs are wanted beside the module's own.

    Raises:
        ValueError: there is no trainable parameter, one is sparse or complex, or a name in ``states`` is
            unknown.
    """

    def __init__(self, module: nn.Module, loss_fn: LossFn, states: Sequence[str] = ()) -> None:
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError(f"module={type(module).__name__} has no trainable parameter; unfreeze some.")
        for name, parameter in trainable.items():
            if parameter.is_complex() or parameter.layout != torch.strided:
                kind = "complex" if parameter.is_complex() else "sparse"
                raise ValueError(
                    f"parameter {name!r} is {kind}; curvature products need dense real parameters."
                )
        known = dict(module.named_modules())
        for name in states:
            if name not in known:
                raise ValueError(unknown_name("states", name, known))
        self.module, self.loss_fn, self.states = module, loss_fn, tuple(states)
        self.names = tuple(trainable)
        self._parameters = {name for name, _ in module.named_parameters()}
        self.device = next(iter(trainable.values())).device

    def at(self, inputs: Batch, targets: Any) -> Point:
        """The module's current weights and buffers together with a batch.

        Args:
            inputs: a tuple of positional or a mapping of keyword arguments of the module; anything else is its one
                argument.
            targets: second argument of the loss, or None.

        Returns:
            The point; parameters are shared with the module, not copied, unless in half precision.

        Raises:
            ValueError: a module with random or batch-dependent behavior is in training mode, or the set of
                trainable parameters has changed.
        """
        check_evaluation_mode(self.module)
        parameters = dict(self.module.named_parameters())
        if tuple(n for n, p in parameters.items() if p.requires_grad) != self.names:
            raise ValueError("the module's trainable parameters have changed since the set-up; set up anew.")
        still = {n: p for n, p in parameters.items() if not p.requires_grad} | dict(
            self.module.named_buffers()
        )
        special = {n: t for n, t in still.items() if _is_special(t)}  # they stay in the module
        passed = {n: t for n, t in still.items() if n not in special}
        leaves, tree = flatten((_arguments(inputs), targets))
        holes = tuple(HOLE if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        layout = Layout(tuple(passed), holes, tree, len(tensors_of(inputs)))
        params = [_promote(parameters[name].detach()) for name in self.names]
        rest = [
            _promote(t.detach()) if isinstance(t, nn.Parameter) else _promote(t.detach().clone())
            for t in passed.values()
        ]
        rest += [_promote(leaf.detach().clone()) for leaf in leaves if isinstance(leaf, Tensor)]
        shapes = tuple((tuple(t.shape), t.dtype, t.device) for t in (*params, *rest))
        flags = tuple(module.training for module in self.module.modules())
        untouched = tuple((name, id(t), t._version) for name, t in special.items())
        key = (shapes, layout.fixed, repr(holes), str(tree), flags, untouched, settings(self.module))
        sources = [(t, t._version) for t in (*parameters.values(), *still.values())]
        return Point(params, rest, layout, key, sources)

    def forward(self, params: Sequence[Tensor], rest: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        """Outputs and states, as tensors.

        Args:
            params: the trainable parameters.
            rest: the other tensors of a point.
            layout: what ``rest`` is made of.

        Returns:
            The floating-point tensors that the module returns, then the output of each module in ``states``.
        """
        output, states = self.run(params, rest, layout)
        return [*floats(output), *states]

    def run(
        self, params: Sequence[Tensor], rest: Sequence[Tensor], layout: Layout
    ) -> tuple[Outputs, list[Tensor]]:
        """Outputs, as the module returns them, and states.

        Args:
            params: the trainable parameters.
            rest: the other tensors of a point.
            layout: what ``rest`` is made of.

        Returns:
            What the module returns, and the output of each module in ``states``.

        Raises:
            ValueError: there is no floating-point tensor in an output, or a state is not one, or not computed exactly
                once.
        """
        tensors = dict(zip(self.names, params, strict=True))
        fixed = dict(zip(layout.fixed, rest, strict=False))
        # What the module may write into is a copy every time, so that every evaluation sees the same.
        tensors.update({name: t if name in self._parameters else t.clone() for name, t in fixed.items()})
        arguments, keywords = map_tensors(Tensor.clone, _unflatten(rest, layout)[0])
        caught: dict[str, list[Tensor]] = {name: [] for name in self.states}
        modules = dict(self.module.named_modules())
        handles = []
        try:
            for name in self.states:
                handles.append(modules[name].register_forward_hook(_catch(caught[name])))
            output = functional_call(self.module, tensors, arguments, keywords)
        finally:
            for handle in handles:
                handle.remove()
        for name, calls in caught.items():
            if len(calls) != 1:
                raise ValueError(
                    f"states={name!r} is called {len(calls)} times in a forward pass; choose another module."
                )
        if not floats(output):
            raise ValueError(
                f"the module must return a floating-point tensor, or containers of them, not {type(output).__name__}."
            )
        states = {name: calls[0] for name, calls in caught.items()}
        for name, value in states.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise ValueError(f"{name} must return one floating-point tensor, not {type(value).__name__}.")
        return output, list(states.values())

    def loss(self, output: Outputs, rest: Sequence[Tensor], layout: Layout) -> Tensor:
        """The loss of an output.

        Args:
            output: what the module returns.
            rest: tensors of a point; the targets are among them.
            layout: what ``rest`` is made of.

        Returns:
            A scalar.

        Raises:
            ValueError: the loss is not a scalar.
        """
        targets = map_tensors(Tensor.clone, self.targets(rest, layout))
        value = self.loss_fn(output) if targets is None else self.loss_fn(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError("loss_fn must return a scalar tensor; use reduction='mean' or 'sum'.")
        return value.reshape(())

    def targets(self, rest: Sequence[Tensor], layout: Layout) -> Any:
        """The targets of a point."""
        return _unflatten(rest, layout)[1]

    def now(self, point: Point) -> tuple[Outputs, list[Tensor]]:
        """What the module returns now, and its states: one forward pass.

        Args:
            point: where.

        Returns:
            Outputs and states, without a graph.
        """
        with torch.no_grad():
            return self.run(point.params, point.rest, point.layout)

    def look(self, point: Point) -> tuple[Outputs, Tensor | None]:
        """What the module returns and the loss of that, with their graph.

        Args:
            point: where.

        Returns:
            Outputs, and the loss; None for a loss that waits for targets.
        """
        with torch.enable_grad():
            params = [p.detach().requires_grad_() for p in point.params]
            output, _ = self.run(params, point.rest, point.layout)
            if self.targets(point.rest, point.layout) is None:
                return output, None
            return output, self.loss(output, point.rest, point.layout)

    def check(self, point: Point) -> Outputs:
        """Evaluate twice and see that the module, the loss and the batch belong together.

        Args:
            point: where.

        Returns:
            What the module returns.

        Raises:
            ValueError: the batch does not fit or is not finite, or two evaluations differ.
        """
        leaves = point.rest[len(point.layout.fixed) :]
        shapes = [tuple(leaf.shape) for leaf in leaves]
        for leaf in leaves:
            if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise ValueError(
                    f"the probe batch (shapes {shapes}) contains NaN or Inf; remove those examples."
                )
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad(), isolated(self.device):
            try:
                output, states = self.run(point.params, point.rest, point.layout)
                first, second = (
                    [*floats(output), *states],
                    self.forward(point.params, point.rest, point.layout),
                )
            except Exception as error:
                raise_out_of_memory(error)
                raise ValueError(
                    f"the module cannot be evaluated on the probe batch (shapes {shapes}): {error} Pass "
                    "inputs as a tensor, a tuple of positional or a dict of keyword arguments."
                ) from error
            try:
                loss = self.loss(output, point.rest, point.layout)
            except Exception as error:
                raise_out_of_memory(error)
                raise ValueError(
                    f"loss_fn fails on {described(output)} with the given targets: {error}"
                ) from error
        if not bool(torch.isfinite(loss) & all_finite(output)):
            raise ValueError(
                f"the probe batch (shapes {shapes}) gives a loss of {loss.item()} or outputs not finite."
            )
        if not alike(first, second):
            raise ValueError(
                "two evaluations of the module on the same batch differ; switch off what is random in it."
            )
        return output


def check_evaluation_mode(module: nn.Module) -> None:
    """Refuse modules whose forward is random, or depends on or changes batch statistics.

    Args:
        module: the whole model.

    Raises:
        ValueError: names every offending submodule.
    """
    offending = []
    for name, part in module.named_modules():
        if not part.training:
            continue
        noisy = isinstance(part, _DropoutNd) and part.p > 0
        noisy |= isinstance(part, (nn.MultiheadAttention, nn.RNNBase)) and part.dropout > 0
        if noisy or isinstance(part, (_NormBase, nn.RReLU)):
            offending.append(f"{name or 'the module itself'} ({type(part).__name__})")
    if offending:
        raise ValueError(
            f"in training mode the output depends on chance or on batch statistics: {', '.join(offending)}; "
            "call module.eval() first."
        )


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Autocast off, attention by its differentiable form; as it was afterwards."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.autocast(device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)  # the fast path has no derivative at all
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _arguments(inputs: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _unflatten(rest: Sequence[Tensor], layout: Layout) -> Any:
    tensors = iter(rest[len(layout.fixed) :])
    leaves = [next(tensors) if leaf is HOLE else leaf for leaf in layout.leaves]
    return unflatten(leaves, layout.tree)


def _catch(into: list[Tensor]) -> Any:
    """A forward hook that keeps a copy: an in-place activation may overwrite the output itself."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        into.append(output.clone() if isinstance(output, Tensor) else output)

    return hook


def _is_special(tensor: Tensor) -> bool:
    """Whether a frozen tensor means something only as it is: of another class, or with attributes, as if quantized."""
    if type(tensor) not in {Tensor, nn.Parameter}:
        return True
    return bool(vars(tensor)) and not (tensor.is_floating_point() and tensor.element_size() < 4)


def _promote(tensor: Tensor) -> Tensor:
    """Half precision to float32: curvature is computed in float32 or better."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
