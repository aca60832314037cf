"""Groups of settings whose fields say what they allow, when they are read, and whether a continuation may change them.

    @dataclass(frozen=True)
    class Group(Settings):
        schedule: str = choice("cosine", ("cosine", "step"))
        factor: float = number(0.1, low=0.0, only=Where("schedule", ("step",)))
        workers: int = count(8, free=True)

Nothing that is set is ignored: a setting that differs from its default where nothing reads it is refused. What was
not set by anyone now, because it stands in a preset, in a copied configuration or in an earlier run, goes back to its
default where it is no longer read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from llqr_sam_ref.errors import UserError, check_choice, check_count, check_number

Group = TypeVar("Group", bound="Settings")
_RULE = "rule"
_incomplete = ContextVar("incomplete", default=False)


@dataclass(frozen=True)
class Where:
    """A setting is read only where another one of its group has one of some values.

    Args:
        setting: the other one.
        values: of which it must have one, or, if it is a list, contain one.
        but: read everywhere but there, instead.
    """

    setting: str
    values: tuple[Any, ...]
    but: bool = False

    def missing(self, settings: Mapping[str, Any]) -> str | None:
        """Why it is not read and what would have to be set; None where it is read."""
        value = settings[self.setting]
        one = any(v in value for v in self.values) if isinstance(value, tuple) else value in self.values
        if one is not self.but:
            return None
        remedy = f"another {self.setting}" if self.but else f"{self.setting}={either(self.values)}"
        return f"with {self.setting}={value!r}; leave it out, or pass {remedy}"


@dataclass(frozen=True)
class Rule:
    """What a field says of itself.

    Args:
        check: called with the setting's name and value; raises if the value is not allowed.
        free: whether a run may be continued with another value, because no result depends on it.
        only: where it is read; None for everywhere, or where the group decides.
    """

    check: Callable[[str, Any], object]
    free: bool = False
    only: Where | None = None


def number(default: Any, *, free: bool = False, only: Where | None = None, **interval: Any) -> Any:
    """A number, or a list of numbers, in an interval; see :func:`llqr_sam_ref.errors.check_number`."""
    return _field(default, lambda name, value: check_number(name, value, **interval), free, only)


def count(default: Any, *, low: int = 1, free: bool = False, only: Where | None = None) -> Any:
    """An integer of at least ``low``."""
    return _field(default, lambda name, value: check_count(name, value, low=low), free, only)


def choice(default: Any, allowed: Iterable[str], *, free: bool = False, only: Where | None = None) -> Any:
    """A name, or a list of names, out of ``allowed``, which is looked at when a value is checked."""
    return _field(default, lambda name, value: check_choice(name, value, allowed), free, only)


def anything(default: Any, *, free: bool = False, only: Where | None = None) -> Any:
    """A setting that is checked where it is used."""
    return _field(default, lambda name, value: value, free, only)


def _field(default: Any, check: Callable[[str, Any], object], free: bool, only: Where | None) -> Any:
    """A field whose value, or whose value's every entry, passes the check; None passes where it is the default."""

    def checked(name: str, value: Any) -> None:
        if value is None and default is None:
            return
        if not isinstance(default, tuple):
            check(name, value)
            return
        if not isinstance(value, tuple) or (default and len(value) != len(default)):
            shape = f"{len(default)} values" if default else "any number of values"
            raise UserError(f"{name}={value!r} is not a tuple of {shape}; pass one, like {default!r}.")
        for entry in value:
            check(name, entry)

    return dataclasses.field(default=default, metadata={_RULE: Rule(checked, free, only)})


def rules(group: type[Settings]) -> dict[str, Rule]:
    """What the fields of a group say of themselves, by name."""
    return {field.name: field.metadata[_RULE] for field in dataclasses.fields(group)}  # type: ignore[arg-type]


def defaults(group: type[Settings]) -> dict[str, Any]:
    """The settings of a group that nobody has changed."""
    return {field.name: field.default for field in dataclasses.fields(group)}  # type: ignore[arg-type]


class Settings:
    """A group of settings; it is a frozen dataclass all of whose fields are made by the functions above."""

    def __post_init__(self) -> None:
        if not _incomplete.get():
            self.check()

    def check(self) -> None:
        """See that every value is allowed, and that everything that was set is read.

        Raises:
            UserError: it is not; the message names the setting.
        """
        self.check_values(vars(self))
        for name, reason in self.unread(vars(self)).items():
            raise UserError(refusal(name, vars(self)[name], reason))

    @classmethod
    def missing_reader(cls, name: str, settings: Mapping[str, Any]) -> str | None:
        """Why a setting is not read, and what would have to be set for it to be read.

        Args:
            name: of the setting.
            settings: all of the group.

        Returns:
            The end of a sentence that begins "is not read"; None where it is read.
        """
        only = rules(cls)[name].only
        return None if only is None else only.missing(settings)

    @classmethod
    def check_values(cls, settings: Mapping[str, Any]) -> None:
        """See that every value is allowed.

        Args:
            settings: all of the group.

        Raises:
            UserError: one is not; the message names it.
        """
        for name, rule in rules(cls).items():
            rule.check(name, settings[name])

    @classmethod
    def unread(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        """Settings that differ from their default and that nothing reads, each with why and with the remedy."""
        result = {}
        for name, default in defaults(cls).items():
            if settings[name] != default and (reason := cls.missing_reader(name, settings)) is not None:
                result[name] = reason
        return result

    @classmethod
    def fitting(cls: type[Group], settings: Mapping[str, Any]) -> Group:
        """The group with these settings; those that nothing reads are left at their defaults.

        Args:
            settings: some of the group's, all allowed values.

        Returns:
            The group.

        Raises:
            UserError: a value is not allowed.
        """
        usual = defaults(cls)
        values = {**usual, **settings}
        cls.check_values(values)
        return cls(**values | {name: usual[name] for name in cls.unread(values)})

    def replaced(self: Group, settings: Mapping[str, Any]) -> Group:
        """A copy with some settings changed; the others go back to their defaults where they are no longer read.

        Args:
            settings: the changes.

        Returns:
            The copy.

        Raises:
            UserError: a value is not allowed, or nothing reads it.
        """
        values, usual = {**vars(self), **settings}, defaults(type(self))
        self.check_values(values)
        stale = self.unread(values).keys() - settings.keys()
        return type(self)(**values | {name: usual[name] for name in stale})


def refusal(name: str, value: object, reason: str) -> str:
    """What to say of a setting that nothing reads, with what ``missing_reader`` returned."""
    return f"{name}={value!r} is not read {reason}."


def either(values: Iterable[object]) -> str:
    """A choice between values, in words."""
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}" if others else last


@contextmanager
def incomplete() -> Iterator[None]:
    """Inside, groups are made without being checked: who makes them does not know yet what was set by whom."""
    token = _incomplete.set(True)
    try:
        yield
    finally:
        _incomplete.reset(token)
