"""What a refit asks of a probe batch: gradients of micro-batches, and curvature products, on one rank or many."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from llqr_sam_ref.config import InnerLoop, LLQRConfig
from llqr_sam_ref.optim.curvature.functional import PureModule, Vector, isolated
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn
from llqr_sam_ref.optim.probes.gradients import batch_gradients, sampled_gradients
from llqr_sam_ref.optim.probes.sharded import sharded_gradients

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
    generator = torch.Generator().manual_seed(random.Random(f"{seed}, {refit}").getrandbits(63))
    rows = shape[0]
    drawn = torch.rand((rows * ranks.world_size, *shape[1:]), generator=generator, dtype=torch.float64)
    return drawn[rows * ranks.rank : rows * (ranks.rank + 1)]


@dataclass
class ProbeBatch:
    """A probe batch at the present weights; with many ranks, this one's share of it.

    Args:
        model: in evaluation mode.
        loss_fn: called as loss_fn(outputs, targets).
        likelihood: of the labels, if it is known.
        inputs: a tensor, a tuple of positional or a mapping of keyword arguments of the model.
        targets: labels, or None.
        probes: k, micro-batches of the whole batch.
        ranks: those that share it.
        sharded: whether gradients come out sharded, and thereby summed over the ranks.

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

    def __post_init__(self) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(self.inputs) if isinstance(leaf, Tensor) and leaf.ndim]
        self.examples = len(tensors[0]) if tensors else 0
        device = next(self.model.parameters()).device
        if self.ranks.world_size > 1:
            self.ranks.check_equal("the number of probe examples", self.examples, device)
        self.share = self.probes
        if self.ranks.world_size > 1 and self.probes > 1 and not self.sharded:
            self.share, left = divmod(self.probes, self.ranks.world_size)
            if left:
                raise ValueError(
                    f"probes={self.probes} micro-batches cannot be shared at world size {self.ranks.world_size}; "
                    "choose a multiple, or 1."
                )
        if self.examples == 0 or self.examples % self.share:
            raise ValueError(
                f"inputs holds {self.examples} examples, which {self.share} micro-batches (probes={self.probes}) do "
                "not divide; pass a multiple."
            )

    @property
    def own_reduction(self) -> str:
        """Whether the loss is a mean or a sum: as its likelihood has it; a mean where that is not known."""
        return "mean" if self.likelihood is None else self.likelihood.reduction

    def output_shape(self) -> tuple[int, ...]:
        """The shape of the model's outputs on this share, found on two examples.

        Returns:
            The shape, examples first.

        Raises:
            ValueError: the model cannot be evaluated on the batch.
        """
        few = min(2, self.examples)
        pure = PureModule(self.model, torch.sum)
        try:
            with torch.no_grad(), isolated(pure.device):
                point = pure.at(
                    pytree.tree_map(lambda leaf: _first(leaf, few, self.examples), self.inputs), None
                )
                shape = pure.forward(point.params, point.rest, point.layout)[0].shape
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"inputs do not fit the model: {error}") from error
        return (shape[0] * self.examples // few, *shape[1:])

    def terms(self, output_shape: tuple[int, ...]) -> float:
        """The number of terms that this share's loss adds up; its examples where the likelihood is not known."""
        if self.likelihood is None:
            return float(self.examples)
        outputs = torch.zeros((), dtype=torch.float64).expand(output_shape)
        return float(self.likelihood.terms(outputs, self.targets))

    def gradients(
        self, probe_vector: str, uniforms: Callable[[tuple[int, ...]], Tensor]
    ) -> tuple[Vector, float]:
        """This rank's probes: gradients of the mean loss on its micro-batches.

        Args:
            probe_vector: against labels "sampled" from the model, or, "gradient", against the targets.
            uniforms: what gives uniforms of a shape.

        Returns:
            Probes stacked along a first axis, by parameter name, and the number of terms in this share. A single
            probe, and sharded ones, are those of the whole batch.

        Raises:
            ValueError: the batch does not fit, or gives gradients with NaN or Inf.
        """
        likelihood = self.likelihood if probe_vector == "sampled" else None
        if self.sharded:
            law = self.loss_fn if likelihood is None else likelihood
            V, shape = sharded_gradients(
                self.model, law, self.inputs, self.targets, uniforms, probes=self.share
            )
        elif likelihood is not None:
            shape = self.output_shape()
            u = uniforms(likelihood.uniforms_shape(shape))
            V = sampled_gradients(self.model, likelihood, self.inputs, self.targets, u, probes=self.share)
        else:
            shape = self.output_shape()
            V = batch_gradients(self.model, self.loss_fn, self.inputs, self.targets, probes=self.share)
        terms = self.terms(shape)
        if likelihood is None and self.own_reduction == "sum":
            V = {name: tensor * (self.share / terms) for name, tensor in V.items()}
        if self.probes == 1 and not self.sharded:
            V = self.ranks.mean(V)
        finite = [tensor.isfinite().all() for tensor in V.values()]
        if not bool(torch.stack([f.to(finite[0].device) for f in finite]).all()):
            name = next(name for name, good in zip(V, finite, strict=True) if not good)
            raise ValueError(
                f"the probe batch gives a gradient with NaN or Inf in {name!r}; check its inputs, and lower the "
                "learning rate if the weights have diverged."
            )
        return V, terms

    def product(
        self, config: LLQRConfig, solver: InnerLoop, linearization: Linearization, terms: float
    ) -> Callable[[Vector], Vector]:
        """The product v -> G v on the whole batch, the same on all ranks.

        Args:
            config: in which units G is: of the mean loss, or times the number of terms.
            solver: which G.
            linearization: at this share of the batch.
            terms: in this share.

        Returns:
            A function of vectors of weights; parameters that a vector lacks do not move.
        """
        take = {
            "fisher": linearization.fisher,
            "gauss-newton": linearization.ggn,
            "newton": linearization.hessian,
        }
        divisor = terms if self.own_reduction == "sum" else 1.0
        factor = (terms * self.ranks.world_size if config.reduction == "sum" else 1.0) / divisor
        still = {name: torch.zeros_like(g) for name, g in linearization.gradient().items()}

        def multiply(v: Vector) -> Vector:
            curved = take[solver.divergence]({**still, **v})
            return {name: factor * part for name, part in self.ranks.mean({n: curved[n] for n in v}).items()}

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
        state_reduction=batch.own_reduction,
    )


def _first(leaf: Any, count: int, examples: int) -> Any:
    batched = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == examples
    return leaf[:count] if batched else leaf
