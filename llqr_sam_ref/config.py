"""What LLQR is told: one type for what every LLQR reads, and one per solver for what only that solver reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from llqr_sam_ref.errors import check_choice, check_count, check_number, unknown_name

CHOICES = {
    "structure": ("scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac", "dense"),
    "divergence": ("fisher", "gauss-newton", "newton"),
    "probe_vector": ("step", "sampled", "gradient"),
    "reduction": ("mean", "sum"),
    "damping_kind": ("per-tensor", "relative", "absolute"),
    "renewal": ("iteration", "eigendecomposition"),
    "acts_on": ("update", "gradient"),
    "step_rule": ("rms", "rms-per-tensor", "graft", "none"),
    "wide": ("identity", "blocks"),
}


@dataclass(frozen=True)
class ClosedForm:
    """U is the minimizer of the many-probe objective at an averaged curvature; one block per parameter.

    Args:
        damping: delta > 0, added to the curvature; its unit is told by ``damping_kind``.
        damping_kind: "per-tensor" takes every tensor's curvature and damping in units of the tensor's own mean
            curvature, and U is a pure number; "relative" damps by delta times the mean curvature of all weights;
            "absolute" by delta itself, in units of curvature.
        curvature_memory: tau > 1, time constant of the averaged curvature c, in training steps: every step that
            passes leaves the share 1 - 1/tau.
        basis_memory: tau_Q > 1, time constant of the averaged Gram matrices, whose eigenvectors are the bases, in
            training steps.
        gram_every: g, training steps between two samples of the Gram matrices, rounded to whole refits; beside that
            they are sampled at the first two refits.
        basis_every: b, training steps between two renewals of the bases, rounded to whole refits; beside that they
            are renewed at the first two refits.
        renewal: how the bases are renewed: "iteration", one step of orthogonal iteration from the last ones, at
            first from the identity, or "eigendecomposition".

    Raises:
        ValueError: a name is unknown or a number out of range.

    Source: the book, thm-random-probe-optimum; E-KFAC, George et al. 2018 (arXiv 1806.03884), section 3.
    """

    damping: float = 0.1
    damping_kind: str = "per-tensor"
    curvature_memory: float = 20.0
    basis_memory: float = 20.0
    gram_every: int = 1
    basis_every: int = 10
    renewal: str = "iteration"

    def __post_init__(self) -> None:
        for name in ("damping_kind", "renewal"):
            check_choice(name, getattr(self, name), CHOICES[name])
        check_number("damping", self.damping, low=0.0, open_low=True)
        for name in ("gram_every", "basis_every"):
            check_count(name, getattr(self, name))
        for name in ("curvature_memory", "basis_memory"):
            check_number(name, getattr(self, name), low=1.0)


@dataclass(frozen=True)
class InnerLoop:
    """U is where heavy-ball descent on the relaxed objective has come, averaged over refits; the authors' solver.

    Scalar, diagonal and dense structures get one block per layer here, bias and kernel together.

    Args:
        divergence: whose second order is G: "fisher", "gauss-newton" or "newton".
        damping: mu >= 0, added to G, in units of curvature.
        steps: T, descent steps per refit.
        lr: eta_U, their learning rate.
        momentum: their heavy ball's decay, in [0, 1).
        clip: largest Frobenius norm of the gradient of a stored array, in the gradient's units; None for no clip.
        warm_start: whether a refit starts from the current U, or from the identity.
        ema: gamma in [0, 1], decay of the stored arrays per refit.
        positive: whether U is positive definite by construction: logarithms and roots of the factors are stored.
        allow_inversion: leave negative entries of a free (not ``positive``) scalar or diagonal U as they are, instead
            of raising them to a small positive number.

    Raises:
        ValueError: a name is unknown, a number out of range, or ``allow_inversion`` has nothing to allow.

    Source: LLQR, arXiv 2605.04230; the book, thm-relaxed-gradients and thm-ema-relaxed-step.
    """

    divergence: str = "fisher"
    damping: float = 0.0
    steps: int = 50
    lr: float = 1e-3
    momentum: float = 0.9
    clip: float | None = 5.0
    warm_start: bool = True
    ema: float = 0.95
    positive: bool = True
    allow_inversion: bool = False

    def __post_init__(self) -> None:
        check_choice("divergence", self.divergence, CHOICES["divergence"])
        check_count("steps", self.steps, low=0)
        for name in ("damping", "lr"):
            check_number(name, getattr(self, name), low=0.0)
        check_number("momentum", self.momentum, low=0.0, high=1.0, open_high=True)
        check_number("ema", self.ema, low=0.0, high=1.0)
        if self.clip is not None:
            check_number("clip", self.clip, low=0.0, open_low=True)
        if self.positive and self.allow_inversion:
            raise ValueError(
                "allow_inversion=True is not read with positive=True, where no entry can be negative; "
                "pass positive=False, or leave it out."
            )


Solver = ClosedForm | InnerLoop

# How settings of the solver were spelled when LLQRConfig held them, where the name has changed.
RENAMED = {
    "inner_steps": "steps",
    "inner_lr": "lr",
    "inner_momentum": "momentum",
    "curvature_ema": "curvature_memory",
    "basis_ema": "basis_memory",
}
DECAYS = ("curvature_ema", "basis_ema")
_SOLVERS = {"closed-form": "ClosedForm()", "inner-loop": "InnerLoop()"}


@dataclass(frozen=True)
class LLQRConfig:
    """What LLQR does; the defaults are the ones the book defends, ``published()`` is what the authors ran.

    The honest name of the default is an E-KFAC-type curvature derived from the LLQR objective, with steps of
    fixed root mean square. Such steps do not shrink by themselves: let the learning rate decay to 0.

    Args:
        structure: of U: "scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac", "dense", or the name of
            one that was registered. Norms and biases, having no two sides, get a diagonal under the third to fifth.
        solver: how U is found, with what only this solver reads: ``ClosedForm(...)`` or ``InnerLoop(...)``.
        every: K, training steps between refits; the first is at step 0. None is 1 with probe_vector="step", else 10.
        probes: k, micro-batches of the probe batch whose gradients are the probes; None is 8. With
            probe_vector="step" there is one probe.
        probe_vector: what U learns from: "step", the gradient that a training step has made anyway (with SAM that of
            the first pass), so that no probe batch is needed; or gradients on a probe batch, against labels "sampled"
            from the model or, "gradient", against the true ones. None is "step", or "sampled" with ``probes`` or an
            ``InnerLoop``, which need a batch.
        reduction: "mean" for the curvature of the mean loss; "sum" for n times that, n terms in the probe.
        acts_on: whether U multiplies the "gradient" that the base optimizer gets, or its "update".
        step_rule: what then happens to the length of S = U v: "rms", root mean square 1 over all weights;
            "rms-per-tensor", over each array; "graft", the length of v; "none".
        max_side: the widest side, in rows, that gets a full basis or factor; None for no limit.
        wide: what a wider side gets: the "identity", or equal diagonal "blocks" no wider than ``max_side``.
        seed: of the uniforms that sample labels, together with the number of the refit.

    Raises:
        TypeError: a setting is unknown or is one of the solver's; the message shows where it is written.
        ValueError: a name is unknown or a number out of range.

    Source: LLQR, arXiv 2605.04230, and LLQR+SAM, arXiv 2605.16134; the book, chapters 16 to 18 and 21.
    """

    structure: str = "ekfac"
    solver: Solver = field(default_factory=ClosedForm)
    every: int = None  # type: ignore[assignment]
    probes: int = None  # type: ignore[assignment]
    probe_vector: str = None  # type: ignore[assignment]
    reduction: str = "mean"
    acts_on: str = "update"
    step_rule: str = "rms-per-tensor"
    max_side: int | None = 128
    wide: str = "blocks"
    seed: int = 0

    def __new__(cls, *args: Any, **settings: Any) -> LLQRConfig:
        """Refuse a setting that is not here with the place where it is; fields are set by ``__init__``.

        Returns:
            A new configuration, still empty.

        Raises:
            TypeError: a setting is unknown or is one of the solver's.
        """
        for name, value in settings.items():
            if name not in _names(cls):
                raise TypeError(_elsewhere(name, value, settings.get("solver")))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        solver: object = self.solver  # what a caller without a type checker may have passed
        if not isinstance(solver, ClosedForm | InnerLoop):
            raise ValueError(
                f"solver={solver!r} is not a solver; pass solver={_SOLVERS.get(str(solver), 'ClosedForm()')}, with "
                "its settings in the brackets."
            )
        self._fill_in()
        for name in ("structure", "probe_vector", "reduction", "acts_on", "step_rule", "wide"):
            check_choice(name, getattr(self, name), CHOICES[name])
        for name in ("every", "probes"):
            check_count(name, getattr(self, name))
        if self.probe_vector == "step":
            self._check_free()
        check_count("seed", self.seed, low=0)
        if self.max_side is not None:
            check_count("max_side", self.max_side, low=0)

    def _fill_in(self) -> None:
        """What is None follows from what is not."""
        given: dict[str, Any] = vars(self)
        batch = _needs_batch(given["probes"], self.solver, self.reduction)
        vector = given["probe_vector"] or ("sampled" if batch else "step")
        every, probes = (1, 1) if vector == "step" else (10, 8)
        for name, value in {"probe_vector": vector, "every": every, "probes": probes}.items():
            if given[name] is None:
                object.__setattr__(self, name, value)

    def _check_free(self) -> None:
        """A step's gradient is one vector, and comes with nothing that a curvature product could be taken of."""
        if self.probes != 1:
            raise ValueError(
                f"probes={self.probes} is not read with probe_vector='step', where the step's gradient is the one "
                "probe; leave it out, or pass probe_vector='sampled'."
            )
        if not self.closed:
            raise ValueError(
                "probe_vector='step' has no batch for the products of an InnerLoop; pass probe_vector='gradient' or "
                "'sampled', or solver=ClosedForm(...)."
            )
        if self.reduction != "mean":
            raise ValueError(
                f"reduction={self.reduction!r} needs the number of terms, which a step's gradient does not tell; "
                "leave it out, or pass probe_vector='sampled'."
            )

    @property
    def closed(self) -> bool:
        """Whether U comes in closed form from an estimate of the curvature."""
        return isinstance(self.solver, ClosedForm)

    def replace(self, **settings: Any) -> LLQRConfig:
        """A copy with some settings changed, the solver's among them by their own names.

        Args:
            **settings: fields of LLQRConfig or of the solver that the copy has, for instance
                ``replace(every=20, damping=0.1)``.

        Returns:
            The new configuration.

        Raises:
            TypeError: a setting is unknown or is read by the other solver only.
            ValueError: a value is not allowed.
        """
        solver = settings.pop("solver", self.solver)
        inner = {name: value for name, value in settings.items() if name not in _names(LLQRConfig)}
        for name, value in inner.items():
            if not dataclasses.is_dataclass(solver) or name not in _names(type(solver)):
                raise TypeError(_elsewhere(name, value, solver))
        outer = {name: value for name, value in settings.items() if name not in inner}
        solver = dataclasses.replace(solver, **inner) if inner else solver
        now = outer.get("probe_vector", self.probe_vector)
        if "probe_vector" not in outer and _needs_batch(
            outer.get("probes"), solver, outer.get("reduction", self.reduction)
        ):
            now = "sampled" if self.probe_vector == "step" else self.probe_vector
        if (now == "step") != (self.probe_vector == "step"):  # another source of probes, with its own clock
            outer = {"every": None, "probes": None, **outer}
        return dataclasses.replace(self, **{**outer, "solver": solver, "probe_vector": now})

    @classmethod
    def sampled(cls, **settings: Any) -> LLQRConfig:
        """Probe batches with sampled labels, now and then: U is learned from the Fisher matrix itself.

        Eight micro-batches every ten steps, one length of step and one damping for all weights. It costs a gradient
        per refit and forgets in two hundred steps: for models that fit their data, whose own gradients vanish.

        Args:
            **settings: fields of LLQRConfig or of ClosedForm to change, as in ``replace``.

        Returns:
            The configuration.

        Source: the book, chapters 16 to 18 and 21.
        """
        every, per_refit, per_renewal = 10, 0.95, 0.8
        slow = ClosedForm(
            damping=0.03,
            damping_kind="relative",
            curvature_memory=1 / (1 - per_refit ** (1 / every)),
            basis_memory=1 / (1 - per_renewal ** (1 / 50)),
            gram_every=50,
            basis_every=50,
            renewal="eigendecomposition",
        )
        earlier = cls(solver=slow, probe_vector="sampled", step_rule="rms", max_side=1024, wide="identity")
        return earlier.replace(**settings)

    @classmethod
    def published(cls, **settings: Any) -> LLQRConfig:
        """The authors' settings, oddities included: a summed Fisher and ema 0.95, or a mean Hessian and 0.9.

        Args:
            **settings: fields of LLQRConfig or of its inner loop to change, as in ``replace``; with
                divergence="newton" the Hessian's settings are the ones that are changed.

        Returns:
            The configuration.

        Source: LLQR, arXiv 2605.04230, and its published code.
        """
        newton = settings.get("divergence") == "newton"
        theirs = cls(
            structure="diagonal",
            solver=InnerLoop(ema=0.9 if newton else 0.95, positive=False),
            every=1000,
            probes=1,
            probe_vector="gradient",
            reduction="mean" if newton else "sum",
            acts_on="gradient",
            step_rule="none",
            max_side=None,
            wide="identity",
        )
        return theirs.replace(**settings)


