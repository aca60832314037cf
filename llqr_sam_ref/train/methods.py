"""The methods, a row each: what a method is made of, and so which settings it reads, and how it is drawn.

This one table is read by the checks of settings, the optimizer factory, the presets, the command line, the plots
and the palette of the book. A new method is a new row. Nothing here imports torch: classes are named by their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from llqr_sam_ref.config import RENAMED, ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.errors import UserError, check_choice
from llqr_sam_ref.train.fields import Settings, either
from llqr_sam_ref.train.settings import parse


@dataclass(frozen=True)
class Look:
    """How a method is drawn: line style and marker repeat what the color says.

    Args:
        label: the method's name in figures.
        light: color on the light page.
        dark: color on the dark page.
        text_light: color of text on the light page.
        text_dark: color of text on the dark page.
        dashes: lengths of strokes and gaps, in points; none for a solid line.
        marker: of matplotlib.
        width: of lines, in points.
    """

    label: str
    light: str
    dark: str
    text_light: str
    text_dark: str
    dashes: tuple[float, ...]
    marker: str
    width: float = 1.6

    def line(self) -> dict[str, Any]:
        """Keyword arguments for ``Axes.plot``."""
        style: Any = (0, self.dashes) if self.dashes else "-"
        return {"color": self.light, "linestyle": style, "linewidth": self.width, "label": self.label}

    def kin(self, label: str, dashes: tuple[float, ...], marker: str) -> Look:
        """The look of a method of the same kind: the same color, another line and marker."""
        return dataclasses.replace(self, label=label, dashes=dashes, marker=marker)


INK = Look("SGD", "#090b10", "#f4f5f6", "#090b10", "#f4f5f6", (1, 3), "o")
GREEN = Look("AdamW", "#487571", "#70998b", "#487571", "#70998b", (10, 4), "x")
RED = Look("SAM", "#8b280c", "#cc2909", "#8b280c", "#ff6b4a", (6, 3), "^")
AMBER = Look("M-SAM", "#d17901", "#fcbc36", "#8f5200", "#fcbc36", (6, 3, 1, 3), "D")
BLUE = Look("LLQR", "#003093", "#2f6a8a", "#003093", "#5aa5cf", (), "s")
VIOLET = Look("LLQR+SAM", "#ad76fa", "#afa2f9", "#7d3fd8", "#afa2f9", (), "o", 2.8)


class Made:
    """An object that a method is made of; its class is imported when it is made.

    Args:
        place: of the class, package.module:Class.
        **arguments: names of the settings that the class's arguments of these names come from.
    """

    def __init__(self, place: str, **arguments: str) -> None:
        self.place, self.arguments = place, arguments

    def make(self, config: Settings, *first: Any, **more: Any) -> Any:
        """Make it.

        Args:
            config: the group of settings that has those named by the arguments.
            *first: arguments that are no settings.
            **more: the same by name.

        Returns:
            The object.
        """
        module, _, name = self.place.partition(":")
        settings = {argument: getattr(config, setting) for argument, setting in self.arguments.items()}
        return getattr(import_module(module), name)(*first, **more, **settings)


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        about: one line.
        look: how it is drawn.
        steps: what takes the step, for a method that is a base.
        matrix_rule: ``rule`` of the groups of its matrices, for a base that has one.
        base: what takes the step unless another base is asked for; None for the preset's.
        preconditioner: from settings to what LLQR is told; None for methods without.
        probes: whether it draws probe batches.
        sam: the SAM around all that; None for methods that do not perturb.
        metric: of the SAM; None for the geometry of what is inside.
        kin: methods whose settings in a preset it takes before its own.
        settings: what it needs when a preset says nothing.
    """

    about: str
    look: Look
    steps: Made | None = None
    matrix_rule: str | None = None
    base: str | None = None
    preconditioner: Callable[..., LLQRConfig] | None = None
    probes: bool = False
    sam: Made | None = None
    metric: Made | None = None
    kin: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        """Whether it takes the step by itself."""
        return self.steps is not None

    @property
    def perturbs(self) -> bool:
        """Whether it is a SAM."""
        return self.sam is not None

    @property
    def reads(self) -> frozenset[str]:
        """Settings that it reads, those of the base under it left out."""
        made = [part for part in (self.steps, self.sam, self.metric) if part is not None]
        return frozenset({
            *("optimizer", "lr", "weight_decay", "decay", "clip_norm"),
            *(setting for part in made for setting in part.arguments.values()),
            *(("own_perturbation",) if self.perturbs else ()),
            *(("llqr",) if self.preconditioner is not None else ()),
            *(("probe_size",) if self.probes else ()),
            *(() if self.is_base else ("base",)),
        })


