"""What a run is told: frozen groups of settings with one flat name space, checked before anything is built.

Every setting has one name, used for the command line's flag, the preset's entry, the checkpoint and the record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llqr_sam_ref.errors import check_choice, check_count, check_number, unknown_name

OPTIMIZERS: dict[str, str] = {
    "sgd": "stochastic gradient descent with momentum",
    "adamw": "Adam with decoupled decay",
    "muon": "orthogonalized momentum for matrices and convolutions, AdamW for the rest",
    "sam": "the gradient at w + rho g/|g| for the base",
    "m-sam": "SAM in the metric I + alpha^2 g g^T",
    "asam": "SAM in the metric diag(|w| + eta)^-2",
    "fisher-sam": "SAM in the metric diag(g^2 + eta)",
    "friendly-sam": "SAM along g minus its running average",
    "llqr": "the learned preconditioner over the base, in the form that the book defends",
    "llqr-published": "the same as the authors' code has it",
    "llqr-reported": "the same with the numbers that others report from the paper",
    "llqr-sam": "SAM over llqr, with U^-1 as the metric",
    "llqr-published-sam": "SAM over llqr-published",
    "llqr-reported-sam": "SAM over llqr-reported",
}
BASES = ("sgd", "adamw", "muon")
AUGMENTATIONS = ("crop", "flip", "cutout")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Args:
        model: a name (see `python -m llqr_sam_ref presets --models`) or package:function.
        model_args: its keyword arguments as key=value, for example width=16 norm=group hidden=64,64.
    """

    model: str = "mlp"
    model_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on.

    Args:
        data: digits, fashion-mnist, cifar10, cifar100, imagenet, modular, text, parallel or pairs.
        data_path: where its files lie; digits, modular and pairs need none.
        data_args: keyword arguments of the data set as key=value, for example p=97 fraction=0.6.
        download: fetch the files into data_path first (torchvision does it).
        train_examples: use the first so many training examples; None for all.
        test_examples: use the first so many test examples; None for all.
        holdout: test on so many training examples instead, which are not trained on: to choose settings by.
        augment: any of crop, flip, cutout; every image has an offset of its own.
        crop_padding: pixels of reflected border for crop.
        cutout_size: side of the square that cutout blanks, in pixels.
        cutout_probability: how often it does.
        label_smoothing: mass spread over all classes, in [0, 1).
        label_noise: share of training labels (captions, for pairs) replaced by random ones, in [0, 1].
    """

    data: str = "digits"
    data_path: str | None = None
    data_args: tuple[str, ...] = ()
    download: bool = False
    train_examples: int | None = None
    test_examples: int | None = None
    holdout: int = 0
    augment: tuple[str, ...] = ()
    crop_padding: int = 4
    cutout_size: int = 16
    cutout_probability: float = 0.5
    label_smoothing: float = 0.0
    label_noise: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """How it is trained.

    Args:
        optimizer: the method; `python -m llqr_sam_ref presets --optimizers` lists all.
        base: sgd, adamw or muon: what takes the step under a SAM or an LLQR.
        lr: largest learning rate; root mean square of a step for llqr and llqr-sam.
        momentum: of sgd and muon.
        nesterov: whether sgd looks ahead.
        betas: of adamw.
        weight_decay: added to the gradient by sgd; decoupled in adamw, muon, llqr and llqr-sam.
        decay: whether "all" parameters decay or "matrices" only (no norms, no biases).
        clip_norm: largest norm of the gradient that the base gets; None for no clip.
        rho: radius of the perturbation, in weights.
        sam_every: perturb at every so many steps only.
        sam_start: steps before the first perturbation.
        norm: "dual" or "euclidean" length of the perturbation; None for the metric's own.
        ascent_ema: decay of the average that friendly-sam subtracts.
        alpha: strength of m-sam's metric.
        asam_eta: added to |w| by asam.
        fisher_eta: added to g^2 by fisher-sam.
        own_perturbation: every worker perturbs by its own gradient instead of the common one.
        llqr: settings of LLQRConfig as key=value, over those of the method, for example every=20.
        probe_size: examples in a probe batch, over all workers.
    """

    optimizer: str = "sgd"
    base: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay: str = "all"
    clip_norm: float | None = None
    rho: float = 0.05
    sam_every: int = 1
    sam_start: int = 0
    norm: str | None = None
    ascent_ema: float = 0.9
    alpha: float = 1.0
    asam_eta: float = 0.01
    fisher_eta: float = 0.1
    own_perturbation: bool = False
    llqr: tuple[str, ...] = ()
    probe_size: int = 128


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, and with which learning rate when.

    Args:
        epochs: passes over the training examples.
        batch_size: examples a step, over all workers and accumulated parts.
        accumulate: parts that a worker's share is cut into, to save memory.
        schedule: cosine, step, inverse-sqrt or constant.
        warmup: linear rise at the beginning: steps ("4000"), epochs ("5ep") or a share of the run ("5%").
        warmup_from: learning rate where the rise begins.
        milestones: epochs at which the step schedule multiplies by the factor.
        factor: of the step schedule.
        final_lr: where the cosine ends.
        seed: of the weights' start, the data order, augmentation, dropout and probes.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    schedule: str = "cosine"
    warmup: str = "0"
    warmup_from: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    final_lr: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class MachineConfig:
    """On what.

    Args:
        device: auto, cpu, cuda or cuda:1 and the like; auto takes an accelerator if there is one.
        precision: float32, float64, bf16 or fp16; the last two keep float32 weights and use autocast.
        tf32: let float32 products on an accelerator round their inputs to ten bits.
        channels_last: lay images out with the channel as the fastest axis.
        compile: compile the model's forward and backward passes; probes use the plain model.
        parallel: ddp or fsdp, when started under torchrun.
        deterministic: refuse operations whose result may differ from run to run.
        workers: threads that decode images (imagenet only).
    """

    device: str = "auto"
    precision: str = "float32"
    tf32: bool = True
    channels_last: bool = False
    compile: bool = False
    parallel: str = "ddp"
    deterministic: bool = False
    workers: int = 8


@dataclass(frozen=True)
class WatchConfig:
    """What is shown and kept.

    Args:
        eval_batch_size: examples in a batch of the evaluation.
        eval_every: evaluate after every so many epochs, and after the last.
        log_every: steps between two updates of the progress bar and of TensorBoard; 0 for automatic.
        checkpoint_every: steps between two checkpoints; 0 for one at the end of every epoch.
        progress: show a progress bar.
        tensorboard: write scalars for TensorBoard if it is installed.
        sharpness_examples: training examples for the Hessian's top eigenvalue at the end; 0 for none.
        sharpness_rho: radius at which SAM's sharpness is reported.
    """

    eval_batch_size: int = 1000
    eval_every: int = 1
    log_every: int = 0
    checkpoint_every: int = 0
    progress: bool = True
    tensorboard: bool = True
    sharpness_examples: int = 256
    sharpness_rho: float = 0.05


@dataclass(frozen=True)
class TrainConfig:
    """One run. ``config.replace(lr=0.1, model="resnet18")`` finds the group by itself.

    Args:
        model: what is trained.
        data: what it is trained on.
        optimizer: how it is trained.
        schedule: how long, and with which learning rate when.
        machine: on which machine.
        watch: what is shown and kept.

    Raises:
        ValueError: a setting has a value that is not allowed.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        check(self)

    def replace(self, **settings: Any) -> TrainConfig:
        """A copy with some settings changed.

        Args:
            **settings: by their flat names; lists are taken for tuples.

        Returns:
            The new configuration.

        Raises:
            ValueError: a name is unknown or a value not allowed.
        """
        groups: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            if name not in GROUP_OF:
                raise ValueError(unknown_name("setting", name, GROUP_OF))
            as_tuple = tuple(value) if isinstance(value, list) else value
            groups.setdefault(GROUP_OF[name], {})[name] = as_tuple
        changed = {
            group: dataclasses.replace(getattr(self, group), **values) for group, values in groups.items()
        }
        return dataclasses.replace(self, **changed)

    def flat(self) -> dict[str, Any]:
        """All settings by name, as JSON would give them back (tuples as lists)."""
        values: dict[str, Any] = {}
        for group in dataclasses.fields(self):
            for setting, value in dataclasses.asdict(getattr(self, group.name)).items():
                values[setting] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration that ``flat()`` described."""
        return cls().replace(**values)


GROUP_OF: dict[str, str] = {
    setting.name: group.name
    for group in dataclasses.fields(TrainConfig)
    for setting in dataclasses.fields(group.default_factory)  # type: ignore[arg-type]
}

# What may differ between a run and its continuation: where files lie, and what only shows or speeds things up.
FREE = frozenset({
    *("data_path", "download", "device", "workers", "eval_batch_size", "log_every", "checkpoint_every"),
    *("progress", "tensorboard", "deterministic", "sharpness_examples", "sharpness_rho"),
})


def check(config: TrainConfig) -> None:
    """Check what can be checked without data and model.

    Args:
        config: what the run is told.

    Raises:
        ValueError: a setting has a value that is not allowed; the message names the setting.
    """
    values = config.flat()
    choices: dict[str, tuple[str, ...]] = {
        "optimizer": tuple(OPTIMIZERS),
        "base": BASES,
        "decay": ("all", "matrices"),
        "schedule": ("cosine", "step", "inverse-sqrt", "constant"),
        "precision": ("float32", "float64", "bf16", "fp16"),
        "parallel": ("ddp", "fsdp"),
    }
    for name, allowed in choices.items():
        check_choice(name, values[name], allowed)
    for augmentation in values["augment"]:
        check_choice("augment", augmentation, AUGMENTATIONS)
    if values["norm"] is not None:
        check_choice("norm", values["norm"], ("dual", "euclidean"))
    positive = (
        "epochs",
        "batch_size",
        "accumulate",
        "sam_every",
        "probe_size",
        "eval_batch_size",
        "eval_every",
    )
    natural = ("sam_start", "crop_padding", "cutout_size", "workers", "log_every", "checkpoint_every", "seed")
    for name in positive:
        check_count(name, values[name])
    for name in (*natural, "sharpness_examples", "holdout"):
        check_count(name, values[name], low=0)
    for name in ("train_examples", "test_examples"):
        if values[name] is not None:
            check_count(name, values[name])
    nonnegative = ("weight_decay", "rho", "alpha", "asam_eta", "warmup_from", "factor", "final_lr")
    for name in (*nonnegative, "fisher_eta", "sharpness_rho"):
        check_number(name, values[name], low=0.0)
    check_number("lr", values["lr"], low=0.0, open_low=True)
    if values["clip_norm"] is not None:
        check_number("clip_norm", values["clip_norm"], low=0.0, open_low=True)
    for name in ("momentum", "ascent_ema", "label_smoothing"):
        check_number(name, values[name], low=0.0, high=1.0, open_high=True)
    for beta in values["betas"]:
        check_number("betas", beta, low=0.0, high=1.0, open_high=True)
    for name in ("cutout_probability", "label_noise"):
        check_number(name, values[name], low=0.0, high=1.0)
    for epoch in values["milestones"]:
        check_number("milestones", epoch, low=0.0)