def _needs_batch(probes: int | None, solver: object, reduction: str) -> bool:
    """Whether the gradient of a training step will not do: several probes, products, or the number of terms."""
    return probes is not None or isinstance(solver, InnerLoop) or reduction == "sum"


def _names(kind: type[Any]) -> tuple[str, ...]:
    """The settings of a type, in order."""
    return tuple(setting.name for setting in dataclasses.fields(kind))


def _elsewhere(name: str, value: object, solver: object) -> str:
    """What to say of a setting that is not read where it was given: where it would be, or the nearest name."""
    now = RENAMED.get(name, name)
    readers = [kind for kind in (ClosedForm, InnerLoop) if now in _names(kind)]
    if not readers:
        return unknown_name("setting", name, {*_names(LLQRConfig), *_names(ClosedForm), *_names(InnerLoop)})
    if name in DECAYS:
        return (
            f"{name}={value!r} was a decay per refit and is now a time constant in training steps: write "
            f"solver=ClosedForm({now}=...), with about (steps between refits)/(1 - decay)."
        )
    reader = next((kind for kind in readers if isinstance(solver, kind)), readers[0])
    spelled = f"solver={reader.__name__}({now}={value!r})"
    if isinstance(solver, ClosedForm | InnerLoop) and not isinstance(solver, reader):
        return (
            f"{name}={value!r} is read by {reader.__name__} only, and solver is {type(solver).__name__}; "
            f"leave it out, or pass {spelled}."
        )
    return f"{name}={value!r} is a setting of the solver; write {spelled}."
