"""LLQR: learn an inverse preconditioner U of the layerwise LQR problem, and step by it.

    every K steps     refit U on a probe batch                       closed form, or inner loop and average
    every step        S = rule(U M, M),  w <- w - lr (S + wd w)      acts_on "update": M is the base's update
                      base.step() with rule(U g, g) for g            acts_on "gradient", the published order

    opt = LLQR(torch.optim.SGD(model.parameters(), lr=0.004, momentum=0.9, nesterov=True), model, loss_fn)
    for x, y in loader:
        if opt.refit_due:
            opt.refit(x_probe, y_probe)           # or LLQR(..., probe=callable): then step() does it
        opt.zero_grad(); loss_fn(model(x), y).backward()
        opt.step(); scheduler.step()              # let the learning rate decay to 0

``SAM(LLQR(...))`` perturbs by rho U g/|U g|.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llqr_sam_ref.config import CHOICES, LLQRConfig
from llqr_sam_ref.errors import unknown_name
from llqr_sam_ref.optim._amp import called_by_grad_scaler
from llqr_sam_ref.optim._random import random_state, set_random_state
from llqr_sam_ref.optim._wrapper import OptimizerWrapper
from llqr_sam_ref.optim.blocks import Block, matrix_shape
from llqr_sam_ref.optim.distributed import is_sharded, local_tensors, match_sharding
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn, infer_likelihood
from llqr_sam_ref.optim.linearize import Linearization
from llqr_sam_ref.optim.metric import Preconditioned, widen
from llqr_sam_ref.optim.probing import Cost, ProbeBatch, draw_uniforms, evaluation_mode, linearized
from llqr_sam_ref.optim.refit import refit_closed_form, refit_inner_loop
from llqr_sam_ref.optim.stacks import Part, Preconditioner, make_stacks, placed_as
from llqr_sam_ref.optim.step_rule import apply_rule, reads_weights
from llqr_sam_ref.optim.structure import make_structure
from llqr_sam_ref.optim.workers import Workers

FIXED = ("structure", "solver", "positive", "max_side")
TWO_SIDED = ("kronecker", "ekfac", "separable-ekfac")
Probe = Callable[[], tuple[Any, Any]]


class LLQR(OptimizerWrapper):
    """Layerwise LQR preconditioning around a base optimizer.

    U is learned from second-order information on a probe batch at every refit, and multiplies the base's update or
    its gradient. Until the first refit U = I. Without ``probe`` the training loop refits when ``refit_due`` says so;
    an overdue refit only waits.

    Groups may set ``structure`` ("identity" learns nothing for their parameters, which then get a root mean square
    of their own, and is required for parameters that the model does not own); ``lr`` and ``weight_decay`` are the
    base's. With acts_on="update" the base is asked for its update with lr 1 and no decay, so decay is decoupled
    from U and from the step rule, w <- w - lr (S + wd w), and hooks on the base see weights of zero.

    Cost beyond the base, by default: one copy of the weights in ``step()``, two products with each basis, and a
    refit of about one gradient every ``every`` steps; memory 2 (m^2 + n^2 + m n) for a weight of m by n.

    Under DDP every worker passes its share of the probe batch: ``probes`` micro-batches partition the whole, and U
    comes out bitwise the same everywhere. Under FSDP2 use structure="diagonal".

    Args:
        base: takes the step: any first-order torch optimizer; with acts_on="update" one whose update does not depend
            on the weights.
        model: the module that is trained, as it is or wrapped (DDP, torch.compile).
        loss_fn: called as loss_fn(model(inputs), targets).
        config: what LLQR does; None is the default ``LLQRConfig()``.
        probe: returns a probe batch (inputs, targets); then due refits happen by themselves, at the first of
            ``perturbed()`` and ``step()``. What random numbers it draws is its own business. Copies leave it behind.
        likelihood: of the labels, where it cannot be inferred from ``loss_fn``.
        states: costs on intermediate layers' states by module name (solver="inner-loop"): a number s for s I, or a
            positive semidefinite matrix.
        process_group: whose ranks share the probe batch; None for all. Copies leave it behind.

    Raises:
        ValueError: an argument is not usable, a parameter belongs to no model, or a combination has no meaning.

    Source: LLQR, arXiv 2605.04230; LLQR+SAM, arXiv 2605.16134; the book, chapters 16 to 18 and 21.
    """

    PREFIX = "llqr_"
    TRANSIENT = ("probe", "process_group", "_linearization", "_learned")

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        loss_fn: LossFn,
        config: LLQRConfig | None = None,
        *,
        probe: Probe | None = None,
        likelihood: Likelihood | None = None,
        states: Mapping[str, Cost] | None = None,
        process_group: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model={model!r} is not a module; pass the module whose parameters base holds.")
        if isinstance(base, OptimizerWrapper):
            name = type(base).__name__
            raise ValueError(f"base is a {name}; put LLQR inside: {name}(LLQR(optimizer, model, loss_fn)).")
        if not callable(loss_fn):
            raise ValueError(f"loss_fn={loss_fn!r} cannot be called; pass loss_fn(outputs, targets).")
        if probe is not None and not callable(probe):
            raise ValueError(f"probe={probe!r} cannot be called; pass a function that returns (inputs, targets).")
        self.model = unwrapped(model)
        self.loss_fn = loss_fn
        self.probe = probe
        self.process_group = process_group
        self.states = dict(states or {})
        self._config = LLQRConfig() if config is None else _checked_config(config)
        self.likelihood = likelihood
        if self.states and self._config.solver != "inner-loop":
            raise ValueError("states needs solver='inner-loop'; the closed form sees gradients only.")
        if likelihood is None and self._needs_likelihood:
            self.likelihood = infer_likelihood(loss_fn)
        self._linearization: Linearization | None = None
        self._learned: Preconditioner | None = None
        self._signature: tuple[Any, ...] = ()
        self._expected: dict[Tensor, dict[str, tuple[int, ...]]] = {}
        super().__init__(base, structure=None, llqr_steps=0, llqr_refits=0, llqr_last_refit=-1)
        for group in self.param_groups:  # a base that was wrapped before begins anew
            group.update(llqr_steps=0, llqr_refits=0, llqr_last_refit=-1)
        if self._config.acts_on == "update":
            self._check_base()

    # What it is told.

    @property
    def config(self) -> LLQRConfig:
        """What LLQR does; assign ``dataclasses.replace(opt.config, every=100)`` between steps to schedule it.

        What decides which tensors there are (structure, solver, positive, max_side) cannot change.
        """
        return self._config

    @config.setter
    def config(self, config: LLQRConfig) -> None:
        config = _checked_config(config)
        for name in FIXED:
            now, then = getattr(self._config, name), getattr(config, name)
            if now != then:
                raise ValueError(f"{name}={then!r} cannot replace {now!r} in a running LLQR; build a new one.")
        before, self._config = self._config, config
        try:
            if self.likelihood is None and self._needs_likelihood:
                self.likelihood = infer_likelihood(self.loss_fn)
            if config.acts_on == "update" != before.acts_on:
                self._check_base()
        except ValueError:
            self._config = before
            raise

    @property
    def _needs_likelihood(self) -> bool:
        fisher = self._config.solver == "inner-loop" and self._config.divergence == "fisher"
        return fisher or self._config.probe_vector == "sampled"

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Check a group's structure, that the model owns its parameters, and whatever the base class checks.

        Args:
            group: the group, all defaults filled in.

        Raises:
            ValueError: an unknown structure, a parameter of no model, or one that is complex, sparse or sharded.
        """
        super().check_group(group)
        structure = group["structure"]
        if structure not in {None, "identity", *CHOICES["structure"]}:
            raise ValueError(unknown_name("structure", structure, ("identity", *CHOICES["structure"])))
        kind = self._config.structure if structure is None else structure
        owned = {id(p) for p in self.model.parameters()}
        parameters = group.get("params", ())
        for index, entry in enumerate([parameters] if isinstance(parameters, Tensor) else list(parameters)):
            parameter = entry[1] if isinstance(entry, tuple) else entry
            if not isinstance(parameter, Tensor):
                continue  # numbers of parameters in a state dict; or nothing that the base will take
            if parameter.is_complex() or parameter.layout is not torch.strided:
                raise ValueError(f"parameter {index} is complex or sparse; LLQR needs dense real parameters.")
            if structure == "identity":
                continue
            if id(parameter) not in owned:
                raise ValueError(
                    f"parameter {index} of shape {tuple(parameter.shape)} does not belong to model; give its group "
                    "structure='identity', or pass the model that owns it."
                )
            closed = self._config.solver == "closed-form"
            if is_sharded(parameter) and (kind != "diagonal" or not closed):
                raise ValueError(
                    f"parameter {index} is sharded, and structure={kind!r} with solver={self._config.solver!r} needs "
                    "whole ones; use structure='diagonal' with solver='closed-form'."
                )

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
        self._learned = None

    def _check_base(self) -> None:
        name = type(self.base).__name__
        if any("lr" not in group for group in self.param_groups):
            raise ValueError(f"base={name} has no lr, which acts_on='update' needs; use acts_on='gradient'.")
        if reads_weights(self.base):
            raise ValueError(
                f"base={name} makes its update from the weights, which acts_on='update' sets aside; use "
                "acts_on='gradient' or another base."
            )

    # Refitting.

    @property
    def refit_due(self) -> bool:
        """Whether no refit has happened yet in the current period of ``every`` steps.

        True before steps 0, every, 2 every, ... and as long as the refit is overdue; False while all learning rates
        are 0, when nothing is learned and nothing counted.
        """
        group = self.param_groups[0]
        every = self._config.every
        return int(group["llqr_steps"]) // every > int(group["llqr_last_refit"]) // every and not self.idle

    def refit(self, inputs: Any, targets: Any = None, *, uniforms: Tensor | None = None) -> None:
        """Learn U anew at the present weights.

        The model is evaluated in evaluation mode, outside of autocast; its flags, buffers and gradients and the
        global random stream stay as they are.

        Args:
            inputs: the probe batch, this worker's share of it: a tensor, a tuple of positional or a dict of keyword
                arguments of the model.
            targets: its labels; with probe_vector="sampled" only ``ignore_index`` is looked at, and None will do.
            uniforms: numbers in [0, 1) to sample the labels of this worker's share from, of the likelihood's shape;
                None draws them from (config.seed, number of the refit).

        Raises:
            RuntimeError: called inside ``perturbed()``.
            ValueError: a batch that does not fit, is not finite, or is not divided by the micro-batches.

        Source: the book, chapters 16 and 18.
        """
        if self.inside_perturbation:
            raise RuntimeError("refit() inside perturbed(): the weights are at w + epsilon; leave the block first.")
        learned = self._preconditioner()
        devices = {p.device for group in self.param_groups for p in group["params"]}
        streams = random_state(devices)
        try:
            with evaluation_mode(self.model):
                self._refit(learned, inputs, targets, uniforms)
        finally:
            set_random_state(streams)
        for group in self.param_groups:
            group["llqr_refits"] = int(group["llqr_refits"]) + 1
            group["llqr_last_refit"] = int(group["llqr_steps"])

    def _refit_if_due(self) -> None:
        if self.probe is None or not self.refit_due:
            return
        batch = self.probe()
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(
                f"probe returned {type(batch).__name__}; it must return a pair (inputs, targets), targets None if there "
                "are none."
            )
        self.refit(*batch)

    def _refit(self, learned: Preconditioner, inputs: Any, targets: Any, uniforms: Tensor | None) -> None:
        config, workers = self._config, Workers.of(self.process_group)
        stacks = [s for s in learned.stacks if any(p.requires_grad for block in s.parameters for p in block)]
        sharded = any(map(is_sharded, learned.names))
        batch = ProbeBatch(
            self.model, self.loss_fn, self.likelihood, inputs, targets, config.probes, workers, sharded
        )
        index = int(self.param_groups[0]["llqr_refits"])

        def drawn(shape: tuple[int, ...]) -> Tensor:
            if uniforms is None:
                return draw_uniforms(config.seed, index, shape, workers)
            if tuple(uniforms.shape) != shape:
                raise ValueError(f"uniforms has shape {tuple(uniforms.shape)}; this batch needs {shape}.")
            return uniforms

        V, terms = batch.gradients(config.probe_vector, drawn)
        total = terms * workers.count
        if config.solver == "closed-form":
            scale = total / config.probes * (total if config.reduction == "sum" else 1)
            refit_closed_form(stacks, V, scale, config, Workers() if sharded else workers, self.own)
            return
        if config.probes > 1:
            V = {name: workers.gather(tensor) for name, tensor in V.items()}
        self._linearization = linearized(self._linearization, batch, self.states)
        product = batch.product(config, self._linearization, terms)
        refit_inner_loop(stacks, V, product, config, self.own)
        self._linearization.release()

    # Stepping.

    def geometry(self) -> Preconditioned:
        """U^{-1}, after a refit if one is due and there is a ``probe`` to do it with.

        Returns:
            The metric that a SAM around this optimizer perturbs by.
        """
        self._refit_if_due()
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
            RuntimeError: called inside ``perturbed()``, or with a closure by a GradScaler, which unscales before the
                closure has made gradients; a gradient is sparse.

        Source: the book, (21.1), (21.2).
        """
        if self.inside_perturbation:
            raise RuntimeError("step() inside perturbed(): leave the block first, the weights are at w + epsilon.")
        loss = None
        if closure is not None:
            if called_by_grad_scaler():
                raise RuntimeError(
                    "step(closure) under a GradScaler: it would unscale gradients that the closure has not made yet; "
                    "call scaler.scale(loss).backward() and then scaler.step(opt)."
                )
            self._refit_if_due()
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        counts = bool(parameters) and not self.idle
        if counts:
            self._refit_if_due()
        with torch.no_grad():
            learned = self._preconditioner()
            if self._config.acts_on == "update":
                self._step_by_update(learned, parameters)
            else:
                self._step_by_gradient(learned, parameters)
        if counts:
            steps = int(self.param_groups[0]["llqr_steps"]) + 1
            for group in self.param_groups:
                group["llqr_steps"] = steps
        return loss

    def _step_by_gradient(self, learned: Preconditioner, parameters: list[Tensor]) -> None:
        """base.step() with rule(U g, g) for the gradients, which are put back afterwards."""
        gradients = [p.grad for p in parameters]
        steps = self._steps(learned, self._gradients(parameters), parameters)
        try:
            for p, S in zip(parameters, steps, strict=True):
                p.grad = placed_as(S, p) if is_sharded(p) else S.to(p.dtype)
            self.base.step()
        finally:
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient

    def _step_by_update(self, learned: Preconditioner, parameters: list[Tensor]) -> None:
        """w <- w - lr (rule(U M, M) + wd w), with M read off a step of the base from zero."""
        weights = local_tensors(parameters)
        saved = [weight.clone() for weight in weights]
        settings = [(group, group["lr"], group.get("weight_decay", 0.0)) for group in self.param_groups]
        try:
            for weight in weights:
                weight.zero_()
            for group, _, _ in settings:
                group["lr"] = 1.0
                if "weight_decay" in group:
                    group["weight_decay"] = 0.0
            self.base.step()
            wide = widen(weights)  # now -M
            moves = self._steps(learned, wide, parameters)
            moves = [move.clone() if move is w else move for move, w in zip(moves, wide, strict=True)]
        finally:
            for group, lr, decay in settings:
                group["lr"] = lr
                if "weight_decay" in group:
                    group["weight_decay"] = decay
            for weight, value in zip(weights, saved, strict=True):
                weight.copy_(value)
        index = 0
        for group, lr, decay in settings:
            count = sum(p.grad is not None for p in group["params"])
            here = slice(index, index + count)
            index += count
            _move(weights[here], moves[here], lr, decay)

    def _steps(self, learned: Preconditioner, v: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """rule(U v, v)."""
        S = learned.apply(v, parameters)
        return apply_rule(self._config.step_rule, S, v, parameters, [learned.learned(p) for p in parameters])

    def _gradients(self, parameters: list[Tensor]) -> list[Tensor]:
        """Local gradients of at least float32."""
        gradients: list[Tensor] = []
        for index, parameter in enumerate(parameters):
            gradient = parameter.grad
            if gradient is None or gradient.layout is not torch.strided:
                raise RuntimeError(
                    f"the gradient of parameter {index} is sparse; LLQR needs dense ones: pass sparse=False to the "
                    "embedding."
                )
            gradients.append(gradient)
        return widen(local_tensors(match_sharding(gradients, parameters)))

    # What it holds.

    def _preconditioner(self) -> Preconditioner:
        """U, with all its tensors allocated: kept until a parameter comes, goes, or is frozen."""
        signature = (id(self.own), *self._trainable())
        if self._learned is None or self._signature != signature:
            self._learned = Preconditioner(make_stacks(self._parts(), self.own), self._names())
            self._signature = signature
        return self._learned

    def _trainable(self) -> Iterator[bool]:
        for group in self.param_groups:
            for parameter in group["params"]:
                yield parameter.requires_grad or parameter.grad is not None

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}

    def _parts(self) -> list[Part]:
        """The blocks that have something to learn: one a parameter, or one a layer (see ``LLQRConfig.solver``)."""
        closed, names = self._config.solver == "closed-form", self._names()
        together: dict[tuple[str, str], list[Tensor]] = {}
        for group in self.param_groups:
            kind = group["structure"] or self._config.structure
            if kind == "identity":
                continue
            joint = not closed and kind not in TWO_SIDED
            for parameter in group["params"]:
                name = names[parameter]
                together.setdefault((kind, name.rpartition(".")[0] if joint else name), []).append(parameter)
        parts = []
        for (kind, name), members in together.items():
            if not any(p.requires_grad or p.grad is not None for p in members):
                continue
            members.sort(key=lambda p: names[p].rpartition(".")[2])  # "bias" before "weight"
            shapes = tuple(tuple(p.shape) for p in local_tensors(members))
            joint = not closed and kind not in TWO_SIDED
            shape = (sum(map(math.prod, shapes)),) if joint else matrix_shape(shapes[0])
            # In closed form a Kronecker product is the separable U multiplied out: the same matrix.
            structure = make_structure(
                "separable-ekfac" if closed and kind == "kronecker" else kind,
                shape,
                positive=self._config.positive and not closed,
                max_side=self._config.max_side,
            )
            block = Block(name, tuple(names[p] for p in members), shapes, structure)
            parts.append(Part(block, tuple(members), closed))
        return parts

    # Saving and copying.

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned; a bare base's dictionary is accepted too, and U begins at I.

        Args:
            state_dict: from an LLQR of the same structure and solver on the same model.

        Raises:
            ValueError: it is not a state dict, belongs to another structure, or lacks a part; nothing is loaded.
        """
        saved_groups = state_dict.get("param_groups", ())
        for index, (saved, group) in enumerate(zip(saved_groups, self.param_groups, strict=False)):
            if saved.get("structure", group["structure"]) != group["structure"]:
                raise ValueError(
                    f"state_dict has structure={saved['structure']!r} in group {index}, this LLQR "
                    f"{group['structure']!r}; build it with the structure it was saved with."
                )
        self._expected = {part.parameters[0]: part.saved_shapes() for part in self._parts()}
        try:
            if any(int(saved.get("llqr_refits", 0)) for saved in saved_groups):
                self._check_complete(state_dict)
            super().load_state_dict(state_dict)
        finally:
            self._expected = {}
        self._learned = None

    def _check_complete(self, state_dict: Mapping[str, Any]) -> None:
        """After a refit every block has entries."""
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for key, parameter in zip(keys, parameters, strict=False):
            entries = state_dict.get("state", {}).get(key, {})
            if parameter in self._expected and not any(map(self._is_mine, entries)):
                raise ValueError(
                    f"state_dict has no {self.PREFIX} entries for parameter {key!r}; it is truncated, or was saved when "
                    "the parameter was frozen: load a complete one."
                )

    def check_own(self, parameter: Tensor, entries: Mapping[str, Any]) -> None:
        """Check the tensors that a checkpoint holds for a parameter.

        Args:
            parameter: the parameter that they belong to.
            entries: names, without prefix, and tensors; or nothing.

        Raises:
            ValueError: the checkpoint is of another structure, solver or model.
        """
        expected = self._expected.get(parameter)
        if not entries or expected is None:
            return
        found = {name: tuple(value.shape) for name, value in entries.items() if isinstance(value, Tensor)}
        if found != expected:
            raise ValueError(
                f"state_dict has {found} for a parameter of shape {tuple(parameter.shape)}, but "
                f"structure={self._config.structure!r} with solver={self._config.solver!r} keeps {expected}; build LLQR "
                "with the configuration it was saved with."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but hooks, caches and the probe callable."""
        return {**super().__getstate__(), "loss_fn": _Loss(self.loss_fn)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "loss_fn": state["loss_fn"].loss_fn})


class _Loss:
    """A loss on its way into a copy or a pickle, which says by name what cannot be pickled."""

    def __init__(self, loss_fn: LossFn) -> None:
        self.loss_fn = loss_fn

    def __deepcopy__(self, memo: dict[int, Any]) -> _Loss:
        return _Loss(copy.deepcopy(self.loss_fn, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.dumps(self.loss_fn)
        except Exception as error:
            raise pickle.PicklingError(
                f"loss_fn={self.loss_fn!r} cannot be pickled ({error}); pass a module, or a function defined at the top "
                "level of a file."
            ) from error
        return _Loss, (self.loss_fn,)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def _checked_config(config: object) -> LLQRConfig:
    if not isinstance(config, LLQRConfig):
        raise ValueError(
            f"config={config!r} is not an LLQRConfig; pass LLQRConfig(...) or LLQRConfig.published(...)."
        )
    return config


def _move(weights: list[Tensor], moves: list[Tensor], lr: float | Tensor, decay: float) -> None:
    """w <- (1 - lr decay) w + lr move, in place, in the precision of the moves."""
    keep = 1.0 - lr * decay
    for w, move in zip(weights, moves, strict=True):
        if w.dtype is move.dtype:
            w.mul_(keep).add_(move.mul(lr)) if decay else w.add_(move.mul(lr))
        else:
            w.copy_(w.to(move.dtype).mul_(keep).add_(move.mul(lr)))
