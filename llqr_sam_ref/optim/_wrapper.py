"""What SAM and LLQR share, one class whole (hence the length): an optimizer around another, a citizen itself.

The base keeps what torch knows of (``state``, ``param_groups``, ``defaults``) and the wrapper only looks at
it, so that schedulers, scalers, checkpointing and clipping see one optimizer. What the wrapper has to
remember goes to two places, because these two survive torch's checkpoints, the distributed ones included:

- options and counters of a group: plain numbers and names in ``param_groups``;
- tensors of a parameter: ``self.own[parameter]``, merged into ``state_dict()`` under ``PREFIX`` and taken out
  again before the base sees the dictionary. The base's own ``state`` never holds a foreign entry (Adam would
  take it for state that it initialized itself), and the tensors keep their dtype (torch casts a base's to the
  parameter's).
"""

from __future__ import annotations

import inspect
import reprlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from llqr_sam_ref.errors import check_number
from llqr_sam_ref.optim._amp import called_by_grad_scaler
from llqr_sam_ref.optim.metric import Euclidean, Metric

_HOOKS = tuple(
    f"_optimizer_{event}_{when}_hooks"
    for event in ("step", "state_dict", "load_state_dict")
    for when in ("pre", "post")
)


@dataclass
class Progress:
    """What changes in a wrapper while it is used, in one object that is changed in place.

    A proxy that imitates the wrapper (Lightning makes one) reads attributes through and keeps what is written to it:
    only what lies inside such an object is the same for both.

    Attributes:
        inside: whether the SAM around holds the weights at w + epsilon.
        in_closure: whether a closure is being evaluated for a step.
        perturbed_before: whether there was ever a perturbation.
        radius: length of the last perturbation.
        loss_scale: by which a GradScaler has multiplied the gradients that are there, while a SAM reads them.
        nonfinite: perturbations skipped because the ascent vector was not finite.
        cache: what a subclass derives from the rest and may forget at any time.
    """

    inside: bool = False
    in_closure: bool = False
    perturbed_before: bool = False
    radius: Tensor | float = 0.0
    loss_scale: Tensor | float = 1.0
    nonfinite: Tensor | int = 0
    cache: dict[Any, Any] = field(default_factory=dict)


