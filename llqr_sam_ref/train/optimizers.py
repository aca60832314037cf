"""From the name of a method to the optimizer: a base, LLQR around it, SAM around both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import SAM, Adaptive, Fisher, Metric, Monge
from llqr_sam_ref.optim.likelihood import Likelihood
from llqr_sam_ref.optim.llqr import LLQR
from llqr_sam_ref.train.config import BASES, OptimizerConfig
from llqr_sam_ref.train.muon import Muon
from llqr_sam_ref.train.settings import parse


def preconditioner(method: str) -> str | None:
    """Which LLQR a method uses: "default", "published", "reported" or none."""
    if not method.startswith("llqr"):
        return None
    name = method.removeprefix("llqr").removesuffix("-sam").strip("-")
    return name or "default"


def perturbs(method: str) -> bool:
    """Whether a method is a SAM."""
    return method.endswith(("sam", "-sam"))


def base_of(config: OptimizerConfig) -> str:
    """The base: the method itself, if it is one."""
    return config.optimizer if config.optimizer in BASES else config.base


def llqr_config(config: OptimizerConfig) -> LLQRConfig | None:
    """What LLQR is told by a run, None for methods without.

    Args:
        config: the run's optimizer.

    Returns:
        The method's settings with those of ``config.llqr`` over them. "reported" is "published" with 25 inner steps
        of 5e-3 every 500 steps and E-KFAC factors.

    Raises:
        ValueError: a setting is unknown or not allowed.
    """
    kind = preconditioner(config.optimizer)
    settings = parse("llqr", config.llqr)
    if kind is None:
        return None
    reported = {"structure": "ekfac", "steps": 25, "lr": 5e-3, "every": 500}
    try:
        if kind == "default":
            return LLQRConfig().replace(**settings)
        return LLQRConfig.published(**(reported if kind == "reported" else {}) | settings)
    except TypeError as error:
        raise ValueError(f"llqr: {error}") from error


def build_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    loss_fn: nn.Module,
    probe: Callable[[], tuple[Any, Any]],
    likelihood: Likelihood | None = None,
) -> Optimizer:
    """The optimizer of a run.

    Args:
        config: what it is told.
        model: the module that is trained, neither wrapped nor compiled.
        loss_fn: for LLQR's probes.
        probe: returns a probe batch, this worker's share.
        likelihood: of the labels, where the loss does not say.

    Returns:
        The base, or LLQR around it, or SAM around either.

    Raises:
        ValueError: settings that do not go together.
    """
    optimizer = _base(config, model)
    settings = llqr_config(config)
    if settings is not None:
        optimizer = LLQR(optimizer, model, loss_fn, settings, probe=probe, likelihood=likelihood)
    if not perturbs(config.optimizer):
        return optimizer
    metrics: dict[str, Metric] = {
        "m-sam": Monge(config.alpha),
        "asam": Adaptive(config.asam_eta),
        "fisher-sam": Fisher(config.fisher_eta),
    }
    return SAM(
        optimizer,
        config.rho,
        metrics.get(config.optimizer),
        every=config.sam_every,
        start=config.sam_start,
        norm=config.norm,
        ascent_ema=config.ascent_ema if config.optimizer == "friendly-sam" else None,
    )


def _base(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    name = base_of(config)
    groups = _groups(config, model, matrices=_matrices(model) if name == "muon" else set())
    if name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(groups, **options)
    return Muon(groups, momentum=config.momentum, **options)


def _groups(config: OptimizerConfig, model: nn.Module, matrices: set[str]) -> list[dict[str, Any]]:
    """Named parameters by what decays and what Muon orthogonalizes; empty groups are left out."""
    groups: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = config.decay == "all" or parameter.ndim >= 2
            groups.setdefault((decays, name in matrices), []).append((name, parameter))
    result: list[dict[str, Any]] = []
    for (decays, orthogonal), parameters in groups.items():
        group: dict[str, Any] = {"params": parameters}
        if not decays:
            group["weight_decay"] = 0.0
        if orthogonal:
            group["rule"] = "muon"
        result.append(group)
    return result


def _matrices(model: nn.Module) -> set[str]:
    """Weights of linear and convolutional layers, the one that makes the outputs left out."""
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    linear = [layer for _, layer in layers if isinstance(layer, nn.Linear)]
    output = getattr(model, "head", linear[-1] if linear else None)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        f"{name}.weight" if name else "weight"
        for name, layer in layers
        if layer is not output and id(layer.weight) not in embedded
    }