_SAM = Made("llqr_sam_ref.optim.sam:SAM", rho="rho", every="sam_every", start="sam_start", norm="norm")
_FRIENDLY = Made(_SAM.place, **_SAM.arguments, ascent_ema="ascent_ema")
_REPORTED = partial(LLQRConfig.published, structure="ekfac", steps=25, lr=5e-3, every=500)

METHODS: dict[str, Method] = {
    "sgd": Method(
        "stochastic gradient descent with momentum",
        INK,
        steps=Made("torch.optim:SGD", momentum="momentum", nesterov="nesterov"),
        settings={"lr": 0.05, "momentum": 0.9},
    ),
    "adamw": Method(
        "Adam with decoupled decay",
        GREEN,
        steps=Made("torch.optim:AdamW", betas="betas"),
        settings={"lr": 1e-3, "weight_decay": 0.05},
    ),
    "muon": Method(
        "orthogonalized momentum for matrices and convolutions, AdamW for the rest",
        INK.kin("Muon", (8, 2, 1, 2), "P"),
        steps=Made("llqr_sam_ref.train.muon:Muon", momentum="momentum", betas="betas"),
        matrix_rule="muon",
        settings={"lr": 2e-3, "momentum": 0.95, "weight_decay": 0.05},
    ),
    "sam": Method("the gradient at w + rho g/|g| for the base", RED, sam=_SAM),
    "m-sam": Method(
        "SAM in the metric I + alpha^2 g g^T",
        AMBER,
        sam=_SAM,
        metric=Made("llqr_sam_ref.optim.metric:Monge", alpha="alpha"),
        kin=("sam",),
    ),
    "asam": Method(
        "SAM in the metric diag(|w| + eta)^-2",
        RED.kin("ASAM", (3, 2), "v"),
        sam=_SAM,
        metric=Made("llqr_sam_ref.optim.metric:Adaptive", eta="asam_eta"),
        kin=("sam",),
    ),
    "fisher-sam": Method(
        "SAM in the metric diag(g^2 + eta)",
        RED.kin("Fisher SAM", (9, 2, 2, 2), "<"),
        sam=_SAM,
        metric=Made("llqr_sam_ref.optim.metric:Fisher", eta="fisher_eta"),
        kin=("sam",),
    ),
    "friendly-sam": Method(
        "SAM along g minus its running average",
        RED.kin("Friendly SAM", (1, 1), ">"),
        sam=_FRIENDLY,
        kin=("sam",),
    ),
    # U acts on the momentum of sgd, whatever a preset's base is: what Adam adds to it would be undone. A step has a
    # root mean square of lr and decays decoupled.
    "llqr": Method(
        "a preconditioner over the base, learned from the gradients of the steps",
        BLUE,
        base="sgd",
        preconditioner=LLQRConfig().replace,
        settings={"lr": 0.004, "momentum": 0.9, "nesterov": True, "weight_decay": 6.25e-3},
    ),
    "llqr-sampled": Method(
        "the same with U learned now and then, from probe batches with sampled labels",
        BLUE.kin("LLQR, sampled", (6, 2, 1, 2), "d"),
        base="sgd",
        preconditioner=LLQRConfig.sampled,
        probes=True,
        kin=("llqr",),
    ),
    "llqr-published": Method(
        "the same as the authors' code has it",
        BLUE.kin("LLQR, published", (12, 2), "h"),
        preconditioner=LLQRConfig.published,
        probes=True,
    ),
    "llqr-reported": Method(
        "the same with the numbers that others report from the paper: 25 inner steps of 5e-3 every 500, E-KFAC",
        BLUE.kin("LLQR, reported", (4, 2), "p"),
        preconditioner=_REPORTED,
        probes=True,
    ),
    "llqr-sam": Method(
        "SAM over llqr, with U^-1 as the metric",
        VIOLET,
        base="sgd",
        preconditioner=LLQRConfig().replace,
        sam=_SAM,
        kin=("llqr", "sam"),
    ),
    "llqr-sampled-sam": Method(
        "SAM over llqr-sampled",
        VIOLET.kin("LLQR+SAM, sampled", (6, 2, 1, 2), "d"),
        base="sgd",
        preconditioner=LLQRConfig.sampled,
        probes=True,
        sam=_SAM,
        kin=("llqr", "sam"),
    ),
    "llqr-published-sam": Method(
        "SAM over llqr-published",
        VIOLET.kin("LLQR+SAM, published", (12, 2), "h"),
        preconditioner=LLQRConfig.published,
        probes=True,
        sam=_SAM,
        kin=("llqr-published", "sam"),
    ),
    "llqr-reported-sam": Method(
        "SAM over llqr-reported",
        VIOLET.kin("LLQR+SAM, reported", (4, 2), "p"),
        preconditioner=_REPORTED,
        probes=True,
        sam=_SAM,
        kin=("llqr-reported", "sam"),
    ),
}


