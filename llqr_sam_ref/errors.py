"""What bad input gets: an error that names the argument, its value and the remedy. Standard library only."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from importlib import import_module
from typing import SupportsIndex


class UserError(ValueError):
    """A mistake in what was asked for: the message names the argument and its value, and says what would do."""


class RunError(RuntimeError):
    """What ends a run and is no mistake in what was asked for: a full disk, a loss that is not finite."""


class MissingPackageError(ModuleNotFoundError, UserError):
    """A package that only a part of this one needs is not installed; the message says which extra brings it."""


def needs(package: str, extra: str) -> None:
    """See that a package is there that an extra of this one brings.

    Args:
        package: the name by which it is imported.
        extra: of this package, for the remedy.

    Raises:
        MissingPackageError: it is not installed.
        ModuleNotFoundError: it is, and lacks something itself.
    """
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackageError(
            f"{package} is not installed; pip install 'llqr-sam-ref[{extra}]'.", name=package
        ) from None


def unknown_name(argument: str, value: object, allowed: Iterable[str]) -> str:
    """What to say of a name that is not one of ``allowed``, with the nearest one as the remedy."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.0)
    return f"{argument}={value!r} is unknown; did you mean {close[0]!r}? Choose one of {names}."


def check_choice(argument: str, value: str, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        UserError: it is not; the message names the nearest allowed name.
    """
    names = tuple(allowed)
    if value not in names:
        raise UserError(unknown_name(argument, value, names))
    return value


def check_number(
    argument: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` as a float if it is finite and in [low, high] (ends excluded on request).

    Raises:
        UserError: it is not a number, not finite, or out of the interval.
    """
    opening = "(" if open_low or low == -math.inf else "["
    closing = ")" if open_high or high == math.inf else "]"
    interval = f"{opening}{low:g}, {high:g}{closing}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{argument}={value!r} is not a number; pass a number in {interval}.") from None
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if not math.isfinite(number) or below or above:
        raise UserError(f"{argument}={value!r} is not allowed; pass a finite number in {interval}.")
    return number


def check_count(argument: str, value: SupportsIndex, *, low: int = 1) -> int:
    """Return ``value`` as an int if it is an integer of at least ``low``, NumPy's integers included.

    Raises:
        UserError: it is not.
    """
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if number < low:
        raise UserError(f"{argument}={value!r} is not allowed; pass an integer of at least {low}.")
    return number
