"""``key=value`` pairs: keyword arguments of a model, a data set or LLQR as the command line gives them."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from llqr_sam_ref.errors import UserError


def parse(argument: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value is a Python literal, several separated by commas, or a word.

    Args:
        argument: the flag they came from, for the error.
        pairs: for example ("width=16", "norm=group", "hidden=64,64").

    Returns:
        The values by key.

    Raises:
        UserError: a pair has no "=", or a key occurs twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not separator or not key.isidentifier():
            raise UserError(f"{argument} has {pair!r}; write key=value, for example width=16.")
        if key in values:
            raise UserError(f"{argument} sets {key!r} twice; write it once.")
        values[key] = _value(text.strip())
    return values


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
