"""The likelihood of a loss of torch.nn, read off the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional

from llqr_sam_ref.optim.likelihood.base import Likelihood, LossFn
from llqr_sam_ref.optim.likelihood.categorical import Categorical
from llqr_sam_ref.optim.likelihood.elementwise import Bernoulli, Gaussian

_FUNCTIONS: dict[Callable[..., Any], type[Likelihood]] = {
    functional.cross_entropy: Categorical,
    functional.nll_loss: Categorical,
    functional.binary_cross_entropy_with_logits: Bernoulli,
    functional.mse_loss: Gaussian,
}
_MODULES: dict[type, type[Likelihood]] = {
    nn.CrossEntropyLoss: Categorical,
    nn.NLLLoss: Categorical,
    nn.BCEWithLogitsLoss: Bernoulli,
    nn.MSELoss: Gaussian,
}
REMEDY = (
    "Pass likelihood=Categorical(), Bernoulli() or Gaussian() if the loss is one of these up to a factor, "
    'or avoid sampled labels: probe_vector="gradient", divergence="gauss-newton".'
)


def infer_likelihood(loss_fn: LossFn) -> Likelihood:
    """The likelihood whose negative logarithm ``loss_fn`` is, up to a constant.

    Known are CrossEntropyLoss and NLLLoss (categorical), BCEWithLogitsLoss (Bernoulli) and MSELoss (Gaussian
    of variance 1/2), as modules or functions of torch.nn, also under functools.partial; ``reduction``,
    ``ignore_index`` and label smoothing are respected.

    Args:
        loss_fn: the loss, called as loss_fn(outputs, targets).

    Returns:
        The likelihood, with the loss's reduction.

    Raises:
        ValueError: the loss is none of these, is weighted, or does not reduce to a scalar.
    """
    kind, options = _options(loss_fn)
    if kind is None:
        raise ValueError(f"loss_fn={loss_fn!r} is not a likelihood known here. {REMEDY}")
    weighs = [name for name in ("weight", "pos_weight") if options.get(name) is not None]
    if weighs:
        remedy = "or " + REMEDY[REMEDY.index("avoid") :]
        if {"weight": Categorical, "pos_weight": Bernoulli}[weighs[0]] is kind:
            remedy = f"Pass likelihood={kind.__name__}({weighs[0]}=...), {remedy}"
        raise ValueError(f"loss_fn={loss_fn!r} weights its classes, so it is not a likelihood. {remedy}")
    reduction = options.get("reduction") or "mean"
    if reduction not in ("mean", "sum"):
        raise ValueError(f"loss_fn={loss_fn!r} has reduction={reduction!r}; use 'mean' or 'sum'.")
    if kind is not Categorical:
        return kind(reduction)
    ignored, smoothing = options.get("ignore_index"), options.get("label_smoothing") or 0.0
    return Categorical(reduction, -100 if ignored is None else ignored, label_smoothing=smoothing)


def counted_by(loss_fn: LossFn) -> Likelihood | None:
    """What tells how much each label of a loss counts, weighted losses included; None where that is not known."""
    kind, options = _options(loss_fn)
    if kind is Categorical and options.get("weight") is not None:
        ignored, weight = options.get("ignore_index"), options["weight"]
        reduction = options.get("reduction") or "mean"
        return Categorical(reduction, -100 if ignored is None else ignored, weight=weight)
    try:
        return infer_likelihood(loss_fn)
    except ValueError:
        return None


def _options(loss_fn: LossFn) -> tuple[type[Likelihood] | None, dict[str, Any]]:
    """What kind of likelihood a loss of torch.nn stands for, and its options."""
    if type(loss_fn) in _MODULES:
        names = ("reduction", "ignore_index", "weight", "pos_weight", "label_smoothing")
        return _MODULES[type(loss_fn)], {name: getattr(loss_fn, name, None) for name in names}
    options: dict[str, Any] = {}
    function: Any = loss_fn
    while isinstance(function, partial):
        options = {**function.keywords, **options}
        function = function.func
    known = (kind for known, kind in _FUNCTIONS.items() if known is function)  # it may not be hashable
    return next(known, None), options
