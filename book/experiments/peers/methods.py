"""What is compared: one row per method. Its builder, where its search begins, and its own parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from llqr_sam_ref.train.config import OptimizerConfig
from llqr_sam_ref.train.optimizers import build_optimizer

MOMENTUM = 0.9  # of SGD where it is not the parameter that is searched
PUBLISHED_EVERY = 100  # steps between refits; the authors' 1000 would leave one refit in a run


@dataclass(frozen=True)
class Place:
    """Where an optimizer is built, and the settings that it shares with the others.

    Args:
        model: what it trains.
        loss: with which loss.
        probe: draws a probe batch of the size of a training batch.
        lr: largest learning rate.
        weight_decay: of matrices, in the optimizer's own units; norms and biases do not decay.
    """

    model: nn.Module
    loss: nn.Module
    probe: Callable[[], tuple[Any, Any]]
    lr: float
    weight_decay: float

    def groups(self) -> list[dict[str, Any]]:
        """Matrices and convolutions, which decay, and the rest, which does not."""
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for parameter in self.model.parameters():
            parts[parameter.ndim < 2].append(parameter)
        rates = (self.weight_decay, 0.0)
        return [
            {"params": part, "weight_decay": rate} for part, rate in zip(parts, rates, strict=True) if part
        ]

    def sgd(self, momentum: float = MOMENTUM, *, nesterov: bool = False) -> Optimizer:
        """SGD on these groups."""
        return torch.optim.SGD(self.groups(), lr=self.lr, momentum=momentum, nesterov=nesterov)

    def adamw(self, beta2: float = 0.99) -> Optimizer:
        """AdamW on these groups."""
        return torch.optim.AdamW(self.groups(), lr=self.lr, betas=(0.9, beta2))

    def llqr(self, config: LLQRConfig, *, nesterov: bool = True) -> Optimizer:
        """LLQR over SGD; the default wants Nesterov's momentum, and no probe batch."""
        probe = None if config.probe_vector == "step" else self.probe
        return LLQR(self.sgd(nesterov=nesterov), self.model, self.loss, config, probe=probe)


def sgd(at: Place, own: float) -> Optimizer:
    return at.sgd(1 - own)


def adamw(at: Place, own: float) -> Optimizer:
    return at.adamw(1 - own)


def muon(at: Place, own: float) -> Optimizer:
    config = OptimizerConfig(
        optimizer="muon", lr=at.lr, momentum=1 - own, weight_decay=at.weight_decay, decay="matrices"
    )
    return build_optimizer(config, at.model, at.loss, at.probe)


def soap(at: Place, own: float) -> Optimizer:
    return pytorch_optimizer.SOAP(at.groups(), lr=at.lr, betas=(0.95, 1 - own))


def shampoo(at: Place, own: float) -> Optimizer:
    """Blocked, steps as long as those of SGD, inverse roots as often as SOAP renews its bases."""
    return pytorch_optimizer.ScalableShampoo(
        at.groups(),
        lr=at.lr,
        betas=(MOMENTUM, 1 - own),
        decoupled_weight_decay=True,
        start_preconditioning_step=10,
        preconditioning_compute_steps=10,
    )


def identity(at: Place, own: float) -> Optimizer:
    """The step rule of the default LLQR with U = I: what is left when nothing is learned."""
    config = LLQRConfig.published(steps=0, acts_on="update", step_rule=LLQRConfig().step_rule)
    base = at.sgd(1 - own, nesterov=True)
    return LLQR(base, at.model, at.loss, config, probe=at.probe)


def sam(at: Place, own: float) -> Optimizer:
    return SAM(at.sgd(), rho=own)


def adamw_sam(at: Place, own: float) -> Optimizer:
    return SAM(at.adamw(), rho=own)


def llqr(at: Place, own: float) -> Optimizer:
    return at.llqr(LLQRConfig().replace(damping=own))


def llqr_diagonal(at: Place, own: float) -> Optimizer:
    return at.llqr(LLQRConfig(structure="diagonal").replace(damping=own))


def llqr_sampled(at: Place, own: float) -> Optimizer:
    return at.llqr(LLQRConfig.sampled(damping=own))


def llqr_published(at: Place, own: float) -> Optimizer:
    return at.llqr(LLQRConfig.published(every=PUBLISHED_EVERY, lr=own), nesterov=False)


def llqr_sam(at: Place, own: float) -> Optimizer:
    return SAM(at.llqr(LLQRConfig()), rho=own)


def plain(own: float) -> float:
    """How much of lr * weight_decay a step takes off the weights: all of it where decay is decoupled."""
    return 1.0


def through_momentum(own: float) -> float:
    """The same where decay is part of the gradient that momentum adds up."""
    return 1 / (1 - MOMENTUM)


def through_own_momentum(own: float) -> float:
    """The same where 1 - momentum is the parameter that is searched."""
    return 1 / own


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        about: the name in tables and figures.
        build: makes the optimizer, given the value of the method's own parameter.
        lr: where the search begins.
        own: name of the own parameter.
        start: of the own parameter.
        below: what the own parameter stays below.
        decays: how much of lr * weight_decay a step takes off the weights, given the own parameter.
        code: files and folders of the package that the method is made of.
    """

    about: str
    build: Callable[[Place, float], Optimizer]
    lr: float
    own: str
    start: float
    below: float = float("inf")
    decays: Callable[[float], float] = plain
    code: tuple[str, ...] = ()


OURS = ("config.py", "optim")
METHODS: dict[str, Method] = {
    "sgd": Method("SGD", sgd, 0.2, "1 - momentum", 0.1, 1.0, through_own_momentum),
    "adamw": Method("AdamW", adamw, 0.004, "1 - beta2", 0.01, 1.0),
    "muon": Method(
        "Muon",
        muon,
        0.008,
        "1 - momentum",
        0.05,
        1.0,
        code=("train/muon.py", "train/optimizers.py", "train/methods.py"),
    ),
    "soap": Method("SOAP", soap, 0.006, "1 - beta2", 0.05, 1.0),
    "shampoo": Method("Shampoo", shampoo, 0.1, "1 - beta2", 0.05, 1.0),
    "identity": Method("U = I", identity, 0.004, "1 - momentum", 0.1, 1.0, code=OURS),
    "sam": Method("SAM over SGD", sam, 0.2, "rho", 0.05, decays=through_momentum, code=OURS),
    "adamw-sam": Method("SAM over AdamW", adamw_sam, 0.004, "rho", 0.05, code=OURS),
    "llqr": Method("LLQR", llqr, 0.004, "damping", LLQRConfig().solver.damping, code=OURS),
    "llqr-diagonal": Method(
        "LLQR, diagonal", llqr_diagonal, 0.004, "damping", LLQRConfig().solver.damping, code=OURS
    ),
    "llqr-sampled": Method(
        "LLQR, sampled", llqr_sampled, 0.004, "damping", LLQRConfig.sampled().solver.damping, code=OURS
    ),
    "llqr-published": Method(
        "LLQR, published", llqr_published, 0.1, "eta_U", 1e-3, decays=through_momentum, code=OURS
    ),
    "llqr-sam": Method("LLQR+SAM", llqr_sam, 0.004, "rho", 0.05, code=OURS),
}
