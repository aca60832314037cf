"""Batches and outputs as lists of leaves: whatever torch's pytree opens, and any mapping or dataclass beside it.

Where tensors are split into micro-batches, one rule says which: those whose first axis is the batch's.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclasses.dataclass
class Tree:
    """What leaves hang on.

    Args:
        spec: torch's, over containers that torch knows.
        inner: for each of its leaves None, or another container with its own tree.
    """

    spec: Any
    inner: list[tuple[Any, Tree] | None]

    def __repr__(self) -> str:
        """The same for trees of the same shape."""
        opened = [node and (type(node[0]).__qualname__, node[1]) for node in self.inner]
        return f"{self.spec} {opened}"


def flatten(nest: Any) -> tuple[list[Any], Tree]:
    """Take a nest of containers apart.

    Args:
        nest: tensors and other values in tuples, lists, mappings, dataclasses and whatever torch's pytree opens.

    Returns:
        The leaves in order, and what ``unflatten`` needs.
    """
    leaves: list[Any] = []
    nodes, spec = pytree.tree_flatten(nest, is_leaf=lambda node: _parts(node) is not None)
    tree = Tree(spec, [])
    for node in nodes:
        parts = _parts(node)
        if parts is None:
            leaves.append(node)
            tree.inner.append(None)
        else:
            more, below = flatten(parts)
            leaves += more
            tree.inner.append((node, below))
    return leaves, tree


def unflatten(leaves: list[Any], tree: Tree) -> Any:
    """Put a nest together again; containers are new, or copies.

    Args:
        leaves: in the order of ``flatten``, changed or not.
        tree: what ``flatten`` returned.

    Returns:
        The nest.
    """
    remaining = iter(leaves)
    return _unflatten(remaining, tree)


def _unflatten(remaining: Any, tree: Tree) -> Any:
    nodes = []
    for node in tree.inner:
        if node is None:
            nodes.append(next(remaining))
        else:
            nodes.append(_rebuilt(node[0], _unflatten(remaining, node[1])))
    return pytree.tree_unflatten(nodes, tree.spec)


def map_tensors(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """A nest with every tensor replaced.

    Args:
        function: of a tensor.
        nest: as for ``flatten``.

    Returns:
        A nest of the same containers.
    """
    leaves, tree = flatten(nest)
    return unflatten([function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)


def tensors_of(nest: Any) -> list[Tensor]:
    """The tensors in a nest.

    Args:
        nest: as for ``flatten``.

    Returns:
        Its leaves that are tensors, in order.
    """
    return [leaf for leaf in flatten(nest)[0] if isinstance(leaf, Tensor)]


def sizes(batch: Sequence[Tensor], beside: Sequence[Tensor] = ()) -> str:
    """What may be wrong with the tensors of a batch, and with others beside it, to be added to an error."""
    examples = [len(tensor) if tensor.ndim else 0 for tensor in (*batch, *beside)]
    shapes = [tuple(tensor.shape) for tensor in batch]
    return f"The tensors of the probe batch have {examples} examples (shapes {shapes}); pass the same number in each."


def batch_size(inputs: Any, targets: Any) -> int:
    """How many examples a batch has.

    Args:
        inputs: of the model.
        targets: labels, or None.

    Returns:
        The first axis of the first tensor of ``targets``, where some tensor of ``inputs`` has it too (or there is
        none); else the first axis of the first tensor of ``inputs``; 0 without tensors.
    """
    ours = [len(tensor) for tensor in tensors_of(inputs) if tensor.ndim]
    theirs = [len(tensor) for tensor in tensors_of(targets) if tensor.ndim]
    if theirs and (not ours or theirs[0] in ours):
        return theirs[0]
    return ours[0] if ours else 0


def is_split(tensor: Tensor, examples: int, *, target: bool = False) -> bool:
    """Whether micro-batches have parts of a tensor, rather than the whole.

    Args:
        tensor: of a batch.
        examples: how many it has.
        target: among the targets, where examples may have several rows each (labels of tokens in one axis).

    Returns:
        Whether its first axis is the batch's.
    """
    if not tensor.ndim or not examples:
        return False
    return len(tensor) == examples or (target and len(tensor) > 0 and len(tensor) % examples == 0)


def check_split(inputs: Sequence[Tensor], examples: int, probes: int) -> None:
    """See that micro-batches have inputs of their own.

    Args:
        inputs: the tensors in them.
        examples: how many the batch has.
        probes: how many micro-batches there are.

    Raises:
        ValueError: they would all have the same inputs, whole.
    """
    if probes > 1 and not any(is_split(tensor, examples) for tensor in inputs):
        raise ValueError(
            f"probes={probes} micro-batches cannot be made of inputs without a tensor whose first axis has the batch's "
            f"{examples} examples; pass probes=1."
        )


def micro_batch(inputs: Any, targets: Any, index: int, count: int) -> tuple[Any, Any]:
    """One of equal contiguous parts of a batch.

    Args:
        inputs: of the model.
        targets: labels, or None.
        index: which part.
        count: how many there are; must divide the examples.

    Returns:
        Inputs and targets of the part. What has not the batch's first axis is passed whole.
    """
    if count == 1:
        return inputs, targets
    examples = batch_size(inputs, targets)

    def part(tensor: Tensor, *, target: bool) -> Tensor:
        if not is_split(tensor, examples, target=target):
            return tensor
        rows = len(tensor) // count
        return tensor[index * rows : (index + 1) * rows]

    return (
        map_tensors(lambda tensor: part(tensor, target=False), inputs),
        map_tensors(lambda tensor: part(tensor, target=True), targets),
    )


def _parts(node: Any) -> dict[Any, Any] | None:
    """What is in a container that torch does not open; None for anything else."""
    if type(node) in pytree.SUPPORTED_NODES or isinstance(node, (type, Tensor, tuple)):
        return None
    if isinstance(node, Mapping):
        return dict(node.items())
    if dataclasses.is_dataclass(node):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    return None


def _rebuilt(container: Any, parts: dict[Any, Any]) -> Any:
    """A copy of a container with other parts; of a mapping that cannot be written to, a plain dict."""
    if isinstance(container, dict) or hasattr(type(container), "__setitem__"):
        new = _copied(container)
        for key, value in parts.items():
            new[key] = value
        return new
    if isinstance(container, Mapping):
        return parts
    new = copy.copy(container)
    for name, value in parts.items():
        object.__setattr__(new, name, value)
    return new


def _copied(mapping: Any) -> Any:
    """A copy of a mapping to write into: what it keeps its items in is copied too, and its class is not called."""
    try:
        new = copy.copy(mapping)
    except TypeError:  # it is made with arguments
        kind: Any = type(mapping)
        new = kind.__new__(kind)
        vars(new).update(vars(mapping))
    kept = getattr(mapping, "__dict__", {})
    for name in [name for name, value in kept.items() if isinstance(value, (dict, list))]:
        if vars(new).get(name) is kept[name]:
            vars(new)[name] = copy.copy(kept[name])
    return new
