"""From the name of a method to the optimizer: a base, LLQR around it, SAM around both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.optim.likelihood import Likelihood
from llqr_sam_ref.optim.llqr import LLQR
from llqr_sam_ref.train.config import OptimizerConfig
from llqr_sam_ref.train.methods import METHODS, base_of, llqr_config


def build_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    loss_fn: nn.Module,
    probe: Callable[[], tuple[Any, Any]],
    likelihood: Likelihood | None = None,
    parallel: nn.Module | None = None,
) -> Optimizer:
    """The optimizer of a run.

    Args:
        config: what it is told.
        model: the module that is trained, neither wrapped nor compiled.
        loss_fn: for LLQR's probes.
        probe: returns a probe batch, this worker's share.
        likelihood: of the labels, where the loss does not say.
        parallel: the module in its wrapper, where several processes train it.

    Returns:
        The base, or LLQR around it, or SAM around either.

    Raises:
        UserError: settings that do not go together.
    """
    method = METHODS[config.optimizer]
    with refused():
        optimizer = _base(config, model)
        settings = llqr_config(config.optimizer, config.llqr)
        if settings is not None:
            free = settings.probe_vector == "step"  # then no batch is to be fetched
            optimizer = LLQR(
                optimizer,
                parallel or model,
                loss_fn,
                settings,
                probe=None if free else probe,
                likelihood=likelihood,
            )
        if method.sam is not None:
            metric = None if method.metric is None else method.metric.make(config)
            optimizer = method.sam.make(config, optimizer, metric=metric)
    return optimizer


@contextmanager
def refused() -> Iterator[None]:
    """What optimizers refuse inside with a ValueError was asked for by the settings of the run."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def _base(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    base = METHODS[base_of(config.optimizer, config.base)]
    assert base.steps is not None
    matrices = _matrices(model) if base.matrix_rule is not None else set()
    groups = _groups(config, model, matrices, base.matrix_rule)
    optimizer: Optimizer = base.steps.make(config, groups, lr=config.lr, weight_decay=config.weight_decay)
    return optimizer


def _groups(
    config: OptimizerConfig, model: nn.Module, matrices: set[str], matrix_rule: str | None
) -> list[dict[str, Any]]:
    """Named parameters by what decays and what has the rule of matrices; empty groups are left out."""
    groups: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = config.decay == "all" or parameter.ndim >= 2
            groups.setdefault((decays, name in matrices), []).append((name, parameter))
    result: list[dict[str, Any]] = []
    for (decays, matrix), parameters in groups.items():
        group: dict[str, Any] = {"params": parameters}
        if not decays:
            group["weight_decay"] = 0.0
        if matrix:
            group["rule"] = matrix_rule
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
