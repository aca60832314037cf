"""Settings as checkpoints and records of earlier versions hold them, read as what they mean now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llqr_sam_ref.config import DECAYS, RENAMED, ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.checkpoint import VERSION
from llqr_sam_ref.train.config import FREE, GROUP_OF, TrainConfig
from llqr_sam_ref.train.methods import METHODS, SOLVERS

# In version 1 LLQR as it came learned from probe batches, and its clocks counted refits.
_SAMPLED = {"llqr": "llqr-sampled", "llqr-sam": "llqr-sampled-sam"}


def as_now(settings: Mapping[str, Any], where: object, version: int = VERSION) -> TrainConfig:
    """The configuration that a run of this or an earlier version had.

    What an earlier version did not have yet takes its default, which is what that version did. What it kept without
    reading it is left out.

    Args:
        settings: by their flat names.
        where: they stand, for the error.
        version: that they were written by.

    Returns:
        The configuration.

    Raises:
        UserError: a setting is unknown, so that a newer version wrote it, or a value is no longer allowed.
    """
    unknown = sorted(settings.keys() - GROUP_OF.keys())
    if unknown:
        raise UserError(
            f"{where} has settings that this version does not know: {unknown}; update the package, or pass another "
            "folder."
        )
    try:
        if version < 2:
            optimizer = settings.get("optimizer", "sgd")
            settings = {**settings, "optimizer": _SAMPLED.get(optimizer, optimizer)}
        return TrainConfig.fitting({**settings, "llqr": _llqr(settings, version)})
    except UserError as error:
        raise UserError(
            f"{where} was written by an earlier version, with a setting that is not allowed now: {error} Go on with "
            "that version, or start anew in another folder."
        ) from error


def differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """How two runs differ, in words.

    Args:
        now: the flat configuration of one.
        before: that of the other.

    Returns:
        "lr=0.1 (there 0.05), ..." of the settings that a continuation may not change; nothing if they are the same.
    """
    return ", ".join(
        f"{name}={now[name]!r} (there {before[name]!r})"
        for name in now
        if name not in FREE and now[name] != before[name]
    )


def _llqr(settings: Mapping[str, Any], version: int) -> tuple[str, ...]:
    """LLQR's pairs as one type per solver has them, without those that the other solver would have read."""
    pairs: dict[str, str] = {}
    for pair in settings.get("llqr", ()):
        name, _, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        pairs[name if name in DECAYS else RENAMED.get(name, name)] = value
    method = METHODS.get(settings.get("optimizer", "sgd"))
    if method is None or method.preconditioner is None:
        return ()
    own = method.preconditioner()
    solver = SOLVERS.get(pairs.get("solver", ""), type(own.solver))
    if solver is InnerLoop and "damping_kind" in pairs:  # nothing but this told apart two dampings
        pairs.setdefault("damping", "0.03")
    elif solver is ClosedForm and version < 2:
        pairs = _in_steps(pairs, int(pairs.get("every", own.every)))
    others = {name for kind in SOLVERS.values() for name in _names(kind)} - {
        *_names(solver),
        *_names(LLQRConfig),
    }
    return tuple(f"{name}={value}" for name, value in pairs.items() if name not in others)


def _in_steps(pairs: Mapping[str, str], every: int) -> dict[str, str]:
    """The closed form's settings where decays and periods were told per refit, or left at what they were then."""
    told = {"damping": "0.03", "damping_kind": "relative", "renewal": "eigendecomposition", **pairs}
    per_refit = float(told.pop("curvature_ema", "0.95"))
    per_renewal = float(told.pop("basis_ema", "0.8"))
    period = every * int(told.pop("basis_every", "5"))
    clocks = {
        "curvature_memory": 1 / (1 - per_refit ** (1 / every)),
        "basis_memory": 1 / (1 - per_renewal ** (1 / period)),
        "gram_every": period,
        "basis_every": period,
    }
    return {**told, **{name: repr(value) for name, value in clocks.items()}}


def _names(kind: type[Any]) -> set[str]:
    return {setting.name for setting in dataclasses.fields(kind)}
