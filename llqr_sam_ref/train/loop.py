"""A training step and an evaluation, for every method, precision and number of processes.

One step of any method:

    g at w                 a pass over the batch (in parts, if it is accumulated)
    g at w + epsilon       a second one inside ``perturbed()``, batch statistics frozen, same random numbers
    clip, step             unscaled first where the loss was scaled

What a step does depends on the weights, the optimizer's state and the number of the step alone, so a run that
goes on from a checkpoint goes on bit for bit.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.optim import SAM, frozen_batch_stats
from llqr_sam_ref.train import seeds
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.data import IGNORED, Batch, Data
from llqr_sam_ref.train.models import build_model
from llqr_sam_ref.train.optimizers import build_optimizer, refused
from llqr_sam_ref.train.ranks import RunRanks, parallelized
from llqr_sam_ref.train.schedule import learning_rate

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = (
    2.0**-20
)  # of the loss under fp16: a scaler that went below it found no finite gradient for long


class Observer:
    """Watches training steps; a subclass looks at the trainer it is given, and changes nothing."""

    def first_pass(self, trainer: Trainer) -> None:
        """``.grad`` holds the gradients at w."""

    def perturbed(self, trainer: Trainer) -> None:
        """The weights are w + epsilon, a refit that was due is done, ``.grad`` still holds the gradients at w."""

    def second_pass(self, trainer: Trainer) -> None:
        """``.grad`` holds the gradients at w + epsilon; the weights are w again."""

    def stepped(self, trainer: Trainer) -> None:
        """The step is taken; ``.grad`` holds what the optimizer was given, clipped and unscaled."""


class Trainer:
    """Model, optimizer and data of a run, and where it stands.

    Attributes:
        step: steps taken.
        steps_per_epoch: the same number in every epoch.
        examples_per_epoch: how many examples an epoch sees; what does not fill a batch is left out.
        meters: sums of loss, of right answers and of answers since the last reset, seen by this process.
        model: the module as it is, for probes, evaluation and saving.

    Args:
        config: what the run is told.
        data: what it is trained on.
        ranks: those that train together.
        observer: is told what happens in a step.

    Raises:
        UserError: settings that do not go together, or do not fit the data.
    """

    def __init__(
        self, config: TrainConfig, data: Data, ranks: RunRanks, observer: Observer | None = None
    ) -> None:
        self.config, self.data, self.ranks = config, data, ranks
        self.observer = Observer() if observer is None else observer
        self.step = 0
        self.seed = config.schedule.seed
        machine = config.machine
        self._epoch, self._order = 0, self._batches(0)
        self.steps_per_epoch, self.examples_per_epoch = len(self._order), sum(map(len, self._order))
        self.steps = config.schedule.epochs * self.steps_per_epoch
        if config.schedule.batch_size < ranks.world_size * config.schedule.accumulate:
            raise UserError(
                f"batch_size={config.schedule.batch_size} cannot be cut into {ranks.world_size} processes times "
                f"accumulate={config.schedule.accumulate} parts; pass a larger one."
            )
        if config.optimizer.own_perturbation:
            self._check_own_perturbation()
        torch.manual_seed(seeds.derived_seed(self.seed, "weights"))
        model = build_model(config.model, data.shape)
        dtype = torch.float64 if machine.precision == "float64" else torch.float32
        layout = torch.channels_last if machine.channels_last else torch.preserve_format
        self.model = model.to(ranks.device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
        self.parallel = parallelized(self.model, machine, ranks)
        self.forward = torch.compile(self.parallel) if machine.compile else self.parallel
        self.loss_fn = data.loss(config.data.label_smoothing)
        self.optimizer = build_optimizer(
            config.optimizer, self.model, self.loss_fn, self.probe, data.likelihood(), self.parallel
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=machine.precision == "fp16")
        self.wide = torch.float32 if ranks.device.type == "mps" else torch.float64
        self.meters = self._fresh_meters()
        self._skipped_before = 0

    # One step.

    def train_step(self) -> None:
        """Take the next step.

        Raises:
            UserError: the batch is too small for so many ranks, or the optimizer refuses its settings now.
        """
        rate = self.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._parts()
        sam = self.optimizer if isinstance(self.optimizer, SAM) else None
        second = sam is not None and sam.perturbation_due
        own = second and self.config.optimizer.own_perturbation
        self.model.train()
        self._pass(batch, synchronize=not own, measure=True)
        self.observer.first_pass(self)
        if sam is not None and second:
            with ExitStack() as inside:
                with refused():
                    inside.enter_context(sam.perturbed(self.scaler))
                inside.enter_context(frozen_batch_stats(self.model))
                self.observer.perturbed(self)
                self._pass(batch)
            self.observer.second_pass(self)
        if self.config.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        with refused():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.observer.stepped(self)
        self.optimizer.zero_grad()
        self.step += 1

    def probe(self) -> Batch:
        """This process's share of a probe batch for the present step, augmented like a training batch."""
        self.ranks.share_buffers(self.model)
        size = min(self.config.optimizer.probe_size, self.data.train_size)
        generator = seeds.generator(self.seed, "probe", self.step)
        indices = torch.randperm(self.data.train_size, generator=generator)[:size]
        draws = seeds.uniforms(size, self.data.draws, self.seed, "probe augmentation", self.step)
        share = self.ranks.share(size)
        return self._placed(self.data.train_batch(indices[share], draws[share]))

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        config = self.config
        return learning_rate(config.schedule, config.optimizer.lr, self.step, self.steps_per_epoch)

    @property
    def radius(self) -> float:
        """|epsilon| of the last perturbation, 0 for methods without."""
        return self.optimizer.realized_radius if isinstance(self.optimizer, SAM) else 0.0

    @property
    def skipped(self) -> int:
        """Perturbations that were skipped because the gradient was not finite."""
        here = self.optimizer.nonfinite_count if isinstance(self.optimizer, SAM) else 0
        return self._skipped_before + here

    def _pass(
        self, parts: list[tuple[Batch, float]], *, synchronize: bool = True, measure: bool = False
    ) -> None:
        """Gradients of the mean loss over all parts, of this process or of all."""
        self.optimizer.zero_grad()
        for number, ((inputs, targets), weight) in enumerate(parts):
            last = number == len(parts) - 1
            torch.manual_seed(seeds.derived_seed(self.seed, "dropout", self.step, self.ranks.rank, number))
            with self._gradients_stay_here(not (synchronize and last)):
                with self._autocast():
                    outputs = self.forward(*inputs) if isinstance(inputs, tuple) else self.forward(inputs)
                    loss = self.loss_fn(outputs, targets)
                torch.autograd.backward(self.scaler.scale(loss * weight))
            if measure:
                self.meters += self._measured(outputs.detach(), targets, loss.detach())

    def _parts(self) -> list[tuple[Batch, float]]:
        """This rank's share of the next batch, and how much each part's mean loss counts.

        Weights make the average over processes of the sum over parts the mean over the whole batch, also where
        parts have different numbers of targets.

        Returns:
            (batch, weight) of every part.

        Raises:
            UserError: there are fewer examples than ranks; on all of them, so that none waits for the others.
        """
        indices, draws = self._drawn(self.step)
        if len(indices) < self.ranks.world_size:
            raise UserError(
                f"the batch of step {self.step} has {len(indices)} examples for {self.ranks.world_size} processes; "
                "pass a larger batch_size, or train with fewer processes."
            )
        if self.step + 1 < self.steps:
            coming, their_draws = self._drawn(self.step + 1)
            for places in self._cuts(len(coming)):
                self.data.announce(coming[places], their_draws[places])
        terms = self.data.terms(indices)
        everything = float(len(indices) if terms is None else terms.sum())
        parts: list[tuple[Batch, float]] = []
        for places in self._cuts(len(indices)):
            here = float(len(places) if terms is None else terms[places].sum())
            batch = self.data.train_batch(indices[places], draws[places])
            parts.append((self._placed(batch), here * self.ranks.world_size / everything))
        return parts

    def _cuts(self, n: int) -> list[Tensor]:
        """Places, among the n examples of a batch, of the parts that this rank reads; none of them is empty."""
        share = self.ranks.share(n)
        cuts = torch.tensor_split(torch.arange(share.start, share.stop), self.config.schedule.accumulate)
        return [places for places in cuts if len(places)]

    def _drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """Indices of a step's whole batch, and the uniforms of its augmentation."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._batches(epoch)
        indices = self._order[position]
        return indices, seeds.uniforms(len(indices), self.data.draws, self.seed, "augmentation", step)

    def _batches(self, epoch: int) -> list[Tensor]:
        """An epoch's batches, as indices of examples."""
        generator = seeds.generator(self.seed, "order", epoch)
        return self.data.batches(self.config.schedule.batch_size, generator)

    def _placed(self, batch: Batch) -> Batch:
        inputs, targets = batch
        if self.config.machine.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, targets

    def _gradients_stay_here(self, stay: bool) -> AbstractContextManager[Any]:
        if stay and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        if self.config.machine.parallel == "fsdp":
            self.parallel.set_requires_gradient_sync(not stay)  # type: ignore[operator]
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        half = HALF.get(self.config.machine.precision)
        return nullcontext() if half is None else torch.autocast(self.ranks.device.type, half)

    def _check_own_perturbation(self) -> None:
        config = self.config
        if config.machine.parallel == "fsdp":
            raise UserError(
                "own_perturbation=True needs whole gradients in every process; use parallel='ddp'."
            )
        if config.optimizer.optimizer == "friendly-sam" and self.ranks.world_size > 1:
            raise UserError(
                "own_perturbation=True with friendly-sam would keep a different average in every process; pass "
                "own_perturbation=False."
            )

    # Looking at it.

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the test examples, batch statistics and dropout in evaluation mode.

        Returns:
            {"loss", "accuracy"}.
        """
        sharded = self.config.machine.parallel == "fsdp"  # all processes must run the same passes
        rank, world_size = (0, 1) if sharded else (self.ranks.rank, self.ranks.world_size)
        self.ranks.share_buffers(self.model)
        sums = self._fresh_meters()
        self.model.eval()
        with torch.no_grad(), self._autocast():
            for batch in self.data.test_batches(self.config.watch.eval_batch_size, rank, world_size):
                inputs, targets = self._placed(batch)
                outputs = self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
                loss = nn.functional.cross_entropy(outputs.float(), targets, ignore_index=IGNORED)
                sums += self._measured(outputs, targets, loss)
        self.model.train()
        return averages(sums if sharded else self.ranks.sum(sums))

    def reset_meters(self) -> None:
        """Begin to add up anew."""
        self.meters = self._fresh_meters()

    def totals(self) -> Tensor:
        """The meters summed over all processes."""
        return self.ranks.sum(self.meters.clone())

    def finite(self) -> bool:
        """Whether everything since the last reset, and every weight, is finite, here and elsewhere."""
        with torch.no_grad():
            weights = torch._foreach_norm([_local(p) for p in self.model.parameters()])
            fine = torch.stack([w.to(self.meters) for w in weights]).isfinite().all()
            bad = not bool(fine & self.meters.isfinite().all())
        lost = self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE
        return not self.ranks.any(bad or lost)

    def _fresh_meters(self) -> Tensor:
        return torch.zeros(3, device=self.ranks.device, dtype=self.wide)

    def _measured(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        counted = targets != IGNORED
        if self.scaler.is_enabled():  # the scaler skips a step that overflows, and so do the meters
            counted = counted & loss.isfinite()
            loss = loss.nan_to_num(0.0, 0.0, 0.0)
        terms = counted.sum().to(self.wide)
        correct = ((outputs.argmax(1) == targets) & counted).sum().to(self.wide)
        return torch.stack((loss.to(self.wide) * terms, correct, terms))

    # Saving.

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; with fsdp all processes must ask together."""
        model: dict[str, Any] = self.model.state_dict()
        optimizer: dict[str, Any] = self.optimizer.state_dict()
        if self.config.machine.parallel == "fsdp":
            model, optimizer = _gathered(self.model, self.optimizer)
        return {
            "step": self.step,
            "model": model,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "meters": self.totals().tolist(),
            "skipped": self.skipped,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from where ``state()`` was taken.

        Args:
            state: what it returned.

        Raises:
            UserError: it belongs to another model or optimizer.
        """
        try:
            if self.config.machine.parallel == "fsdp":
                _spread(self.model, self.optimizer, state)
            else:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint does not fit the model or the optimizer: {error} Was the data set or the code "
                "changed? Restore it, or start anew in another folder."
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        self.step, self._skipped_before = state["step"], state["skipped"]
        sums = torch.tensor(state["meters"], device=self.ranks.device, dtype=self.wide)
        self.meters = sums if self.ranks.first else torch.zeros_like(sums)


def averages(sums: Tensor) -> dict[str, float]:
    """Mean loss and accuracy from what the meters added up."""
    loss, correct, terms = sums.tolist()
    return (
        {"loss": loss / terms, "accuracy": correct / terms} if terms else {"loss": math.nan, "accuracy": 0.0}
    )


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _gathered(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole states from the shards of all processes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole: tuple[dict[str, Any], dict[str, Any]] = get_state_dict(model, optimizer, options=options)
    return whole


def _spread(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Shards of whole states."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )
