"""What a run is told: frozen groups of settings with one flat name space, checked before anything is built.

Every setting has one name, used for the command line's flag, the preset's entry, the checkpoint and the record. What a
setting may be, where it is read, and whether it may change when a run goes on, stands at its field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llqr_sam_ref.errors import UserError, check_choice, unknown_name
from llqr_sam_ref.train.fields import Settings, Where, anything, choice, count, either, number, rules
from llqr_sam_ref.train.methods import METHODS, bases, llqr_config, missing_reader
from llqr_sam_ref.train.sources import SOURCES

AUGMENTATIONS = ("crop", "flip", "cutout")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """What is trained.

    Args:
        model: a name (see `python -m llqr_sam_ref presets --models`) or package:function.
        model_args: its keyword arguments as key=value, for example width=16 norm=group hidden=64,64.
    """

    model: str = anything("mlp")
    model_args: tuple[str, ...] = anything(())


@dataclass(frozen=True)
class DataConfig(Settings):
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

    data: str = choice("digits", SOURCES)
    data_path: str | None = anything(None, free=True)
    data_args: tuple[str, ...] = anything(())
    download: bool = anything(False, free=True)
    train_examples: int | None = count(None)
    test_examples: int | None = count(None)
    holdout: int = count(0, low=0)
    augment: tuple[str, ...] = choice((), AUGMENTATIONS)
    crop_padding: int = count(4, low=0, only=Where("augment", ("crop",)))
    cutout_size: int = count(16, low=0, only=Where("augment", ("cutout",)))
    cutout_probability: float = number(0.5, low=0.0, high=1.0, only=Where("augment", ("cutout",)))
    label_smoothing: float = number(0.0, low=0.0, high=1.0, open_high=True)
    label_noise: float = number(0.0, low=0.0, high=1.0)

    @classmethod
    def missing_reader(cls, name: str, settings: Mapping[str, Any]) -> str | None:
        """What the field says, and what the data set reads of the settings that not all of them read."""
        readers = [data for data, source in SOURCES.items() if name in source.reads]
        if readers and settings["data"] not in readers:
            return f"by data={settings['data']!r}; leave it out, or pass data={either(readers)}"
        return super().missing_reader(name, settings)


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """How it is trained. A method reads what its row in the table of methods names; see train/methods.py.

    Args:
        optimizer: the method; `python -m llqr_sam_ref presets --optimizers` lists all.
        base: sgd, adamw or muon: what takes the step under a SAM or an LLQR.
        lr: largest learning rate; for llqr and llqr-sam the largest root mean square of a step.
        momentum: decay of the momentum of sgd and muon, in [0, 1).
        nesterov: whether sgd looks ahead.
        betas: decays of the two averages of adamw, in [0, 1).
        weight_decay: share of the weights that sgd adds to the gradient; decoupled in adamw, muon, llqr, llqr-sam.
        decay: whether "all" parameters decay or "matrices" only (no norms, no biases).
        clip_norm: largest norm of the gradient that the base gets; None for no clip.
        rho: radius of the perturbation, a length in the space of the weights.
        sam_every: perturb at every so many steps only.
        sam_start: steps before the first perturbation.
        norm: "dual" or "euclidean" length of the perturbation; None for the metric's own.
        ascent_ema: decay, in [0, 1), of the average that friendly-sam subtracts.
        alpha: strength of m-sam's metric.
        asam_eta: added to |w| by asam.
        fisher_eta: added to g^2 by fisher-sam.
        own_perturbation: every process perturbs by its own gradient instead of the common one.
        llqr: settings of LLQRConfig and of its solver as key=value, over those of the method, for example every=20;
            solver=inner-loop or solver=closed-form takes the other solver.
        probe_size: examples in a probe batch, over all processes.
    """

    optimizer: str = choice("sgd", METHODS)
    base: str = anything("sgd")
    lr: float = number(0.05, low=0.0, open_low=True)
    momentum: float = number(0.9, low=0.0, high=1.0, open_high=True)
    nesterov: bool = anything(False)
    betas: tuple[float, float] = number((0.9, 0.999), low=0.0, high=1.0, open_high=True)
    weight_decay: float = number(0.0, low=0.0)
    decay: str = choice("all", ("all", "matrices"))
    clip_norm: float | None = number(None, low=0.0, open_low=True)
    rho: float = number(0.05, low=0.0)
    sam_every: int = count(1)
    sam_start: int = count(0, low=0)
    norm: str | None = choice(None, ("dual", "euclidean"))
    ascent_ema: float = number(0.9, low=0.0, high=1.0, open_high=True)
    alpha: float = number(1.0, low=0.0)
    asam_eta: float = number(0.01, low=0.0)
    fisher_eta: float = number(0.1, low=0.0)
    own_perturbation: bool = anything(False)
    llqr: tuple[str, ...] = anything(())
    probe_size: int = count(128)

    def check(self) -> None:
        """See that every value is allowed and read, those for LLQR among them."""
        super().check()
        llqr_config(self.optimizer, self.llqr)

    @classmethod
    def check_values(cls, settings: Mapping[str, Any]) -> None:
        """See that every value is allowed, and that the base is one."""
        super().check_values(settings)
        check_choice("base", settings["base"], bases())

    @classmethod
    def missing_reader(cls, name: str, settings: Mapping[str, Any]) -> str | None:
        """What the method and its base are made of says what they read."""
        return missing_reader(name, settings["optimizer"], settings["base"])


@dataclass(frozen=True)
class ScheduleConfig(Settings):
    """How long, and with which learning rate when.

    Args:
        epochs: passes over the training examples.
        batch_size: examples per step, over all processes and accumulated parts.
        accumulate: parts that a process's share is cut into, to save memory.
        schedule: cosine, step, inverse-sqrt or constant.
        warmup: linear rise at the beginning: steps ("4000"), epochs ("5ep") or a share of the run ("5%").
        warmup_from: learning rate where the rise begins.
        milestones: epochs at which the step schedule multiplies by the factor.
        factor: what the step schedule multiplies the learning rate by.
        final_lr: learning rate where the cosine ends.
        seed: of the weights' start, the data order, augmentation, dropout and probes.
    """

    epochs: int = count(10)
    batch_size: int = count(128)
    accumulate: int = count(1)
    schedule: str = choice("cosine", ("cosine", "step", "inverse-sqrt", "constant"))
    warmup: str = anything("0")
    warmup_from: float = number(0.0, low=0.0, only=Where("warmup", ("0",), but=True))
    milestones: tuple[float, ...] = number((), low=0.0, only=Where("schedule", ("step",)))
    factor: float = number(0.1, low=0.0, only=Where("schedule", ("step",)))
    final_lr: float = number(0.0, low=0.0, only=Where("schedule", ("cosine",)))
    seed: int = count(0, low=0)


@dataclass(frozen=True)
class MachineConfig(Settings):
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

    device: str = anything("auto", free=True)
    precision: str = choice("float32", ("float32", "float64", "bf16", "fp16"))
    tf32: bool = anything(True)
    channels_last: bool = anything(False)
    compile: bool = anything(False)
    parallel: str = choice("ddp", ("ddp", "fsdp"))
    deterministic: bool = anything(False, free=True)
    workers: int = count(8, low=0, free=True)


@dataclass(frozen=True)
class WatchConfig(Settings):
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

    eval_batch_size: int = count(1000, free=True)
    eval_every: int = count(1)
    log_every: int = count(0, low=0, free=True)
    checkpoint_every: int = count(0, low=0, free=True)
    progress: bool = anything(True, free=True)
    tensorboard: bool = anything(True, free=True)
    sharpness_examples: int = count(256, low=0, free=True)
    sharpness_rho: float = number(0.05, low=0.0, free=True, only=Where("sharpness_examples", (0,), but=True))


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
        UserError: a setting has a value that is not allowed, or differs from its default where nothing reads it.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def replace(self, **settings: Any) -> TrainConfig:
        """A copy with some settings changed.

        A setting that is not among them and that the copy no longer reads goes back to its default: over
        ``optimizer="sam", rho=0.1``, ``replace(optimizer="sgd")`` drops rho, and ``replace(optimizer="sgd", rho=0.1)``
        is refused.

        Args:
            **settings: by their flat names; lists are taken for tuples.

        Returns:
            The new configuration.

        Raises:
            UserError: a name is unknown, a value is not allowed, or nothing reads a setting.
        """
        return dataclasses.replace(
            self,
            **{group: getattr(self, group).replaced(values) for group, values in _by_group(settings).items()},
        )

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

    @classmethod
    def fitting(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The configuration with these settings; those that nothing reads are left at their defaults.

        Args:
            settings: by their flat names; lists are taken for tuples.

        Returns:
            The configuration.

        Raises:
            UserError: a name is unknown or a value is not allowed.
        """
        groups: dict[str, Any] = {
            group: GROUPS[group].fitting(values) for group, values in _by_group(settings).items()
        }
        return cls(**groups)


GROUPS: dict[str, type[Settings]] = {
    group.name: group.default_factory  # type: ignore[misc]
    for group in dataclasses.fields(TrainConfig)
}
GROUP_OF: dict[str, str] = {name: group for group, kind in GROUPS.items() for name in rules(kind)}

# What may differ between a run and its continuation: where files lie, and what only shows or speeds things up.
FREE = frozenset(name for kind in GROUPS.values() for name, rule in rules(kind).items() if rule.free)


def _by_group(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if name not in GROUP_OF:
            raise UserError(unknown_name("setting", name, GROUP_OF))
        groups.setdefault(GROUP_OF[name], {})[name] = tuple(value) if isinstance(value, list) else value
    return groups
