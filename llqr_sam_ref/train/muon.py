"""Muon for matrices and convolutions, AdamW for everything else, as one optimizer.

``torch.optim.Muon`` takes nothing but two-dimensional parameters, so a convolutional network needs two optimizers
beside each other, and what wraps one optimizer (SAM, LLQR, a scheduler) cannot wrap two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from llqr_sam_ref.errors import UserError, check_choice, check_number

COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # a, b, c of the odd polynomial that pushes singular values towards 1
ITERATIONS = 5
RMS = 0.2  # root mean square of an AdamW step per unit of lr, which an orthogonal step is given too


def orthogonalize(matrix: Float[Tensor, "m n"], *, half: bool = False) -> Float[Tensor, "m n"]:
    """Push all singular values of a matrix near 1, keeping its singular vectors.

    X <- a X + (b X X^T + c (X X^T)^2) X, five times from X = M/|M|

    Args:
        matrix: M.
        half: compute in bfloat16, which is enough for the purpose and faster on accelerators.

    Returns:
        U p(S) V^T for M = U S V^T, with p(s) between about 0.7 and 1.2 where s/|M| is not tiny.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = COEFFICIENTS
    X = matrix.bfloat16() if half else matrix
    tall = X.shape[0] > X.shape[1]
    X = X.T if tall else X
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = X @ X.T
        X = a * X + (b * gram + c * gram @ gram) @ X
    result: Tensor = (X.T if tall else X).to(matrix.dtype)
    return result


class Muon(Optimizer):
    """Orthogonalized momentum for groups with rule="muon", AdamW for those with rule="adamw".

    m <- mu m + (1 - mu) g,  u = mu m + (1 - mu) g,  w <- (1 - lr wd) w - lr 0.2 sqrt(max(rows, columns)) ortho(u)

    The last factor gives a step the root mean square that AdamW's has, so both rules share one learning rate. A
    convolution is the matrix with one row per output channel.

    Args:
        params: parameters or groups; a group sets ``rule``.
        lr: learning rate.
        momentum: mu of the muon rule.
        betas: of the adamw rule.
        eps: of the adamw rule.
        weight_decay: decoupled, in both rules.
        rule: of groups that set none.

    Raises:
        UserError: a number is out of range, the rule is unknown, or a vector is in a muon group.

    Source: Jordan et al. 2024; the factor 0.2 sqrt(max(m, n)): Liu et al. 2025 (arXiv 2502.16982), eq. 4.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rule: str = "adamw",
    ) -> None:
        check_number("lr", lr, low=0.0)
        check_number("momentum", momentum, low=0.0, high=1.0, open_high=True)
        check_number("weight_decay", weight_decay, low=0.0)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rule": rule,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            check_choice("rule", group["rule"], ("muon", "adamw"))
            for parameter in group["params"] if group["rule"] == "muon" else ():
                if parameter.ndim < 2:
                    raise UserError(
                        f"a parameter of shape {tuple(parameter.shape)} is no matrix; give its group rule='adamw'."
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: evaluates the loss again; optional.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["rule"] == "muon":
                for parameter in parameters:
                    self._orthogonal_step(parameter, group)
            elif parameters:
                self._adamw_step(parameters, group)
        return loss

    def _orthogonal_step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]).flatten(1)
        update = orthogonalize(update, half=update.device.type != "cpu")
        scale = RMS * math.sqrt(max(update.shape))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(
                    step=torch.tensor(0.0),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