class OptimizerWrapper(Optimizer):
    """An optimizer around ``base``: delegates what torch knows of, saves and copies what is its own.

    A subclass sets ``PREFIX`` (and ``TRANSIENT``), passes its group options to ``__init__``, defines
    ``step``, and may override :meth:`check_group`, :meth:`check_own` and :meth:`geometry`. Public names that
    it does not have are looked up on the base, so ``SAM(LLQR(...)).refit`` is LLQR's.

    Attributes:
        base: the optimizer that takes the step.
        own: the wrapper's tensors and numbers for each parameter, keys without prefix.
        progress: what changes while it is used.

    Args:
        base: the optimizer that takes the step.
        **options: name and default of every entry that the wrapper adds to ``param_groups``.

    Raises:
        ValueError: ``base`` is not an optimizer, needs a closure, is differentiable, or has a hyperparameter
            of one of these names itself.
    """

    PREFIX: ClassVar[str] = ""
    """What the wrapper's keys in a parameter's saved state begin with, for instance "sam_"."""
    TRANSIENT: ClassVar[tuple[str, ...]] = ()
    """Attributes that copies and pickles leave behind (caches, callables): they become None."""

    base: Optimizer
    own: dict[Tensor, dict[str, Any]]
    progress: Progress

    def __init__(self, base: Optimizer, **options: Any) -> None:
        name = type(self).__name__
        if not isinstance(base, Optimizer):
            raise ValueError(
                f"base is {reprlib.repr(base)}, not an optimizer; pass an instance, as in "
                f"{name}(torch.optim.SGD(model.parameters(), lr=0.1))."
            )
        closure = inspect.signature(type(base).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"base={type(base).__name__} cannot step without a closure; pass a first-order one."
            )
        for layer in layers(base):
            for option in options.keys() & inspect.signature(type(layer)).parameters.keys():
                raise ValueError(
                    f"base={type(layer).__name__} has a hyperparameter {option!r} of its own, which {name} "
                    "needs in param_groups; pass another base."
                )
        self.base = base
        self.own = {}
        self.progress = Progress()
        self._start()
        filled = [self._with_defaults(group, options) for group in base.param_groups]
        for group in filled:
            self.check_group(group)
        for group, new in zip(base.param_groups, filled, strict=True):
            group.update(new)
        base.defaults.update(options)

    def _with_defaults(self, group: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """The group with the wrapper's defaults where the user set nothing."""
        # A base that is wrapped anew, as when a notebook cell runs twice, takes the new default.
        set_by_user = {
            name: group[name]
            for name in options
            if name in group and group[name] != self.base.defaults.get(name)
        }
        return {**group, **options, **set_by_user}

    def _start(self) -> None:
        """Begin like a fresh optimizer, also as a copy: without hooks, as torch does; caches belong here."""
        for hooks in _HOOKS:
            setattr(self, hooks, OrderedDict())
        self.progress = replace(self.progress, inside=False, in_closure=False, cache={})
        self._patch_step_function()

    @property
    def inside_perturbation(self) -> bool:
        """True on every wrapper of a stack while the SAM around it holds the weights at w + epsilon."""
        return self.progress.inside

    # What torch knows of belongs to the base.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's groups, the wrapper's options among their entries."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def defaults(self) -> dict[str, Any]:
        """The base's defaults, the wrapper's options among them."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    @property  # type: ignore[override]
    def state(self) -> MutableMapping[Tensor, Any]:
        """The base's state, live; the wrapper's own entries, if it has any, are seen in it under their saved names.

        Distributed checkpointing reads here which entries a parameter has. What is written goes to the base;
        ``clear()`` forgets both.
        """
        return LiveState(self) if self.own else self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.forget()
        self.base.state = state

    def forget(self) -> None:
        """Forget the wrapper's own entries, as in a fresh optimizer; the base's stay."""
        self.own.clear()
        self.progress.cache.clear()

    def __getattr__(self, name: str) -> Any:
        """Public names that the wrapper does not have are the base's."""
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters.

        Args:
            set_to_none: drop the tensors instead of filling them with zeros.
        """
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options that it does not set take their defaults.

        Args:
            param_group: ``{"params": ..., "lr": ..., ...}`` with any option of the base or of the wrapper.

        Raises:
            ValueError: an option has a value that is not allowed; nothing is added.
        """
        self.check_group({**self.defaults, **param_group})
        self.base.add_param_group(param_group)

    # What a subclass may override.

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Check a group's options, before any of them is used.

        Args:
            group: the group, all defaults filled in; "params" may be anything.

        Raises:
            ValueError: an option has a value that is not allowed.
        """
        check_rates(group)
        if group.get("differentiable"):
            raise ValueError(
                f"differentiable=True: {type(self).__name__} updates weights in place and cannot be "
                "differentiated; pass differentiable=False."
            )

    def check_own(self, parameter: Tensor, entries: Mapping[str, Any]) -> None:
        """Check what a checkpoint holds for a parameter, before anything is loaded.

        Args:
            parameter: the parameter that it belongs to.
            entries: the wrapper's entries, keys without prefix; empty if there are none.

        Raises:
            ValueError: they cannot be this wrapper's.
        """

    def geometry(self) -> Metric:
        """The metric this optimizer steps by: a SAM around it that has no metric of its own perturbs by it.

        SAM calls this at every entry of ``perturbed()`` that perturbs, with the weights at w and before
        ``.grad`` is read: the place to bring the metric up to date.

        Returns:
            The base's geometry; Euclidean for a plain torch optimizer.
        """
        metric: Metric = self.base.geometry() if isinstance(self.base, OptimizerWrapper) else Euclidean()
        return metric

    def check_step(self, closure: Callable[[], Any] | None, instead: str) -> None:
        """Refuse a step that would go wrong, before a weight is touched.

        Args:
            closure: what ``step`` was given.
            instead: what to call under a GradScaler, which hands a closure on before it has made gradients.

        Raises:
            RuntimeError: inside ``perturbed()`` or a closure, or with a closure under a GradScaler.
            ValueError: a learning rate or weight decay is negative or not finite.
        """
        if self.inside_perturbation:
            raise RuntimeError(
                "step() inside perturbed(): leave the block first, the weights are at w + epsilon."
            )
        if self.progress.in_closure:
            raise RuntimeError(
                "step() inside the closure of step(): the closure makes the gradients, and step(closure) then steps; "
                "take step() out of it."
            )
        if closure is not None and called_by_grad_scaler():
            raise RuntimeError(
                "step(closure) under a GradScaler: it would unscale gradients that the closure has not made yet; "
                f"{instead}."
            )
        for group in self.param_groups:
            check_rates(group)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, a closure is evaluated, which must not step itself.

        Yields:
            Nothing.
        """
        stack = [layer for layer in layers(self) if isinstance(layer, OptimizerWrapper)]
        try:
            for layer in stack:
                layer.progress.in_closure = True
            yield
        finally:
            for layer in stack:
                layer.progress.in_closure = False

    @property
    def idle(self) -> bool:
        """Whether every learning rate is 0, as when distributed checkpointing steps only to allocate state.

        Such a step counts nowhere and warns of nothing. A learning rate on an accelerator counts as not 0: to
        read it would wait for the device.
        """
        rates = [group.get("lr", 1.0) for group in self.param_groups]
        on_host = (not isinstance(rate, Tensor) or rate.device.type == "cpu" for rate in rates)
        return all(on_host) and not any(map(float, rates))

    # Saving and copying.

    def state_dict(self) -> dict[str, Any]:
        """The base's state with the wrapper's entries merged in, parameter by parameter.

        Returns:
            ``{"state": {index: {...}}, "param_groups": [...]}``, tensors not copied.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        index = _indices(self.param_groups)
        with _without_strays(self.base, index):
            saved = self.base.state_dict()
        for parameter, entries in self.own.items():
            if parameter not in index:
                continue  # it was taken out of its group
            merged = {**saved["state"].get(index[parameter], {}), **self._prefixed(entries)}
            saved["state"][index[parameter]] = merged
        for after in self._optimizer_state_dict_post_hooks.values():
            replaced = after(self, saved)
            saved = saved if replaced is None else replaced
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; a base's own dictionary is accepted too.

        Args:
            state_dict: from an optimizer of the same structure. It is not changed, and not aliased by the
                wrapper's entries, which keep their dtype.

        Raises:
            ValueError: it is not a state dict, or belongs to another structure; nothing is loaded.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = before(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        if missing := {"state", "param_groups"} - state_dict.keys():
            raise ValueError(
                f"state_dict has no {sorted(missing)}; pass what state_dict() of an optimizer returned."
            )
        for group in state_dict["param_groups"]:
            self.check_group({**self.defaults, **group})
        own, rest = self._split(state_dict)
        current = [dict(group) for group in self.param_groups]
        self.base.load_state_dict(rest)
        for group, before_loading in zip(self.param_groups, current, strict=True):
            for name, value in before_loading.items():  # a checkpoint of the bare base lacks the options
                group.setdefault(name, value)
        self.own = own
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _split(self, state_dict: dict[str, Any]) -> tuple[dict[Tensor, dict[str, Any]], dict[str, Any]]:
        """A checked copy of the wrapper's own entries, and the dictionary without them."""
        saved_keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        # The base refuses a dictionary of another length before it changes anything.
        parameter_of = dict(zip(saved_keys, parameters, strict=False))
        own: dict[Tensor, dict[str, Any]] = {}
        state: dict[Any, Any] = {}
        for key, entries in state_dict["state"].items():
            if key not in parameter_of or not isinstance(entries, Mapping):
                state[key] = entries
                continue
            mine = {name.removeprefix(self.PREFIX): entries[name] for name in entries if self._is_mine(name)}
            others = {name: entries[name] for name in entries if not self._is_mine(name)}
            if others or not mine:
                state[key] = others
            self.check_own(parameter_of[key], mine)
            if mine:
                own[parameter_of[key]] = {
                    name: v.detach().clone().to(parameter_of[key].device) if isinstance(v, Tensor) else v
                    for name, v in mine.items()
                }
        return own, {**state_dict, "state": state}

    def _is_mine(self, name: Any) -> bool:
        return isinstance(name, str) and name.startswith(self.PREFIX)

    def _prefixed(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        return {self.PREFIX + name: value for name, value in entries.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Everything but hooks, a scheduler's patched ``step`` and what is transient."""
        left_behind = {*_HOOKS, "step", "_opt_called", *self.TRANSIENT}
        kept = {name: value for name, value in self.__dict__.items() if name not in left_behind}
        return {**kept, "progress": replace(self.progress, cache={})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in self.TRANSIENT:
            self.__dict__.setdefault(name, None)
        self._start()


def check_rates(group: Mapping[str, Any], names: tuple[str, ...] = ("lr", "weight_decay")) -> None:
    """See that numbers of a group are finite and not negative; torch itself lets NaN pass.

    Args:
        group: an optimizer's group; names that it lacks are left out.
        names: which. A tensor on an accelerator is believed: to read it would wait for the device.

    Raises:
        ValueError: one is negative, not finite, or a tensor of several elements.
    """
    for name in names:
        value = group.get(name)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(
                f"{name} has {value.numel()} elements; pass a number, or a tensor of one element."
            )
        if value is not None and not (isinstance(value, Tensor) and value.device.type != "cpu"):
            check_number(name, value, low=0.0)


def layers(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer, its base, its base's base, down to the one that is no wrapper."""
    yield optimizer
    while isinstance(optimizer, OptimizerWrapper):
        optimizer = optimizer.base
        yield optimizer


class LiveState(MutableMapping[Tensor, Any]):
    """A wrapper's ``state``: the base's mapping, with the wrapper's own entries seen in it under their saved names.

    Args:
        wrapper: whose state it is.
    """

    def __init__(self, wrapper: OptimizerWrapper) -> None:
        self._wrapper = wrapper

    def __getitem__(self, parameter: Tensor) -> MutableMapping[str, Any]:
        entries = self._wrapper.base.state[parameter]  # as the base has it: a new one where that makes one
        return LiveEntries(self._wrapper, parameter, entries) if self._wrapper.own.get(parameter) else entries

    def __setitem__(self, parameter: Tensor, entries: Any) -> None:
        self._wrapper.base.state[parameter] = entries

    def __delitem__(self, parameter: Tensor) -> None:
        if parameter not in self:
            raise KeyError(parameter)
        self._wrapper.base.state.pop(parameter, None)
        self._wrapper.own.pop(parameter, None)
        self._wrapper.progress.cache.clear()
        if not self._wrapper.own:
            self._wrapper.forget()

    def __iter__(self) -> Iterator[Tensor]:
        return iter({**dict.fromkeys(self._wrapper.base.state), **dict.fromkeys(self._wrapper.own)})

    def __len__(self) -> int:
        return len({*self._wrapper.base.state, *self._wrapper.own})

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._wrapper.base.state or parameter in self._wrapper.own

    def clear(self) -> None:
        """Forget the base's entries and the wrapper's."""
        self._wrapper.base.state.clear()
        self._wrapper.forget()


class LiveEntries(MutableMapping[str, Any]):
    """One parameter's entries, to read and to write: the base's, and the wrapper's under their saved names.

    A training loop may write every entry back, as one does that moves the state to another device.

    Args:
        wrapper: whose entries they are.
        parameter: theirs.
        entries: the base's.
    """

    def __init__(
        self, wrapper: OptimizerWrapper, parameter: Tensor, entries: MutableMapping[str, Any]
    ) -> None:
        self._wrapper, self._parameter, self._entries = wrapper, parameter, entries

    @property
    def _own(self) -> dict[str, Any]:
        return self._wrapper._prefixed(self._wrapper.own.get(self._parameter, {}))

    def __getitem__(self, name: str) -> Any:
        own = self._own
        return own[name] if name in own else self._entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        own = self._own
        if name not in own:
            self._entries[name] = value
        elif isinstance(value, Tensor) and isinstance(own[name], Tensor) and _alike(value, own[name]):
            own[name].copy_(value)  # what is derived from it may be a view
        elif isinstance(value, Tensor) == isinstance(own[name], Tensor):
            self._wrapper.own[self._parameter][name.removeprefix(self._wrapper.PREFIX)] = value
            self._wrapper.progress.cache.clear()
        else:
            raise KeyError(f"{name!r} cannot become a {type(value).__name__}; clear the state to forget it.")

    def __delitem__(self, name: str) -> None:
        if name in self._own:
            raise KeyError(f"{name!r} is the wrapper's own; clear the state to forget it.")
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._entries), **self._own})

    def __len__(self) -> int:
        return len({*self._entries, *self._own})


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether one can be written into the other without a loss."""
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


@contextmanager
def _without_strays(base: Optimizer, index: Mapping[Tensor, int]) -> Iterator[None]:
    """Inside, an optimizer of torch remembers nothing of parameters that are in no group: it could not save that."""
    state = {} if isinstance(base, OptimizerWrapper) else base.state
    strays = {key: state[key] for key in state if isinstance(key, Tensor) and key not in index}
    try:
        for key in strays:
            del state[key]
        yield
    finally:
        state.update(strays)


def _indices(groups: list[dict[str, Any]]) -> dict[Tensor, int]:
    """Each parameter's number in a state dict: torch counts them over all groups."""
    index: dict[Tensor, int] = {}
    for i, parameter in enumerate(chain.from_iterable(group["params"] for group in groups)):
        index.setdefault(parameter, i)
    return index
