"""What a refit asks of a probe batch: gradients of micro-batches, and curvature products, on one rank or many."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llqr_sam_ref.config import InnerLoop, LLQRConfig
from llqr_sam_ref.optim._tree import batch_size, check_split, flatten, micro_batch, sizes, tensors_of
from llqr_sam_ref.optim.curvature.belonging import held_against
from llqr_sam_ref.optim.curvature.functional import PureModule, Vector, isolated
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.curvature.memory import raise_out_of_memory
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.distributed.shards import resharded
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn
from llqr_sam_ref.optim.likelihood.inference import counted_by
from llqr_sam_ref.optim.probes.gradients import (
    Batching,
    batch_gradients,
    check_finite,
    sampled_gradients,
    scaled,
)
from llqr_sam_ref.optim.probes.sharded import called, sharded_gradients

StateCost = float | Float[Tensor, "d d"]


def draw_uniforms(seed: int, refit: int, shape: tuple[int, ...], ranks: Ranks) -> Float[Tensor, "n ..."]:
    """This rank's rows of the uniforms of a refit: the same numbers whatever the world size.

    Args:
        seed: of the configuration.
        refit: number of the refit.
        shape: for this rank's examples.
        ranks: those that share the probe batch.

    Returns:
        Numbers in [0, 1), float64, on the host.
    """
    generator = torch.Generator("cpu").manual_seed(random.Random(f"{seed}, {refit}").getrandbits(63))
    rows = shape[0]
    drawn = torch.rand(
        (rows * ranks.world_size, *shape[1:]), generator=generator, dtype=torch.float64, device="cpu"
    )
    return drawn[rows * ranks.rank : rows * (ranks.rank + 1)]


@dataclass
class Findings:
    """What refits have found out about a model, its loss and its likelihood, and need not find out again.

    Args:
        likelihood: held against the loss, with the class axis that the loss has; None until a batch has told.
        batching: whether micro-batches can share every operation.
        shapes: of z on a micro-batch, by what decides them.
    """

    likelihood: Likelihood | None = None
    batching: Batching = field(default_factory=Batching)
    shapes: dict[Any, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class ProbeBatch:
    """A probe batch at the present weights; with many ranks, this one's share of it.

    Micro-batches are equal parts of the tensors whose first axis is the batch's (``_tree.batch_size``); anything else
    is passed whole. They weigh what their labels count: with S_j the sum of the terms' gradients in micro-batch j of
    k and n the terms in the whole batch, probe j is S_j k/n, so that the probes' mean is the gradient of the mean loss
    and (1/k) sum_j of (n/k) V_j V_j^T has the mean curvature as expectation, however the counted labels lie.

    Args:
        model: in evaluation mode.
        loss_fn: called as loss_fn(outputs, targets).
        likelihood: of the labels, if it is known.
        inputs: a tuple of positional or a mapping of keyword arguments of the model; anything else is its one argument.
        targets: labels, or whatever the loss takes, or None.
        probes: k, micro-batches of the whole batch.
        ranks: those that share it.
        sharded: whether gradients come out sharded, and thereby summed over the ranks.
        findings: of earlier refits, added to.

    Raises:
        ValueError: the ranks' shares differ, or micro-batches do not partition them.
    """

    model: nn.Module
    loss_fn: LossFn
    likelihood: Likelihood | None
    inputs: Any
    targets: Any
    probes: int
    ranks: Ranks
    sharded: bool = False
    findings: Findings = field(default_factory=Findings)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.examples = batch_size(self.inputs, self.targets)
        self.likelihood = self.findings.likelihood or self.likelihood
        if self.ranks.world_size > 1:
            self.ranks.check_equal("the number of probe examples", self.examples, self.device)
        self.share = self.probes
        if self.ranks.world_size > 1 and self.probes > 1 and not self.sharded:
            self.share, left = divmod(self.probes, self.ranks.world_size)
            if left:
                raise ValueError(
                    f"probes={self.probes} micro-batches cannot be shared at world size {self.ranks.world_size}; "
                    "choose a multiple, or 1."
                )
        opaque = self.share == 1 and not tensors_of((self.inputs, self.targets))
        if not opaque and (self.examples == 0 or self.examples % self.share):
            raise ValueError(
                f"inputs holds {self.examples} examples, which {self.share} micro-batches (probes={self.probes}) do "
                "not divide; pass a multiple."
            )
        check_split(tensors_of(self.inputs), self.examples, self.share)

    @property
    def counting(self) -> Likelihood | None:
        """What tells how much each label counts; None where nothing does, and every example counts 1."""
        return self.likelihood or counted_by(self.loss_fn)

    def part(self, index: int) -> tuple[Any, Any]:
        """Inputs and targets of a micro-batch of this share."""
        return micro_batch(self.inputs, self.targets, index, self.share)

    def hold(self) -> None:
        """Hold the likelihood against the loss, on the first micro-batch that tells; once for all refits.

        Raises:
            ValueError: the likelihood is not the loss's.
        """
        if self.likelihood is None or self.findings.likelihood is not None:
            return
        for index in range(self.share):
            inputs, targets = self.part(index)
            output, loss = self._look(inputs, targets)
            if self._told(output, targets, loss):
                return

    def _hold_sharded(self) -> None:
        """As ``hold``, where every rank takes part in the pass, and what is compared lies after it."""
        if self.likelihood is None:
            return
        for index in range(self.share):
            if not self.ranks.total(self.findings.likelihood is None, self.device):
                return
            inputs, targets = self.part(index)
            with torch.no_grad(), resharded(self.model):
                output = called(self.model, inputs)
            with self.ranks.agreed("the likelihood's comparison with the loss", self.device):
                if self.findings.likelihood is None:
                    self._told(output, targets, None)

    def _told(self, output: Any, targets: Any, loss: Tensor | None) -> bool:
        """Whether a micro-batch tells that the likelihood belongs to the loss."""
        assert self.likelihood is not None
        self.likelihood, told = held_against(self.likelihood, self.loss_fn, output, targets, loss=loss)
        if told:
            self.findings.likelihood = self.likelihood
        return told

    def _look(self, inputs: Any, targets: Any) -> tuple[Any, Tensor | None]:
        """Outputs and the loss on a micro-batch, with their graph."""
        pure = PureModule(self.model, self.loss_fn)
        with isolated(pure.device):
            with fits(self.inputs, self.targets):
                self.findings.shapes[self._key(inputs, targets)] = self.shape_of(
                    pure.now(pure.at(inputs, targets))[0]
                )
            try:
                return pure.look(pure.at(inputs, targets))
            except (RuntimeError, TypeError, IndexError, ValueError) as error:
                raise_out_of_memory(error)
                reason = f"loss_fn fails on the probe batch: {error}"
                raise ValueError(f"{reason} {sizes(tensors_of((inputs, targets)))}") from error

    def output_shape(self) -> tuple[int, ...]:
        """The shape of z on a micro-batch, found by evaluating one.

        Returns:
            The shape.

        Raises:
            ValueError: the model cannot be evaluated on the batch.
        """
        inputs, targets = self.part(0)
        key = self._key(inputs, targets)
        if key not in self.findings.shapes:
            pure = PureModule(self.model, self.loss_fn)
            with isolated(pure.device), fits(self.inputs, self.targets):
                output, _ = pure.now(pure.at(inputs, targets))
            self.findings.shapes = {key: self.shape_of(output)}  # that of the last batch is enough
        return self.findings.shapes[key]

    def _key(self, inputs: Any, targets: Any) -> Any:
        """What decides the outputs' shape."""
        leaves, tree = flatten((inputs, targets))
        values = tuple(tuple(x.shape) if isinstance(x, Tensor) else repr(x) for x in leaves)
        return repr(tree), values, tuple(p.shape for p in self.model.parameters())

    def shape_of(self, output: Any) -> tuple[int, ...]:
        """The shape of z in outputs; of no consequence where nothing tells what counts."""
        if self.counting is not None:
            return tuple(self.counting.read(output).shape)
        return tuple(tensors_of(output)[0].shape)

    def count(self, shape: tuple[int, ...]) -> None:
        """Count the terms of each micro-batch, and of the whole batch.

        ``terms`` are this rank's, micro-batch by micro-batch; ``total`` is all ranks' sum; ``divisors`` are what the
        loss divides each sum of terms by.

        Args:
            shape: of z on a micro-batch.

        Raises:
            ValueError: no label counts.
        """
        law = self.counting
        if law is None:
            self.terms = [max(self.examples, 1) / self.share] * self.share
            self.divisors = self.terms
        else:
            z = torch.zeros((), dtype=torch.float64, device="cpu").expand(shape)
            counts = [
                (law.terms(z, labels), law.divisor(z, labels))
                for labels in (law.read_labels(self.part(index)[1]) for index in range(self.share))
            ]
            self.terms = torch.stack([terms for terms, _ in counts]).tolist()
            self.divisors = torch.stack([divisor for _, divisor in counts]).tolist()

    def scales(self, *, sampled: bool) -> list[float]:
        """What makes a micro-batch's mean (or loss, with labels as given) its probe: S_j k/n."""
        each = self.terms if sampled else self.divisors
        probes = self.share * self.ranks.world_size
        return [
            own * probes / self.total if terms else 0.0 for own, terms in zip(each, self.terms, strict=True)
        ]

    def gradients(self, probe_vector: str, uniforms: Callable[[tuple[int, ...]], Tensor]) -> Vector:
        """This rank's probes, each the gradient of the mean loss as its micro-batch tells it.

        Args:
            probe_vector: against labels "sampled" from the model, or, "gradient", against the targets.
            uniforms: what gives uniforms of a shape.

        Returns:
            Probes stacked along a first axis, by parameter name. A single probe, and sharded ones, are those of the
            whole batch. ``total`` is then the number of terms of the whole batch.

        Raises:
            ValueError: the batch does not fit, no label counts, or there are gradients with NaN or Inf; on all ranks.
        """
        sampled = probe_vector == "sampled"
        if self.sharded:
            V = self._sharded_gradients(uniforms, sampled=sampled)
        else:
            with self.ranks.agreed("the probe batch", self.device):
                self.hold()
                self.count(self.output_shape())
                V = self._means(uniforms, sampled=sampled)
            self._add_up()
            V = scaled(V, self.scales(sampled=sampled))
        with self.ranks.agreed("the probe batch", self.device):
            check_finite(V)
        return self.ranks.mean(V) if self.probes == 1 and not self.sharded else V

    def _add_up(self) -> None:
        self.total = self.ranks.total(sum(self.terms), self.device)
        if not self.total:
            raise ValueError("no label of the probe batch counts: all are ignored; pass some that are not.")

    def _means(self, uniforms: Callable[[tuple[int, ...]], Tensor], *, sampled: bool) -> Vector:
        """Gradients of the mean of each micro-batch, or of the loss on it."""
        model, inputs, targets = self.model, self.inputs, self.targets
        known = self.findings.batching
        if not sampled:
            return batch_gradients(model, self.loss_fn, inputs, targets, probes=self.share, batching=known)
        assert self.likelihood is not None
        rows, *others = self.likelihood.uniforms_shape(self.output_shape())
        u = uniforms((rows * self.share, *others))
        return sampled_gradients(
            model, self.likelihood, inputs, targets, u, probes=self.share, batching=known
        )

    def _sharded_gradients(self, uniforms: Callable[[tuple[int, ...]], Tensor], *, sampled: bool) -> Vector:
        self._hold_sharded()

        def scales(output: Any) -> list[float]:
            with self.ranks.agreed("the probe batch", self.device):
                self.count(self.shape_of(output))
            self._add_up()
            return self.scales(sampled=sampled)

        assert self.likelihood is not None or not sampled
        law = self.likelihood if sampled and self.likelihood is not None else self.loss_fn
        return sharded_gradients(
            self.model, law, [self.part(index) for index in range(self.share)], uniforms, scales
        )

    def product(
        self, config: LLQRConfig, solver: InnerLoop, linearization: Linearization | None
    ) -> Callable[[Vector], Vector]:
        """The product v -> G v on the whole batch, the same on all ranks.

        Args:
            config: in which units G is: of the mean loss, or times the number of terms.
            solver: which G.
            linearization: at this share of the batch; None where no label of it counts.

        Returns:
            A function of vectors of weights; parameters that a vector lacks do not move.
        """
        # On one rank the loss divides by a number of its own; the whole batch's mean divides by all terms.
        divisor = sum(self.terms)
        if self.counting is not None and self.counting.reduction != "mean":
            divisor = sum(self.divisors) if self.counting.reduction == "batchmean" else 1.0
        factor = divisor * self.ranks.world_size / self.total
        if config.reduction == "sum":
            factor *= self.total
        if linearization is None:
            return lambda v: self.ranks.mean({n: torch.zeros_like(part) for n, part in v.items()})
        if solver.divergence == "fisher":
            _ = linearization.likelihood  # held against the loss before the loop, in which nothing waits
        take = {
            "fisher": linearization.fisher,
            "gauss-newton": linearization.ggn,
            "newton": linearization.hessian,
        }[solver.divergence]
        still = {name: torch.zeros_like(g) for name, g in linearization.gradient().items()}

        def multiply(v: Vector) -> Vector:
            curved = take({**still, **v})
            return self.ranks.mean({name: factor * curved[name] for name in v})

        return multiply


def linearized(
    known: Linearization | None, batch: ProbeBatch, states: Mapping[str, StateCost]
) -> Linearization:
    """The model linearized on a probe batch: traced once for its shapes, evaluated anew at every refit.

    Args:
        known: the linearization of the last refit, if there is one.
        batch: the probe batch.
        states: costs on intermediate layers' states.

    Returns:
        ``known``, moved to the batch and the present weights, or a new one.
    """
    trainable = tuple(name for name, p in batch.model.named_parameters() if p.requires_grad)
    if known is not None and known.names == trainable:
        return known.relinearize(batch.inputs, batch.targets)
    return Linearization(
        batch.model,
        batch.loss_fn,
        batch.inputs,
        batch.targets,
        likelihood=batch.likelihood,
        states=states,
        state_reduction="sum" if batch.counting is not None and batch.counting.reduction == "sum" else "mean",
    )


@contextmanager
def fits(inputs: Any, targets: Any) -> Iterator[None]:
    """Say that inputs do not fit the model where its evaluation fails."""
    try:
        yield
    except (RuntimeError, TypeError, IndexError) as error:
        raise_out_of_memory(error)
        raise ValueError(
            f"inputs do not fit the model: {error} {sizes(tensors_of((inputs, targets)))}"
        ) from error
