"""The model and the loss that a learned preconditioner belongs to: found inside wrappers, evaluated, copied."""

from __future__ import annotations

import copy
import pickle
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from llqr_sam_ref.optim._random import random_state, set_random_state
from llqr_sam_ref.optim.likelihood import LossFn

CONTAINERS = (list, dict, set, deque)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@contextmanager
def full_precision(devices: Iterable[torch.device]) -> Iterator[None]:
    """Inside, autocast is off on these devices: a training step may be called within it.

    Args:
        devices: where is computed.

    Yields:
        Nothing.
    """
    with ExitStack() as off:
        for kind in {device.type for device in devices}:
            off.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and autocast is off; at the end all is as it was, bit for bit.

    Put back are training flags, attributes (with what lists, dicts, sets and deques in them held, hooks among them),
    weights that are trained, buffers and other tensors and arrays that modules keep, gradients and ``requires_grad``,
    grad mode, and the random streams of torch, ``random`` and NumPy. What objects of other classes remember is theirs.

    A module that overrides ``train()`` is asked to switch by it, unless that changes a weight, as adapters do that
    merge in evaluation mode: merged, they would have no gradient. Such a module is put back, and only its flag changed.

    Args:
        model: the module.

    Yields:
        Nothing.
    """
    before = _Trace(model)
    try:
        with full_precision(before.devices):
            _evaluate(model)
            yield
    finally:
        for module, training in before.flags:
            if _overrides_train(module) and module.training != training:
                module.train(training)
        before.restore()


class _Trace:
    """What a refit could leave behind in a model, and in the process.

    Args:
        model: as it is now.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self.flags = [(module, module.training) for module in modules]
        self.devices = {p.device for p in model.parameters()}
        self._streams = random_state(self.devices)
        self._host_streams = random.getstate(), np.random.get_state()  # noqa: NPY002  (what models draw from)
        self._grad_mode = torch.is_grad_enabled()
        self._attributes = [(module, dict(vars(module))) for module in modules]
        held = [value for module in modules for value in _held(module)]
        self._containers = [(value, copy.copy(value)) for value in held if _is_container(value)]
        self._arrays = [(value, value.copy()) for value in held if isinstance(value, np.ndarray)]
        self._gradients = [(p, p.grad, p.requires_grad) for p in model.parameters()]
        kept = [
            *model.buffers(),
            *(value for value in held if _is_plain(value)),
            *(p for p in model.parameters() if p.requires_grad),
            *(p for module in modules if _overrides_train(module) for p in module.parameters()),
        ]
        self._values = [(tensor, tensor.detach().clone()) for tensor in {id(t): t for t in kept}.values()]

    def restore(self) -> None:
        """Put it all back."""
        torch.set_grad_enabled(self._grad_mode)
        for container, content in self._containers:
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(content)
            else:
                container.update(content)
        for array, content in self._arrays:
            array[...] = content
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        self.restore_values()
        for parameter, gradient, trained in self._gradients:
            parameter.grad = gradient
            if parameter.requires_grad != trained:
                parameter.requires_grad_(trained)
        set_random_state(self._streams)
        random.setstate(self._host_streams[0])
        np.random.set_state(self._host_streams[1])  # noqa: NPY002

    def restore_values(self) -> bool:
        """Put tensors back through ``.data``, which no graph notices, and say whether one had changed."""
        changed = False
        for tensor, value in self._values:
            if not torch.equal(tensor.detach(), value):
                tensor.data.copy_(value)
                changed = True
        return changed


def _evaluate(model: nn.Module) -> None:
    """Evaluation mode, module by module from the top."""
    for module in model.modules():
        if not module.training:
            continue
        if _overrides_train(module):
            before = _Trace(module)
            module.train(False)
            if before.restore_values():
                before.restore()
        module.training = False


def _overrides_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or "train" in vars(module)


def _held(module: nn.Module) -> Iterator[Any]:
    """What lies in a module's attributes, and in the containers there."""
    waiting: list[Any] = list(vars(module).values())
    known: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in known:
            continue
        yield value
        if isinstance(value, (tuple, *CONTAINERS)):
            known.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _is_container(value: object) -> bool:
    return isinstance(value, CONTAINERS)


def _is_plain(value: object) -> bool:
    """A tensor that is kept as an attribute, and not by a graph."""
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) and value.grad_fn is None


class CopiedLoss:
    """A loss on its way into a copy or a pickle, which says by name what cannot be pickled."""

    def __init__(self, loss_fn: LossFn | None) -> None:
        self.loss_fn = loss_fn

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiedLoss:
        return CopiedLoss(copy.deepcopy(self.loss_fn, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.dumps(self.loss_fn)
        except Exception as error:
            raise pickle.PicklingError(
                f"loss_fn={self.loss_fn!r} cannot be pickled ({error}); pass a module, or a function defined at "
                "the top level of a file."
            ) from error
        return CopiedLoss, (self.loss_fn,)
