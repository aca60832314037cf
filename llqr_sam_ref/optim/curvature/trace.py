"""Trace a function that is linear in some of its arguments once, and split it by dependence on them.

Let fn(primals, t_1, ..., t_k) return values that depend on the primals alone and, for each j, tensors linear
in t_j (with coefficients that depend on the primals). One trace gives 1 + k graphs: a *set-up* that maps the
primals to the values and to whatever the linear parts need of them (the residuals), and one *map* for each j
that takes residuals and t_j. Set up again at new weights, the maps are the derivative there: nothing is
traced again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from llqr_sam_ref.optim.curvature.memory import raise_out_of_memory

Tensors = Sequence[Tensor]
VALUES = -1  # what a node that depends on the primals alone belongs to; maps are numbered from 0


def _zeros(size: Sequence[int], **options: Any) -> Tensor:
    return torch.zeros(size, **{name: options.get(name) for name in ("dtype", "layout", "device")})


# Forward mode stands zero tangents in by tensors without storage, and under tracing some operations on those crash.
PLAIN_ZEROS = {torch.ops.aten._efficientzerotensor.default: _zeros}


class UntraceableError(RuntimeError):
    """The function cannot be replayed from a graph: it branches on values, or lacks a rule."""


class SplitFunction:
    """The graphs of one function at fixed shapes.

    Args:
        fn: takes a list of primals and k lists of tensors; returns a list of values and k lists, the j-th
            linear in the j-th argument.
        primals: example primals; shapes, dtypes and devices are baked in, values are not.
        tangents: k example lists.

    Raises:
        UntraceableError: ``fn`` cannot be traced, or is not of this form.
    """

    def __init__(self, fn: Callable[..., tuple[Tensors, ...]], primals: Tensors, *tangents: Tensors) -> None:
        counts = [len(primals), *(len(t) for t in tangents)]
        sizes: list[int] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            parts, start = [], 0
            for count in counts:
                parts.append(list(tensors[start : start + count]))
                start += count
            results = fn(*parts)
            sizes[:] = [len(result) for result in results]
            return [tensor for result in results for tensor in result]

        arguments = [*primals, *(tensor for t in tangents for tensor in t)]
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # torch compiles its own forward-mode rules on first use, with a function it deprecates
                warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
                traced = make_fx(functionalize(flat), decomposition_table=PLAIN_ZEROS)(*arguments)
        except Exception as error:  # whatever a module's forward can raise under tracing
            raise_out_of_memory(error)
            raise UntraceableError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        _simplify(traced.graph)
        self._strides = [tensor.stride() for tensor in arguments]
        self._starts = [sum(counts[:index]) for index in range(len(counts))]
        self._split(traced, counts, sizes)

    def _split(self, traced: fx.GraphModule, counts: Sequence[int], sizes: Sequence[int]) -> None:
        graph = traced.graph
        owner = _owners(graph, counts)
        (output,) = (node for node in graph.nodes if node.op == "output")
        outputs: list[fx.Node] = list(output.args[0])
        groups, start = [], 0
        for size in sizes:
            groups.append(outputs[start : start + size])
            start += size
        for index, group in enumerate(groups):
            if any(owner[node] not in (VALUES, index - 1) for node in group):
                raise UntraceableError("an output depends on a tangent that it should not depend on")
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        primals = placeholders[: counts[0]]
        residuals = [
            node
            for node in graph.nodes
            if owner.get(node) == VALUES and any(owner.get(user, VALUES) != VALUES for user in node.users)
        ]
        residuals += [n for group in groups[1:] for n in group if owner[n] == VALUES and n not in residuals]
        self._values = sizes[0]
        self._setup = _extract(traced, owner, VALUES, primals, [*groups[0], *residuals])
        self._maps, start = [], counts[0]
        for index, group in enumerate(groups[1:]):
            inputs = placeholders[start : start + counts[index + 1]]
            start += counts[index + 1]
            needed = _needed(group, owner, index)
            used = [position for position, node in enumerate(residuals) if node in needed]
            part = _extract(traced, owner, index, [*(residuals[p] for p in used), *inputs], group)
            self._maps.append((part, used))

    def set_up(self, primals: Tensors) -> tuple[list[Tensor], list[Tensor]]:
        """Evaluate what depends on the primals alone.

        Args:
            primals: tensors of the shapes traced.

        Returns:
            The values, and the residuals that ``map`` takes.
        """
        results = self._setup(*self._laid_out(primals, 0))
        return list(results[: self._values]), list(results[self._values :])

    def map(self, index: int, residuals: Tensors, tangent: Tensors) -> list[Tensor]:
        """Apply the linear part of the given index.

        Args:
            index: which linear argument, from 0.
            residuals: what ``set_up`` returned.
            tangent: the linear argument.

        Returns:
            The outputs linear in it.
        """
        part, used = self._maps[index]
        return list(part(*(residuals[position] for position in used), *self._laid_out(tangent, index + 1)))

    def _laid_out(self, tensors: Tensors, argument: int) -> list[Tensor]:
        """The tensors with the strides they had when the graphs were traced: views depend on them."""
        strides = self._strides[self._starts[argument] :]
        return [
            t
            if t.stride() == stride
            else torch.empty_strided(t.shape, stride, dtype=t.dtype, device=t.device).copy_(t)
            for t, stride in zip(tensors, strides, strict=False)
        ]


def _owners(graph: fx.Graph, counts: Sequence[int]) -> dict[fx.Node, int]:
    """Which linear argument each node depends on, or VALUES."""
    owner: dict[fx.Node, int] = {}
    position = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            index, bound = VALUES, counts[0]
            while position >= bound:
                index += 1
                bound += counts[index + 1]
            owner[node] = index
            position += 1
        elif node.op != "output":
            owners = {owner[argument] for argument in node.all_input_nodes} - {VALUES}
            if len(owners) > 1:
                raise UntraceableError(f"{node.target} mixes two linear arguments")
            owner[node] = owners.pop() if owners else VALUES
    return owner


def _needed(outputs: Sequence[fx.Node], owner: dict[fx.Node, int], index: int) -> set[fx.Node]:
    """The VALUES nodes that the graph of one linear part reads."""
    needed, stack, seen = set(), list(outputs), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if owner[node] == VALUES:
            needed.add(node)
        else:
            stack.extend(node.all_input_nodes)
    return needed


def _extract(
    traced: fx.GraphModule,
    owner: dict[fx.Node, int],
    index: int,
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
) -> fx.GraphModule:
    """The part of the graph that ``index`` owns, from ``inputs`` to ``outputs``."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"a{position}") for position, node in enumerate(inputs)}
    for node in traced.graph.nodes:
        if node.op not in ("placeholder", "output") and owner[node] == index and node not in copies:
            copies[node] = graph.node_copy(node, lambda argument: copies[argument])
    graph.output(tuple(copies[node] for node in outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule(traced, graph)


def _simplify(graph: fx.Graph) -> None:
    """Drop aliases, dead code and repeated computations; refuse graphs that write into tensors."""
    alias = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
    for node in list(graph.nodes):
        if node.target in alias:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    # The tangent and the adjoint each traced the forward pass: keep one.
    seen: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise UntraceableError(f"{node.target} writes into a tensor")
        key = (node.target, _key(node.args), _key(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node
    graph.eliminate_dead_code()


def _key(argument: object) -> object:
    """A hashable stand-in for the arguments of a node; 1, 1.0 and True stay different."""
    if isinstance(argument, (list, tuple)):
        return ("sequence", *(_key(item) for item in argument))
    if isinstance(argument, dict):
        return tuple((name, _key(item)) for name, item in argument.items())
    return (type(argument).__name__, argument)