def bases() -> tuple[str, ...]:
    """The methods that take a step by themselves."""
    return tuple(name for name, method in METHODS.items() if method.is_base)


def base_of(optimizer: str, base: str) -> str:
    """What takes the step: the method itself, if it is a base."""
    return optimizer if METHODS[optimizer].is_base else base


def missing_reader(setting: str, optimizer: str, base: str) -> str | None:
    """Why a setting of the optimizer is not read, and what would have to be set for it to be read.

    Args:
        setting: its name.
        optimizer: the method.
        base: what is under it.

    Returns:
        The end of a sentence that begins "is not read"; None where it is read.
    """
    method = METHODS[optimizer]
    if setting == "base" and base == optimizer:
        return None
    if setting in method.reads | METHODS[base_of(optimizer, base)].reads:
        return None
    under = [name for name in bases() if setting in METHODS[name].reads]
    if under and not method.is_base:
        return f"by optimizer={optimizer!r} over base={base!r}; leave it out, or pass base={either(under)}"
    readers = [name for name, row in METHODS.items() if setting in row.reads]
    return f"by optimizer={optimizer!r}; leave it out, or pass optimizer={either(readers)}"


# What LLQR is told.

SOLVERS: dict[str, type[ClosedForm | InnerLoop]] = {"closed-form": ClosedForm, "inner-loop": InnerLoop}


def llqr_config(optimizer: str, words: Sequence[str]) -> LLQRConfig | None:
    """What LLQR is told by a run.

    ``every=20 damping=0.1`` are settings of LLQRConfig and of the method's solver; ``solver=inner-loop`` and
    ``solver=closed-form`` take the other solver with its own defaults.

    Args:
        optimizer: the method.
        words: settings of LLQR as key=value.

    Returns:
        The method's settings with those words over them; None for methods without LLQR.

    Raises:
        UserError: a setting is unknown, not allowed, or read by the other solver only.
    """
    make = METHODS[optimizer].preconditioner
    settings = parse("llqr", words)
    if make is None:
        return None
    own = make()
    solver = SOLVERS[check_choice("llqr solver", settings.pop("solver", _word(type(own.solver))), SOLVERS)]
    for name, value in settings.items():
        if name in RENAMED:
            raise UserError(f"llqr {name}={value!r} has another name now; write {RENAMED[name]}={value!r}.")
        if not _reads(solver, name) and (others := [kind for kind in SOLVERS.values() if _reads(kind, name)]):
            raise UserError(
                f"llqr {name}={value!r} is not read by solver={_word(solver)}; leave it out, or add "
                f"solver={_word(others[0])}."
            )
    try:
        if isinstance(own.solver, solver):
            return make(**settings)
        return own.replace(solver=solver(), **settings)
    except TypeError as error:
        raise UserError(f"llqr: {error}") from error


def _word(solver: type[ClosedForm | InnerLoop]) -> str:
    return next(word for word, kind in SOLVERS.items() if kind is solver)


def _reads(solver: type[ClosedForm | InnerLoop], setting: str) -> bool:
    names = {known.name for kind in (LLQRConfig, solver) for known in dataclasses.fields(kind)}
    return setting in names
