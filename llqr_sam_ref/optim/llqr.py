"""LLQR, one class whole (hence the length): learn an inverse preconditioner U of the LQR problem, and step by it.

    opt = LLQR(torch.optim.SGD(model.parameters(), lr=0.004, momentum=0.9, nesterov=True), model)
    for x, y in loader:
        opt.zero_grad(); loss_fn(model(x), y).backward()
        opt.step(); scheduler.step()              # let the learning rate decay to 0

U learns from the gradients that the steps make. ``SAM(LLQR(...))`` perturbs by rho U g/|U g|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from llqr_sam_ref.config import InnerLoop, LLQRConfig
from llqr_sam_ref.optim._model import CopiedLoss, full_precision, undisturbed, unwrapped
from llqr_sam_ref.optim._wrapper import OptimizerWrapper
from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.distributed.shards import is_sharded, local_tensors, match_sharding, on, widen
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn, infer_likelihood
from llqr_sam_ref.optim.metric import Preconditioned
from llqr_sam_ref.optim.preconditioner import momentum
from llqr_sam_ref.optim.preconditioner.blocks import Block, check_learnable, make_blocks
from llqr_sam_ref.optim.preconditioner.checkpoint import check_complete, check_entries, check_groups
from llqr_sam_ref.optim.preconditioner.refit import learn
from llqr_sam_ref.optim.preconditioner.report import BlockReport, quadratic_gain, report_blocks
from llqr_sam_ref.optim.preconditioner.stack import Preconditioner, make_stacks
from llqr_sam_ref.optim.probes.batch import Findings, ProbeBatch, StateCost, draw_uniforms, linearized
from llqr_sam_ref.optim.step_rule import apply_rule, check_update, move, other_gradients, update_from_zero

Probe = Callable[[], tuple[Any, Any]]


class LLQR(OptimizerWrapper):
    """Layerwise LQR preconditioning around a base optimizer.

        if a refit is due:       U <- refit at w, or by g      ClosedForm, or InnerLoop and its average
        with SAM around it:      g <- gradient at w + rho U g/|U g|
        acts_on "update":        M <- base(g),  S <- rule(U M, M),  w <- w - eta (S + wd w)
        acts_on "gradient":      S <- rule(U g, g),                 w <- w - eta base(S + wd w)

    with base(v) the base's update from the gradient v, eta its ``lr`` and wd its ``weight_decay``. U is learned
    from second-order information at every refit, and multiplies the base's update or its gradient. Until the first
    refit U = I.

    By default (``probe_vector="step"``) U learns from the gradient that is there: in ``step()``, under SAM from the
    first pass's at the entry of ``perturbed()``, divided by the loss scale. There is no refit to call and no probe
    batch; ``loss_fn`` is not needed. Accumulated, clipped and, under DDP, averaged gradients are taken as they are;
    where this process cannot see that they have been averaged (``no_sync()``, or a model that is not passed in its
    DDP wrapper) they are averaged for U. A gradient that is not finite teaches nothing.

    With probe batches, ``probe`` or the training loop provides them: the loop refits when ``refit_due`` says so; an
    overdue refit only waits. A ``probe`` and calls of ``refit`` work with probe_vector="step" too, and then teach U by
    the gradient of the loss on that batch.

    Groups may set ``structure`` ("identity" learns nothing for their parameters, which then get a root mean square
    of their own, and is required for parameters that the model does not own); ``lr`` and ``weight_decay`` are the
    base's. With acts_on="update" the base is asked for its update with lr 1 and no decay, so decay is decoupled
    from U and from the step rule, w <- w - lr (S + wd w), and hooks on the base see weights of zero. The momentum of
    torch's SGD lies in the bases of U, in checkpoints too, and hooks see gradients there; ``forget()`` brings it back.

    Cost beyond the base, by default: one copy of the weights in ``step()``; on each side with a basis two products
    with it (three under SAM, or over another base than torch's SGD) and one Gram matrix, and a QR factorization
    every ``basis_every`` steps; memory 2 (m^2 + n^2 + m n) for a weight of m by n, 2 m n with structure="diagonal".
    Probe batches cost about a gradient per refit. The inner loop remembers no curvature: half of that.

    Under DDP every rank passes its share of a probe batch: ``probes`` micro-batches partition the whole, and U
    comes out bitwise the same everywhere; every rank renews its share of the bases, and sends them. Under FSDP2 (and
    tensor parallelism) a side that is cut between ranks has bases in blocks that no cut goes through, and what
    travels are the Gram matrices of the other side; "ekfac" and "diagonal" can be cut.

    Args:
        base: takes the step: any first-order torch optimizer; with acts_on="update" one whose update does not depend
            on the weights.
        model: the module that is trained, as it is or wrapped (DDP, torch.compile).
        loss_fn: called as loss_fn(model(inputs), targets); None if U learns from the steps' own gradients.
        config: what LLQR does; None is the default ``LLQRConfig()``.
        probe: returns a probe batch (inputs, targets); then due refits happen by themselves, at the first of
            ``perturbed()`` and ``step()``. What random numbers it draws is its own business. Copies leave it behind.
        likelihood: of the labels, where it cannot be inferred from ``loss_fn``.
        states: costs on intermediate layers' states by module name (with an ``InnerLoop``): a number s for s I, or a
            positive semidefinite matrix.
        process_group: whose ranks share the probe batch; None for all. Copies leave it behind.

    Raises:
        ValueError: an argument is not usable, a parameter belongs to no model, or a combination has no meaning.

    Source: LLQR, arXiv 2605.04230; LLQR+SAM, arXiv 2605.16134; the book, chapters 16 to 18 and 21.
    """

    PREFIX = "llqr_"
    TRANSIENT = ("probe", "process_group", "_ddp")

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        loss_fn: LossFn | None = None,
        config: LLQRConfig | None = None,
        *,
        probe: Probe | None = None,
        likelihood: Likelihood | None = None,
        states: Mapping[str, StateCost] | None = None,
        process_group: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"model is a {type(model).__name__}, not a module; pass the module whose parameters base holds."
            )
        if isinstance(base, OptimizerWrapper):
            name = type(base).__name__
            raise ValueError(f"base is a {name}; put LLQR inside: {name}(LLQR(optimizer, model, loss_fn)).")
        self._config = LLQRConfig() if config is None else _checked_config(config)
        if loss_fn is None and (probe is not None or self._config.probe_vector != "step"):
            raise ValueError("loss_fn=None, but probe batches need it; pass loss_fn(outputs, targets).")
        if loss_fn is not None and not callable(loss_fn):
            raise ValueError(f"loss_fn={loss_fn!r} cannot be called; pass loss_fn(outputs, targets).")
        if probe is not None and not callable(probe):
            raise ValueError(
                f"probe is a {type(probe).__name__}; pass a function that returns (inputs, targets)."
            )
        if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
            raise ValueError(
                "model has lazy layers without weights yet; call it on a batch before building LLQR."
            )
        self.model = unwrapped(model)
        self._ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
        self.loss_fn = loss_fn
        self.probe = probe
        self.process_group = process_group
        self.states = dict(states or {})
        self.likelihood = likelihood
        if self.states and self._config.closed:
            raise ValueError("states needs solver=InnerLoop(...); the closed form sees gradients only.")
        if likelihood is None and self._needs_likelihood:
            self.likelihood = infer_likelihood(self._loss_fn)
        if self._config.acts_on == "update" and isinstance(base, Optimizer):
            check_update(base)
        self._expected: dict[Tensor, dict[str, tuple[int, ...]]] = {}
        super().__init__(base, structure=None, llqr_steps=0, llqr_refits=0, llqr_last_refit=-1, llqr_blocks=0)
        for group in self.param_groups:  # a base that was wrapped before begins anew
            group.update(llqr_steps=0, llqr_refits=0, llqr_last_refit=-1)

    # What it is told.

    @property
    def config(self) -> LLQRConfig:
        """What LLQR does; assign ``dataclasses.replace(opt.config, every=100)`` between steps to schedule it.

        What decides which tensors there are cannot change: structure, the solver's type, positive, max_side, wide.
        """
        return self._config

    @config.setter
    def config(self, config: LLQRConfig) -> None:
        config = _checked_config(config)
        fixed = _fixed(config)
        for name, now in _fixed(self._config).items():
            then = fixed[name]
            if now != then:
                raise ValueError(
                    f"{name}={then!r} cannot replace {now!r} in a running LLQR; build a new one."
                )
        before, self._config = self._config, config
        try:
            if self.likelihood is None and self._needs_likelihood:
                self.likelihood = infer_likelihood(self._loss_fn)
            if config.acts_on == "update" != before.acts_on:
                check_update(self.base)
        except ValueError:
            self._config = before
            raise

    @property
    def _loss_fn(self) -> LossFn:
        """The loss, where a probe batch is to be evaluated."""
        if self.loss_fn is None:
            raise ValueError("loss_fn=None, but probe batches need it; pass LLQR(base, model, loss_fn).")
        return self.loss_fn

    @property
    def _free(self) -> bool:
        """Whether U learns from the gradients that steps make."""
        return self._config.probe_vector == "step" and self.probe is None

    @property
    def _needs_likelihood(self) -> bool:
        solver = self._config.solver
        fisher = isinstance(solver, InnerLoop) and solver.divergence == "fisher"
        return fisher or self._config.probe_vector == "sampled"

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Check a group's structure, that the model owns its parameters, and whatever the base class checks.

        Args:
            group: the group, all defaults filled in.

        Raises:
            ValueError: an unknown structure, a parameter of no model, or one that is complex, sparse or sharded.
        """
        super().check_group(group)
        check_learnable(group, self.model.parameters(), self._config)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options that it does not set take their defaults.

        Args:
            param_group: ``{"params": ..., "lr": ..., "structure": ...}`` with any option of the base.

        Raises:
            ValueError: an option has a value that is not allowed, or a parameter is unknown; nothing is added.
        """
        if isinstance(param_group.get("params"), Iterator):
            param_group = {**param_group, "params": list(param_group["params"])}
        super().add_param_group(param_group)
        first = self.param_groups[0]
        counters = {name: first[name] for name in ("llqr_steps", "llqr_refits", "llqr_last_refit")}
        self.param_groups[-1].update(counters)
        self.progress.cache.pop("preconditioner", None)

    # Refitting.

    @property
    def refit_due(self) -> bool:
        """Whether no refit has happened yet in the current period of ``every`` steps, or layers wait for their first.

        True before steps 0, every, 2 every, ... and as long as the refit is overdue; True also when layers were thawed
        or added since the last one. False while all learning rates are 0, when nothing is learned and nothing counted,
        and where U learns from the steps' own gradients.
        """
        return not self._free and self._overdue

    @property
    def _overdue(self) -> bool:
        group = self.param_groups[0]
        every = self._config.every
        overdue = int(group["llqr_steps"]) // every > int(group["llqr_last_refit"]) // every
        changed = int(group["llqr_refits"]) > 0 and self._preconditioner().waiting
        return (overdue or changed) and not self.idle

    def refit(self, inputs: Any, targets: Any = None, *, uniforms: Tensor | None = None) -> None:
        """Learn U anew at the present weights.

        The model is evaluated in evaluation mode, outside of autocast unless its forward enters that by itself; its
        flags, buffers and gradients and the global random stream stay as they are.

        Args:
            inputs: the probe batch, this rank's share of it: a tensor, a tuple of positional or a dict of keyword
                arguments of the model.
            targets: its labels; with probe_vector="sampled" only ``ignore_index`` is looked at, and None will do.
            uniforms: numbers in [0, 1) to sample the labels of this rank's share from, of the likelihood's shape;
                None draws them from (config.seed, number of the refit).

        Raises:
            RuntimeError: called inside ``perturbed()``, or the model has lost all of the parameters.
            ValueError: a batch that does not fit, is not finite, or is not divided by the micro-batches.

        Source: the book, chapters 16 and 18.
        """
        if self.inside_perturbation:
            raise RuntimeError(
                "refit() inside perturbed(): the weights are at w + epsilon; leave the block first."
            )
        config, ranks = self._config, Ranks.of(self.process_group)
        names, cached = self._names(), self.progress.cache.get("preconditioner")
        if cached is not None and any(names.get(p) != name for p, name in cached[1].names.items()):
            del self.progress.cache[
                "preconditioner"
            ]  # the same weights under other names: parametrized, moved, gone
        number = int(self.param_groups[0]["llqr_refits"])

        def drawn(shape: tuple[int, ...]) -> Tensor:
            if uniforms is None:
                return draw_uniforms(config.seed, number, shape, ranks)
            if tuple(uniforms.shape) != shape:
                raise ValueError(f"uniforms has shape {tuple(uniforms.shape)}; this batch needs {shape}.")
            return uniforms

        free = config.probe_vector == "step"  # then U is in units of the squares of a mean gradient
        with self._evaluated(inputs, targets, ranks, config.probes) as batch:
            V = batch.gradients("gradient" if free else config.probe_vector, drawn)
            if free and not batch.sharded:
                V = dict(zip(V, ranks.mean(list(V.values())), strict=True))
            others = Ranks() if batch.sharded or free else ranks
            owners = Ranks() if batch.sharded else ranks
            terms = 1.0 if free else batch.total
            self._learn(self._preconditioner(), V, terms, self._curvature(batch), others, owners)

    def _learn(
        self,
        learned: Preconditioner,
        V: Vector,
        terms: float,
        curvature: AbstractContextManager[Callable[[Vector], Vector]] | None,
        ranks: Ranks,
        owners: Ranks,
        *,
        keep: bool = False,
    ) -> None:
        stacks = [stack for stack in learned.stacks if stack.trainable]
        with full_precision(stack.device for stack in stacks):
            riding = partial(momentum.in_bases_of, base=self.base)
            learn(stacks, V, terms, curvature, self._config, ranks, owners, self.own, riding, keep)
        for group in self.param_groups:
            group["llqr_refits"] = int(group["llqr_refits"]) + 1
            group["llqr_last_refit"] = int(group["llqr_steps"])

    @contextmanager
    def _evaluated(self, inputs: Any, targets: Any, ranks: Ranks, probes: int) -> Iterator[ProbeBatch]:
        sharded = any(is_sharded(p) for p in self.model.parameters())
        loss, likelihood = self._loss_fn, self.likelihood
        known = self.progress.cache.get("findings")
        if known is None or known[0] is not likelihood or known[1] is not loss:
            known = self.progress.cache["findings"] = likelihood, loss, Findings()
            self.progress.cache.pop("linearization", None)
        with undisturbed(self.model):
            yield ProbeBatch(self.model, loss, likelihood, inputs, targets, probes, ranks, sharded, known[2])

    @contextmanager
    def _linearized(self, batch: ProbeBatch) -> Iterator[Linearization]:
        """The model linearized on a probe batch; what it holds of that is released at the end."""
        here = linearized(self.progress.cache.get("linearization"), batch, self.states)
        self.progress.cache["linearization"] = here
        try:
            yield here
        finally:
            here.release()

    @contextmanager
    def _curvature(self, batch: ProbeBatch) -> Iterator[Callable[[Vector], Vector]]:
        """The product v -> G v of the inner loop."""
        solver = self._config.solver
        assert isinstance(solver, InnerLoop)
        with ExitStack() as stack:
            with batch.ranks.agreed("the set-up on the probe batch", batch.device):
                here = stack.enter_context(self._linearized(batch)) if sum(batch.terms) else None
                product = batch.product(self._config, solver, here)
            yield product

    def quadratic_gain(self, inputs: Any, targets: Any = None) -> float:
        """How much better U g is than g as a step on a held-out batch, by the quadratic model there.

        (g^T U g)^2/(U g)^T C U g over (g^T g)^2/g^T C g, on the learned parameters: the ratio of the decreases that
        the best step lengths along U g and g give. C is the Fisher matrix (the Gauss-Newton matrix where the
        likelihood is not known; with the costs on states). Above 1, U has learned something that holds beyond its
        probes.

        Args:
            inputs: the batch, of one rank.
            targets: its labels.

        Returns:
            The ratio.

        Raises:
            RuntimeError: the model's parameters are sharded.
            ValueError: a batch that does not fit, or is not finite.

        Source: the book, chapter 18.
        """
        if any(is_sharded(p) for p in self.model.parameters()):
            raise RuntimeError(
                "quadratic_gain() needs whole parameters, and the model's are sharded; load a full state dict into a "
                "model that is not, and ask there."
            )
        learned = self._preconditioner()
        with self._evaluated(inputs, targets, Ranks(), probes=1) as batch, self._linearized(batch) as here:
            return quadratic_gain(learned, here, fisher=self.likelihood is not None)

    def report(self) -> list[BlockReport]:
        """What U does to the gradients that are there, block by block; waits for the device.

        Returns:
            For every block its name, |U - I|, g^T U g, |U g|/|g|, the cosine of the angle between U g and g, and how
            often the last inner loop clipped each stored array.
        """
        learned = self._preconditioner()
        present = [p for p in learned.names if p.grad is not None]
        with torch.no_grad():
            g = dict(zip((learned.names[p] for p in present), self._gradients(present), strict=True))
            return report_blocks(learned, g)

    def _learn_from_step(self, *, keep: bool = False) -> bool:
        """Refit by the gradients that are there, if that is due and is how U learns.

        Args:
            keep: whether the stacks should keep them in the bases.

        Returns:
            Whether they have.
        """
        if not self._free or not self._overdue:
            return False
        with torch.no_grad():
            learned = self._preconditioner()
            present = [p for p in learned.names if p.grad is not None]
            if not present:
                return False
            g = self._gradients(present)
            scale = self.progress.loss_scale
            if isinstance(scale, Tensor) or scale != 1.0:
                g, keep = [x / on(scale, x) for x in g], False
            owners = Ranks() if any(map(is_sharded, present)) else Ranks.of(self.process_group)
            if not (self._ddp and self._ddp.require_forward_param_sync):
                g = owners.mean(g)
                keep &= owners.world_size == 1
            V = {learned.names[p]: x.unsqueeze(0) for p, x in zip(present, g, strict=True)}
            self._learn(learned, V, 1.0, None, Ranks(), owners, keep=keep)
        return keep

    def _refit_if_due(self) -> None:
        if self.probe is None or not self.refit_due:
            return
        batch = self.probe()
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(
                f"probe returned {type(batch).__name__}; it must return a pair (inputs, targets), with None for "
                "targets if there are none."
            )
        self.refit(*batch)

    # Stepping.

    def geometry(self) -> Preconditioned:
        """U^{-1}, after a refit if one is due and there is a ``probe`` to do it with.

        Returns:
            The metric that a SAM around this optimizer perturbs by.
        """
        self._refit_if_due()
        self._learn_from_step()
        return Preconditioned(self._preconditioner().apply)

    def preconditioned_gradients(self) -> list[Tensor | None]:
        """U g with the gradients that are there, without momentum or step rule.

        Returns:
            One tensor for each parameter in the order of ``param_groups`` (this rank's shard of a sharded one), None
            where there is no gradient.

        Source: the book, (17.1) to (17.5).
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        present = [p for p in parameters if p.grad is not None]
        with torch.no_grad():
            found = iter(self._preconditioner().apply(self._gradients(present), present))
        return [None if p.grad is None else next(found) for p in parameters]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients that are there, or with those that a closure makes.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.

        Returns:
            The closure's loss; None without a closure.

        Raises:
            RuntimeError: called inside ``perturbed()`` or its own closure, or with a closure by a GradScaler, which
                unscales before the closure has made gradients; a gradient is sparse; the model has lost all of the
                parameters.
            ValueError: a learning rate or weight decay is negative or not finite.

        Source: the book, (21.1), (21.2).
        """
        self.check_step(closure, "call scaler.scale(loss).backward() and then scaler.step(opt)")
        loss = None
        if closure is not None:
            self._refit_if_due()
            with torch.enable_grad(), self.evaluating():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        counts = bool(parameters) and not self.idle
        seen = False
        if counts:
            self._refit_if_due()
            seen = self._learn_from_step(keep=self._riding)
        elif not parameters:
            self._blocks()  # no gradient will ever come where the model has lost them all: this says so
        with torch.no_grad():
            learned = self._preconditioner()
            momentum.settle(learned.stacks, self.base, self.own, riding=self._riding)
            if self._config.acts_on == "update":
                self._step_by_update(learned, parameters, seen)
            else:
                self._step_by_gradient(learned, parameters)
        if counts:
            steps = int(self.param_groups[0]["llqr_steps"]) + 1
            for group in self.param_groups:
                group["llqr_steps"] = steps
        return loss

    def _step_by_gradient(self, learned: Preconditioner, parameters: list[Tensor]) -> None:
        """base.step() with rule(U g, g) for the gradients."""
        with other_gradients(parameters, self._steps(learned, self._gradients(parameters), parameters)):
            self.base.step()

    def _step_by_update(self, learned: Preconditioner, parameters: list[Tensor], seen: bool) -> None:
        """The step w <- w - lr (rule(U M, M) + wd w), with M read off a step of the base from zero.

        Args:
            learned: U.
            parameters: those that have gradients.
            seen: whether the stacks have these gradients in the bases.
        """
        self._check_dense(parameters)
        weights = local_tensors(parameters)
        with ExitStack() as borrowed:
            if self._riding:
                g = dict(zip(parameters, self._gradients(parameters), strict=True))
                given = momentum.gradients(learned.stacks, g, learned.names, seen=seen)
                borrowed.enter_context(other_gradients(parameters, given))
            v = borrowed.enter_context(update_from_zero(self.base, parameters))  # -M, in the memory of w
            moves = self._steps(learned, v, parameters, riding=self._riding)
            moves = [S.clone() if S is x else S for S, x in zip(moves, v, strict=True)]
        steps = iter(zip(weights, moves, strict=True))
        for group in self.param_groups:
            here = list(islice(steps, sum(p.grad is not None for p in group["params"])))
            move([w for w, _ in here], [S for _, S in here], group["lr"], group.get("weight_decay", 0.0))

    @property
    def _riding(self) -> bool:
        """Whether the base's momentum lies in the bases of U."""
        return self._config.closed and self._config.acts_on == "update" and momentum.rides(self.base)

    def _steps(
        self, learned: Preconditioner, v: list[Tensor], parameters: list[Tensor], *, riding: bool = False
    ) -> list[Tensor]:
        """rule(U v, v)."""
        S = learned.apply(v, parameters, riding=riding)
        fitted = learned.learned()
        return apply_rule(self._config.step_rule, S, v, parameters, [p in fitted for p in parameters])

    def _gradients(self, parameters: list[Tensor]) -> list[Tensor]:
        """Local gradients of at least float32."""
        self._check_dense(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        return widen(local_tensors(match_sharding(gradients, parameters)))

    def _check_dense(self, parameters: list[Tensor]) -> None:
        for index, parameter in enumerate(parameters):
            if parameter.grad is None or parameter.grad.layout is not torch.strided:
                raise RuntimeError(
                    f"the gradient of parameter {index} is sparse; LLQR needs dense ones: pass sparse=False to the "
                    "embedding."
                )

    # What it holds.

    def _preconditioner(self) -> Preconditioner:
        """U, with all its tensors allocated: kept until a parameter comes, goes, changes or is frozen."""
        signature = (id(self.own), *self._kinds())
        cached: tuple[Any, Preconditioner] | None = self.progress.cache.get("preconditioner")
        if cached is None or cached[0] != signature:
            names = self._names()
            blocks = self._blocks()
            if cached is not None:
                momentum.leave(cached[1], blocks, self.base, self.own)
            stacks = make_stacks(blocks, self.own)
            for parameter in [p for p in self.own if p not in names]:  # of a head that was replaced
                del self.own[parameter]
            cached = signature, Preconditioner(stacks, names)
            self.progress.cache["preconditioner"] = cached
        return cached[1]

    def _kinds(self) -> Iterator[Any]:
        for group in self.param_groups:
            yield group["structure"]
            for parameter in group["params"]:
                yield id(parameter), parameter.shape, parameter.dtype, parameter.device
                yield parameter.requires_grad, parameter.grad is not None and not parameter.requires_grad

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}

    def _blocks(self) -> list[Block]:
        return make_blocks(self.param_groups, self._names(), self._config)

    # Saving and copying.

    def state_dict(self) -> dict[str, Any]:
        """The base's state with U merged in, parameter by parameter, and how many parameters it was learned on.

        Returns:
            ``{"state": {index: {...}}, "param_groups": [...]}``, tensors not copied.
        """
        for group in self.param_groups:
            group["llqr_blocks"] = sum(p in self.own for p in group["params"])
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned; a bare base's dictionary is accepted too, and U begins at I.

        Args:
            state_dict: from an LLQR of the same structure and solver on the same model.

        Raises:
            ValueError: it is not a state dict, belongs to another structure, or lacks a part; nothing is loaded.
        """
        groups = state_dict.get("param_groups", ())
        check_groups(groups, self.param_groups)
        self._expected = {block.head: block.saved_shapes() for block in self._blocks()}
        try:
            if any(int(group.get("llqr_refits", 0)) for group in groups):
                keys = [key for group in groups for key in group["params"]]
                parameters = [p for group in self.param_groups for p in group["params"]]
                entries = [
                    (key, p, self._mine(state_dict, key)) for key, p in zip(keys, parameters, strict=False)
                ]
                check_complete(groups, entries, self._expected, self._config)
            super().load_state_dict(state_dict)
        finally:
            self._expected = {}
        self.progress.cache.pop("preconditioner", None)

    def _mine(self, state_dict: Mapping[str, Any], key: Any) -> dict[str, Any]:
        entries = state_dict.get("state", {}).get(key, {})
        return {name.removeprefix(self.PREFIX): entries[name] for name in entries if self._is_mine(name)}

    def forget(self) -> None:
        """Forget U and what it was learned from: U = I, and a refit is due."""
        if self.own:
            momentum.settle(self._preconditioner().stacks, self.base, self.own, riding=False)
        super().forget()
        for group in self.param_groups:
            group.update(llqr_refits=0, llqr_last_refit=-1)

    def check_own(self, parameter: Tensor, entries: Mapping[str, Any]) -> None:
        """Check the tensors that a checkpoint holds for a parameter.

        Args:
            parameter: the parameter that they belong to.
            entries: names, without prefix, and tensors; or nothing.

        Raises:
            ValueError: the checkpoint is of another structure, solver or model.
        """
        check_entries(parameter, entries, self._expected, self._config)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but hooks, caches and the probe callable."""
        return {**super().__getstate__(), "loss_fn": CopiedLoss(self.loss_fn)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "loss_fn": state["loss_fn"].loss_fn})


def _fixed(config: LLQRConfig) -> dict[str, Any]:
    """What decides which tensors there are."""
    return {
        "solver": type(config.solver).__name__,
        "structure": config.structure,
        "positive": not isinstance(config.solver, InnerLoop) or config.solver.positive,
        "max_side": config.max_side,
        "wide": config.wide,
    }


def _checked_config(config: object) -> LLQRConfig:
    if not isinstance(config, LLQRConfig):
        raise ValueError(
            f"config={config!r} is not an LLQRConfig; pass LLQRConfig(...) or LLQRConfig.published(...)."
        )
    return config
