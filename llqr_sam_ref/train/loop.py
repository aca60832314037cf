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
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llqr_sam_ref.optim import SAM, frozen_batch_stats
from llqr_sam_ref.train import seeds
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.data import IGNORED, Batch, Data
from llqr_sam_ref.train.models import build_model
from llqr_sam_ref.train.optimizers import build_optimizer
from llqr_sam_ref.train.ranks import Ranks, parallelized
from llqr_sam_ref.train.schedule import learning_rate

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = (
    2.0**-20
)  # of the loss under fp16: a scaler that went below it found no finite gradient for long


class Trainer:
    """Model, optimizer and data of a run, and where it stands.

    Attributes:
        step: steps taken.
        meters: sums of loss, of right answers and of answers since the last reset, seen by this process.
        model: the module as it is, for probes, evaluation and saving.

    Args:
        config: what the run is told.
        data: what it is trained on.
        ranks: the processes that train together.

    Raises:
        ValueError: settings that do not go together, or do not fit the data.
    """

    def __init__(self, config: TrainConfig, data: Data, ranks: Ranks) -> None:
        self.config, self.data, self.ranks = config, data, ranks
        self.step = 0
        self.seed = config.schedule.seed
        machine = config.machine
        self.steps_per_epoch = data.steps(config.schedule.batch_size)
        self.steps = config.schedule.epochs * self.steps_per_epoch
        if config.schedule.batch_size < ranks.count * config.schedule.accumulate:
            raise ValueError(
                f"batch_size={config.schedule.batch_size} cannot be cut into {ranks.count} processes times "
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
            config.optimizer, self.model, self.loss_fn, self.probe, data.likelihood()
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=machine.precision == "fp16")
        self.wide = torch.float32 if ranks.device.type == "mps" else torch.float64
        self.meters = self._fresh_meters()
        self._epoch, self._order = -1, list[Tensor]()
        self._skipped_before = 0

    # One step.

    def train_step(self) -> None:
        """Take the next step.

        Raises:
            RuntimeError: the batch is too small for so many processes.
        """
        rate = self.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._parts()
        if not batch:
            raise RuntimeError(
                f"the batch of step {self.step} leaves process {self.ranks.rank} without an example; pass a larger "
                "batch_size, or train with fewer processes."
            )
        sam = self.optimizer if isinstance(self.optimizer, SAM) else None
        second = sam is not None and sam.perturbation_due
        own = second and self.config.optimizer.own_perturbation
        self.model.train()
        self._pass(batch, synchronize=not own, measure=True)
        if sam is not None and second:
            with sam.perturbed(self.scaler), frozen_batch_stats(self.model):
                self._pass(batch)
        if self.config.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1

    def probe(self) -> Batch:
        """This process's share of a probe batch for the present step, augmented like a training batch."""
        self.ranks.spread_buffers(self.model)
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
    def examples_per_epoch(self) -> int:
        """How many examples an epoch sees (what does not fill a batch is left out)."""
        batches = self.data.batches(self.config.schedule.batch_size, seeds.generator(self.seed, "order", 0))
        return sum(map(len, batches))

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
        """This process's share of the next batch, and how much each part's mean loss counts.

        Weights make the average over processes of the sum over parts the mean over the whole batch, also where
        parts have different numbers of targets.

        Returns:
            (batch, weight) of every part.
        """
        indices, draws = self._drawn(self.step)
        if self.step + 1 < self.steps:
            self.data.announce(*(t[self.ranks.share(len(t))] for t in self._drawn(self.step + 1)))
        share = self.ranks.share(len(indices))
        terms = self.data.terms(indices)
        everything = float(len(indices) if terms is None else terms.sum())
        parts: list[tuple[Batch, float]] = []
        cuts = torch.tensor_split(torch.arange(share.start, share.stop), self.config.schedule.accumulate)
        for places in cuts:
            if len(places):
                here = float(len(places) if terms is None else terms[places].sum())
                batch = self.data.train_batch(indices[places], draws[places])
                parts.append((self._placed(batch), here * self.ranks.count / everything))
        return parts

    def _drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """Indices of a step's whole batch, and the uniforms of its augmentation."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = seeds.generator(self.seed, "order", epoch)
            self._epoch, self._order = epoch, self.data.batches(self.config.schedule.batch_size, generator)
        indices = self._order[position]
        return indices, seeds.uniforms(len(indices), self.data.draws, self.seed, "augmentation", step)

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
            raise ValueError(
                "own_perturbation=True needs whole gradients in every process; use parallel='ddp'."
            )
        if config.optimizer.optimizer == "friendly-sam" and self.ranks.count > 1:
            raise ValueError(
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
        rank, count = (0, 1) if sharded else (self.ranks.rank, self.ranks.count)
        self.ranks.spread_buffers(self.model)
        sums = self._fresh_meters()
        self.model.eval()
        with torch.no_grad(), self._autocast():
            for batch in self.data.test_batches(self.config.watch.eval_batch_size, rank, count):
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
            ValueError: it belongs to another model or optimizer.
        """
        try:
            if self.config.machine.parallel == "fsdp":
                _spread(self.model, self.optimizer, state)
            else:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
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
