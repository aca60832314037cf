"""Settings as checkpoints and records of earlier versions hold them, read as what they mean now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llqr_sam_ref.config import RENAMED, InnerLoop, LLQRConfig
from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.config import FREE, GROUP_OF, TrainConfig
from llqr_sam_ref.train.methods import METHODS, SOLVERS


def as_now(settings: Mapping[str, Any], where: object) -> TrainConfig:
    """The configuration that a run of this or an earlier version had.

    What an earlier version did not have yet takes its default, which is what that version did. What it kept without
    reading it is left out.

    Args:
        settings: by their flat names.
        where: they stand, for the error.

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
        return TrainConfig.fitting({**settings, "llqr": _llqr(settings)})
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


def _llqr(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """LLQR's pairs as one type per solver has them, without those that the other solver would have read."""
    pairs: dict[str, str] = {}
    for pair in settings.get("llqr", ()):
        name, _, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        pairs[RENAMED.get(name, name)] = value
    method = METHODS.get(settings.get("optimizer", "sgd"))
    if method is None or method.preconditioner is None:
        return ()
    solver = SOLVERS.get(pairs.get("solver", ""), type(method.preconditioner().solver))
    if solver is InnerLoop and "damping_kind" in pairs:  # nothing but this told apart two dampings
        pairs.setdefault("damping", "0.03")
    others = {name for kind in SOLVERS.values() for name in _names(kind)} - {
        *_names(solver),
        *_names(LLQRConfig),
    }
    return tuple(f"{name}={value}" for name, value in pairs.items() if name not in others)


def _names(kind: type[Any]) -> set[str]:
    return {setting.name for setting in dataclasses.fields(kind)}
