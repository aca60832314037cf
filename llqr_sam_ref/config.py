"""What LLQR is told: one table of choices and which of them go together, for the exact and the torch version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llqr_sam_ref.errors import check_choice, check_count, check_number

CHOICES = {
    "structure": ("scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac", "dense"),
    "divergence": ("fisher", "gauss-newton", "newton"),
    "solver": ("closed-form", "inner-loop"),
    "probe_vector": ("sampled", "gradient"),
    "reduction": ("mean", "sum"),
    "damping_kind": ("relative", "absolute"),
    "acts_on": ("update", "gradient"),
    "step_rule": ("rms", "rms-per-tensor", "graft", "none"),
    "wide": ("identity", "blocks"),
}


@dataclass(frozen=True)
class LLQRConfig:
    """What LLQR does; the defaults are the ones the book defends, ``published()`` is what the authors ran.

    The honest name of the default is an E-KFAC-type curvature derived from the LLQR objective, with steps of
    fixed root mean square. Such steps do not shrink by themselves: let the learning rate decay to 0.

    Args:
        structure: of U: "scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac" or "dense". Norms and
            biases, having no two sides, get a diagonal under the three in the middle.
        divergence: whose second order is G: "fisher", "gauss-newton" or "newton".
        every: K, training steps between refits; the first is before step 0.
        solver: "closed-form" (one block an array of weights) or "inner-loop" (scalar, diagonal and dense: one
            block a layer, bias and kernel together).
        probes: k, micro-batches of the probe batch whose gradients are the probes.
        probe_vector: gradients against labels "sampled" from the model, or, "gradient", against the true ones.
        reduction: "mean" for the curvature of the mean loss; "sum" for n times that, n terms in the probe.
        damping: mu in units of curvature (absolute), or delta, a fraction of the mean curvature (relative).
        damping_kind: "relative" or "absolute".
        acts_on: whether U multiplies the "gradient" that the base optimizer gets, or its "update".
        step_rule: what then happens to the length of S = U v: "rms", root mean square 1 over all weights;
            "rms-per-tensor", over each array; "graft", the length of v; "none".
        curvature_ema: beta in [0, 1), decay of the curvature diagonal c over refits (closed form).
        basis_ema: beta_Q in [0, 1), decay of the Gram matrices behind the bases (closed form).
        basis_every: b, bases at refits 1, 2 and every multiple of b (closed form).
        max_side: the widest side that gets a full basis or factor; None for no limit.
        wide: what a wider side gets: the "identity", or equal diagonal "blocks" no wider than ``max_side``.
        inner_steps: T, steps of a refit (inner loop).
        inner_lr: eta_U, their learning rate (inner loop).
        inner_momentum: their heavy ball, in [0, 1) (inner loop).
        clip: largest norm of a stored array's gradient, None for no clip (inner loop).
        warm_start: start from the current U, else from the identity (inner loop).
        ema: gamma in [0, 1], decay of the stored arrays over refits (inner loop).
        positive: whether U is positive by construction: always so in closed form; logarithms and roots of the
            factors in the inner loop.
        allow_inversion: leave negative entries of an unconstrained scalar or diagonal U alone (inner loop).
        seed: of the uniforms that sample labels, together with the number of the refit.

    Raises:
        ValueError: an unknown name, a number out of range, or a combination that has no meaning.

    Source: LLQR, arXiv 2605.04230, and LLQR+SAM, arXiv 2605.16134; the book, chapters 16 to 18 and 21.
    """

    structure: str = "ekfac"
    divergence: str = "fisher"
    every: int = 10
    solver: str = "closed-form"
    probes: int = 8
    probe_vector: str = "sampled"
    reduction: str = "mean"
    damping: float = 0.03
    damping_kind: str = "relative"
    acts_on: str = "update"
    step_rule: str = "rms"
    curvature_ema: float = 0.95
    basis_ema: float = 0.8
    basis_every: int = 5
    max_side: int | None = 1024
    wide: str = "identity"
    inner_steps: int = 50
    inner_lr: float = 1e-3
    inner_momentum: float = 0.9
    clip: float | None = 5.0
    warm_start: bool = True
    ema: float = 0.95
    positive: bool = True
    allow_inversion: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name in ("every", "probes", "basis_every"):
            check_count(name, getattr(self, name))
        for name in ("inner_steps", "seed"):
            check_count(name, getattr(self, name), low=0)
        if self.max_side is not None:
            check_count("max_side", self.max_side, low=0)
        for name in ("curvature_ema", "basis_ema", "inner_momentum"):
            check_number(name, getattr(self, name), low=0.0, high=1.0, open_high=True)
        check_number("ema", self.ema, low=0.0, high=1.0)
        check_number("inner_lr", self.inner_lr, low=0.0)
        check_number("damping", self.damping, low=0.0, open_low=self.solver == "closed-form")
        if self.clip is not None:
            check_number("clip", self.clip, low=0.0, open_low=True)
        for wrong, message in self._combinations():
            if wrong:
                raise ValueError(message)

    def _combinations(self) -> tuple[tuple[bool, str], ...]:
        """What the table of legal combinations of solver, divergence, damping and positivity rules out."""
        closed = self.solver == "closed-form"
        return (
            (
                closed and self.divergence != "fisher",
                f"divergence={self.divergence!r} has no closed form; use solver='inner-loop'.",
            ),
            (
                closed and not self.positive,
                "positive=False needs free factors, and the closed form has none; use solver='inner-loop'.",
            ),
            (
                not closed and self.damping_kind == "relative",
                "damping_kind='relative' needs a curvature estimate, and solver='inner-loop' keeps none; "
                "use damping_kind='absolute'.",
            ),
        )

    @classmethod
    def published(cls, **overrides: Any) -> LLQRConfig:
        """The authors' settings, oddities included: a summed Fisher and ema 0.95, or a mean Hessian and 0.9.

        Args:
            **overrides: fields to change.

        Returns:
            The configuration.

        Source: LLQR, arXiv 2605.04230, and its published code.
        """
        newton = overrides.get("divergence") == "newton"
        settings: dict[str, Any] = {
            "structure": "diagonal",
            "every": 1000,
            "solver": "inner-loop",
            "probes": 1,
            "probe_vector": "gradient",
            "reduction": "mean" if newton else "sum",
            "damping": 0.0,
            "damping_kind": "absolute",
            "acts_on": "gradient",
            "step_rule": "none",
            "max_side": None,
            "ema": 0.9 if newton else 0.95,
            "positive": False,
        }
        return cls(**(settings | overrides))
