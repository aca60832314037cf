"""What a checkpoint must be like for a learned preconditioner to go on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from llqr_sam_ref.config import LLQRConfig

Shapes = Mapping[Tensor, Mapping[str, tuple[int, ...]]]


def check_groups(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """See that the groups have the structures they were saved with.

    Args:
        saved: groups of a state dict.
        groups: the optimizer's.

    Raises:
        ValueError: they differ.
    """
    for index, (then, now) in enumerate(zip(saved, groups, strict=False)):
        if then.get("structure", now["structure"]) != now["structure"]:
            raise ValueError(
                f"state_dict has structure={then['structure']!r} in group {index}, this LLQR {now['structure']!r}; "
                "build it with the structure it was saved with."
            )


def check_entries(
    parameter: Tensor, entries: Mapping[str, Any], expected: Shapes, config: LLQRConfig
) -> None:
    """See that a parameter's entries have the names and shapes of its block.

    Args:
        parameter: the parameter.
        entries: names and tensors; or nothing, which fits.
        expected: names and shapes by the first parameter of each block.
        config: what LLQR does.

    Raises:
        ValueError: they do not.
    """
    wanted = dict(expected.get(parameter, {}))
    if not entries or not (wanted or parameter.requires_grad):
        return  # what was learned before a parameter was frozen may wait until it is thawed
    saved = {name: tuple(value.shape) for name, value in entries.items() if isinstance(value, Tensor)}
    if saved != wanted:
        raise ValueError(
            f"state_dict has {saved} for a parameter of shape {tuple(parameter.shape)}, but "
            f"structure={config.structure!r} with solver={type(config.solver).__name__} keeps {wanted}; build "
            "LLQR with the configuration it was saved with."
        )


def check_complete(
    groups: Sequence[Mapping[str, Any]],
    entries: Sequence[tuple[Any, Tensor, Mapping[str, Any]]],
    expected: Shapes,
    config: LLQRConfig,
) -> None:
    """See that every block has the entries that were saved, and the right ones.

    A block that had none then, being frozen or not there yet, begins at U = I and is refitted at once.

    Args:
        groups: of the state dict, which say how many parameters had entries when it was saved.
        entries: the key in the state dict, the parameter, and its entries, for all parameters.
        expected: names and shapes by the first parameter of each block.
        config: what LLQR does.

    Raises:
        ValueError: one has none, or others.
    """
    for _, parameter, mine in entries:
        check_entries(parameter, mine, expected, config)
    missing = [key for key, parameter, mine in entries if parameter in expected and not mine]
    there = sum(bool(mine) for _, _, mine in entries)
    saved = sum(int(group.get("llqr_blocks", there + len(missing))) for group in groups)
    if missing and there < saved:
        raise ValueError(
            f"state_dict has no llqr_ entries for parameter {missing[0]!r}; it is truncated ({there} of the {saved} "
            "parameters that were saved have some): load a complete one."
        )
