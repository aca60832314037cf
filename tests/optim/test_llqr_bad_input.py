"""What bad input gets from LLQR, case after case (hence the length): argument, value, remedy, weights untouched."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, Adafactor, Adagrad, AdamW, Optimizer, RMSprop

from llqr_sam_ref import LLQR, SAM, InnerLoop, LLQRConfig
from tests.optim._training import backward, same, weights

NAN = float("nan")
Model = nn.Sequential
loss_fn = nn.CrossEntropyLoss()


def network() -> Model:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def batch(n: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def sgd(model: nn.Module, **options: Any) -> SGD:
    return SGD([{"params": list(model.parameters()), **options}], lr=0.1)


def llqr(model: nn.Module, config: LLQRConfig | None = None, **options: Any) -> LLQR:
    return LLQR(sgd(model), model, loss_fn, config, **options)


def unknown_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets) ** 2


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "structure": ({"structure": "kroneker"}, "structure='kroneker' .* did you mean 'kronecker'"),
    "solver": ({"solver": "closed_form"}, r"solver='closed_form' is not a solver; .*ClosedForm\(\)"),
    "solver of old": (
        {"solver": "inner-loop"},
        r"solver='inner-loop' is not a solver; pass solver=InnerLoop\(\)",
    ),
    "probe_vector": ({"probe_vector": "sample"}, "probe_vector='sample' .* did you mean 'sampled'"),
    "acts_on": ({"acts_on": "updates"}, "acts_on='updates' .* did you mean 'update'"),
    "step_rule": ({"step_rule": "rmsprop"}, "step_rule='rmsprop' .* did you mean 'rms'"),
    "reduction": ({"reduction": "none"}, "reduction='none'"),
    "damping kind": ({"damping_kind": "rel"}, "damping_kind='rel' .* 'relative'"),
    "damping negative": ({"damping": -0.1}, r"damping=-0\.1 .* \(0, inf\)"),
    "damping zero in closed form": ({"damping": 0.0}, r"damping=0\.0 .* \(0, inf\)"),
    "damping nan": ({"damping": NAN}, "damping=nan .* finite"),
    "every": ({"every": 0}, "every=0 .* at least 1"),
    "probes": ({"probes": 2.0}, r"probes=2\.0 .* integer"),
    "curvature_memory": ({"curvature_memory": 0.5}, r"curvature_memory=0\.5 .* \[1, inf\)"),
    "basis_memory": ({"basis_memory": NAN}, "basis_memory=nan"),
    "gram_every": ({"gram_every": 0}, "gram_every=0"),
    "basis_every": ({"basis_every": 1.5}, "basis_every=1.5"),
    "renewal": ({"renewal": "qr"}, "renewal='qr'"),
    "max_side": ({"max_side": -1}, "max_side=-1 .* at least 0"),
    "seed": ({"seed": -1}, "seed=-1"),
}
FREE_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "divergence": ({"divergence": "fischer"}, "divergence='fischer' .* did you mean 'fisher'"),
    "damping": ({"damping": -0.1}, r"damping=-0\.1"),
    "steps": ({"steps": 0.5}, r"steps=0\.5 .* integer"),
    "clip": ({"clip": 0.0}, r"clip=0\.0"),
    "ema": ({"ema": 1.1}, r"ema=1\.1 .* \[0, 1\]"),
    "lr": ({"lr": -1.0}, r"lr=-1\.0"),
    "momentum": ({"momentum": 1.0}, r"momentum=1\.0"),
    "nothing to allow": (
        {"positive": True, "allow_inversion": True},
        "allow_inversion=True is not read with positive=True",
    ),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLQRConfig().replace(**settings)


@pytest.mark.parametrize(("settings", "message"), FREE_SETTINGS.values(), ids=FREE_SETTINGS)
def test_settings_of_the_inner_loop(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLQRConfig.published(**settings)


# A setting is written where it is read; a setting that nothing would read cannot be written at all.
ELSEWHERE: dict[str, tuple[Callable[[], object], str]] = {
    "damping": (
        lambda: LLQRConfig(damping=0.1),  # type: ignore[call-arg]
        r"damping=0\.1 is a setting of the solver; write solver=ClosedForm\(damping=0\.1\)",
    ),
    "damping of the inner loop": (
        lambda: LLQRConfig(solver=InnerLoop(), damping=0.1),  # type: ignore[call-arg]
        r"write solver=InnerLoop\(damping=0\.1\)",
    ),
    "renamed": (
        lambda: LLQRConfig(inner_steps=3),  # type: ignore[call-arg]
        r"inner_steps=3 is a setting of the solver; write solver=InnerLoop\(steps=3\)",
    ),
    "renamed, in published": (
        lambda: LLQRConfig.published(inner_lr=0.1),
        r"inner_lr=0\.1 is a setting of the solver; write solver=InnerLoop\(lr=0\.1\)",
    ),
    "Newton in closed form": (
        lambda: LLQRConfig(divergence="newton"),  # type: ignore[call-arg]
        r"write solver=InnerLoop\(divergence='newton'\)",
    ),
    "free closed form": (
        lambda: LLQRConfig().replace(positive=False),
        "positive=False is read by InnerLoop only, and solver is ClosedForm",
    ),
    "relative damping in the inner loop": (
        lambda: LLQRConfig.published(damping_kind="relative"),
        "damping_kind='relative' is read by ClosedForm only, and solver is InnerLoop",
    ),
    "dataclasses.replace": (
        lambda: replace(LLQRConfig(), basis_every=2),  # type: ignore[call-arg]
        r"write solver=ClosedForm\(basis_every=2\)",
    ),
    "misspelled": (lambda: LLQRConfig(evry=3), "setting='evry' is unknown; did you mean 'every'"),  # type: ignore[call-arg]
    "misspelled, of the solver": (
        lambda: LLQRConfig().replace(dampin=0.1),
        "setting='dampin' is unknown; did you mean 'damping'",
    ),
}


@pytest.mark.parametrize(("build", "message"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_settings_that_are_not_read_here(build: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


CONSTRUCTION: dict[str, tuple[Callable[[Model], object], str]] = {
    "no model": (lambda m: LLQR(sgd(m), 3, loss_fn), "model is a int, not a module"),  # type: ignore[arg-type]
    "model of other parameters": (
        lambda m: LLQR(sgd(m), nn.Linear(4, 3), loss_fn),
        r"parameter 0 of shape \(6, 4\) does not belong to model; .*structure='identity'",
    ),
    "no loss": (lambda m: LLQR(sgd(m), m, "ce"), "loss_fn='ce' cannot be called"),  # type: ignore[arg-type]
    "not a likelihood": (
        lambda m: LLQR(sgd(m), m, unknown_loss, LLQRConfig.sampled()),
        "unknown_loss.* is not a likelihood.*likelihood=.*probe_vector=.gradient",
    ),
    "config": (lambda m: llqr(m, "published"), "config='published' is not an LLQRConfig"),  # type: ignore[arg-type]
    "probe": (lambda m: llqr(m, probe=batch()), "probe is a tuple; pass a function"),
    "states in closed form": (
        lambda m: llqr(m, states={"0": 1.0}),
        r"states needs solver=InnerLoop\(\.\.\.\)",
    ),
    "around SAM": (lambda m: LLQR(SAM(sgd(m)), m, loss_fn), r"base is a SAM; .*SAM\(LLQR\(optimizer"),
    "around LLQR": (lambda m: LLQR(llqr(m), m, loss_fn), "base is a LLQR"),
    "base class": (lambda m: LLQR(SGD, m, loss_fn), "base.*pass an instance"),  # type: ignore[arg-type]
    "base needs a closure": (lambda m: LLQR(LBFGS(m.parameters()), m, loss_fn), "base=LBFGS .*closure"),
    "base reads weights": (
        lambda m: LLQR(Adafactor(m.parameters()), m, loss_fn),
        "base=Adafactor makes its update from the weights.*acts_on='gradient'",
    ),
    "base averages weights": (lambda m: LLQR(ASGD(m.parameters()), m, loss_fn), "base=ASGD makes its update"),
    "structure of a group": (
        lambda m: LLQR(sgd(m, structure="kronecer"), m, loss_fn),
        "structure='kronecer' .* did you mean 'kronecker'",
    ),
    "differentiable": (
        lambda m: LLQR(SGD(m.parameters(), lr=0.1, differentiable=True), m, loss_fn),
        "differentiable=True",
    ),
    "learning rate NaN": (lambda m: LLQR(SGD(m.parameters(), lr=NAN), m, loss_fn), "lr=nan .* finite"),
    "sparse": (
        lambda m: llqr(m.append(nn.ParameterList([nn.Parameter(torch.eye(2).to_sparse())]))),
        "parameter 4 is complex or sparse",
    ),
    "complex": (
        lambda m: llqr(m.append(nn.ParameterList([torch.ones(2, dtype=torch.cfloat)]))),
        "parameter 4 is complex",
    ),
}


@pytest.mark.parametrize(("make", "message"), CONSTRUCTION.values(), ids=CONSTRUCTION)
def test_construction(make: Callable[[Model], object], message: str) -> None:
    model = network()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        make(model)
    assert same(weights(model)[:4], before)


def test_a_refused_base_is_as_it_was() -> None:
    model = network()
    base = Adafactor(model.parameters())
    keys = list(base.param_groups[0]), dict(base.defaults)
    with pytest.raises(ValueError, match="Adafactor"):
        LLQR(base, model, loss_fn)
    assert (list(base.param_groups[0]), base.defaults) == keys


@pytest.mark.parametrize("kind", [SGD, AdamW, RMSprop, Adagrad, torch.optim.NAdam, torch.optim.Adamax])
def test_bases_that_ignore_the_weights_are_welcome(kind: type[Optimizer]) -> None:
    model = network()
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    opt = LLQR(kind(model.parameters(), **options), model, loss_fn)
    assert opt.config.acts_on == "update"


def published(model: Model, **overrides: Any) -> LLQR:
    return llqr(model, LLQRConfig.published(**overrides))


def refit(opt: LLQR, inputs: Any, targets: Any = None, **options: Any) -> None:
    opt.refit(inputs, targets, **options)


def inside(m: Model) -> None:
    opt = SAM(llqr(m))
    backward(loss_fn(m(batch()[0]), batch()[1]))
    with opt.perturbed():
        opt.refit(*batch())


def step_inside(m: Model) -> None:
    opt = SAM(llqr(m))
    backward(loss_fn(m(batch()[0]), batch()[1]))
    with opt.perturbed():
        opt.base.step()


def scaled_closure(m: Model) -> None:
    opt = llqr(m)
    scaler = torch.amp.GradScaler("cpu")
    backward(scaler.scale(loss_fn(m(batch()[0]), batch()[1])))
    scaler.step(opt, lambda: loss_fn(m(batch()[0]), batch()[1]))


def sparse(m: Model) -> None:
    table = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    opt = LLQR(sgd(table), table, loss_fn, LLQRConfig.published())
    backward(table(torch.tensor([1, 2])).sum())
    before = weights(table)
    try:
        opt.step()
    finally:
        assert same(weights(table), before)


def reconfigured(m: Model, **changes: Any) -> None:
    opt = llqr(m)
    opt.config = replace(opt.config, **changes)


def scheduled(m: Model, **entries: Any) -> None:
    opt = llqr(m)
    backward(loss_fn(m(batch()[0]), batch()[1]))
    opt.param_groups[0].update(entries)
    opt.step()


def linear_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs * nn.functional.one_hot(targets, 3)).sum()


def training_dropout(m: Model) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + torch.rand_like(x))

    noisy = Noisy()
    LLQR(sgd(noisy), noisy, loss_fn, LLQRConfig.published()).refit(*batch())


NO_X = torch.full((16, 4), NAN)
USE: dict[str, tuple[Callable[[Model], object], type[Exception], str]] = {
    "batch not divided": (
        lambda m: refit(llqr(m, LLQRConfig.sampled()), *batch(15)),
        ValueError,
        "inputs holds 15 examples.*probes=8",
    ),
    "empty batch": (lambda m: refit(llqr(m), *batch(0)), ValueError, "inputs holds 0 examples"),
    "no tensor": (lambda m: refit(llqr(m, LLQRConfig.sampled()), 3), ValueError, "inputs holds 0 examples"),
    "no tensor, no parts": (lambda m: refit(llqr(m), 3), ValueError, "inputs do not fit the model"),
    "inputs of another shape": (
        lambda m: refit(llqr(m), torch.ones(16, 5), batch()[1]),
        ValueError,
        "inputs do not fit the model",
    ),
    "inputs with NaN": (lambda m: refit(llqr(m), NO_X, batch()[1]), ValueError, "not finite|NaN"),
    "inputs with NaN, published": (
        lambda m: refit(published(m), NO_X, batch()[1]),
        ValueError,
        "not finite|NaN",
    ),
    "no labels, published": (
        lambda m: refit(published(m), batch()[0]),
        ValueError,
        "no gradients on the probe",
    ),
    "labels of another length": (
        lambda m: refit(published(m), batch()[0], batch()[1][:8]),
        ValueError,
        "the probe batch have .* examples",
    ),
    "uniforms of another shape": (
        lambda m: refit(llqr(m, LLQRConfig.sampled()), *batch(), uniforms=torch.rand(8)),
        ValueError,
        r"uniforms has shape \(8,\); this batch needs \(16,\)",
    ),
    "random forward": (
        training_dropout,
        ValueError,
        "two evaluations of the module on the same batch differ",
    ),
    "refit inside perturbed": (inside, RuntimeError, r"refit\(\) inside perturbed\(\).*leave the block"),
    "step inside perturbed": (step_inside, RuntimeError, r"step\(\) inside perturbed\(\).*leave the block"),
    "closure under a scaler": (
        scaled_closure,
        RuntimeError,
        r"step\(closure\) under a GradScaler.*scaler.step",
    ),
    "sparse gradient": (sparse, RuntimeError, "gradient of parameter 0 is sparse; .*sparse=False"),
    "new structure": (
        lambda m: reconfigured(m, structure="diagonal"),
        ValueError,
        "structure='diagonal' cannot replace 'ekfac' in a running LLQR",
    ),
    "new side": (lambda m: reconfigured(m, max_side=3), ValueError, "max_side=3 cannot replace 128"),
    "no config": (lambda m: setattr(llqr(m), "config", None), ValueError, "config=None is not an LLQRConfig"),
    "learning rate scheduled to NaN": (lambda m: scheduled(m, lr=NAN), ValueError, "lr=nan .* finite"),
    "learning rate scheduled below zero": (lambda m: scheduled(m, lr=-0.1), ValueError, r"lr=-0\.1"),
    "decay scheduled to NaN": (
        lambda m: scheduled(m, weight_decay=torch.tensor(NAN)),
        ValueError,
        r"weight_decay=tensor\(nan\)",
    ),
    "loss without second derivative": (
        lambda m: refit(
            LLQR(sgd(m), m, linear_loss, LLQRConfig.published(divergence="gauss-newton")), *batch()
        ),
        RuntimeError,
        "linear in the outputs.*Fisher product",
    ),
    "probe returns no pair": (
        lambda m: llqr(m, probe=lambda: batch()[0]).geometry(),
        ValueError,
        r"probe returned Tensor; it must return a pair",
    ),
    "group of another model": (
        lambda m: llqr(m).add_param_group({"params": nn.Linear(2, 2).parameters()}),
        ValueError,
        "parameter 0 .* does not belong to model",
    ),
    "unpicklable loss": (
        lambda m: pickle.dumps(
            LLQR(sgd(m), m, lambda z, y: loss_fn(z, y), LLQRConfig.published(divergence="newton"))
        ),
        pickle.PicklingError,
        "loss_fn=.*lambda.*cannot be pickled.*top level",
    ),
}


@pytest.mark.parametrize(("act", "error", "message"), USE.values(), ids=USE)
def test_use(act: Callable[[Model], object], error: type[Exception], message: str) -> None:
    model = network()
    before = weights(model)
    with pytest.raises(error, match=message):
        act(model)
    assert same(weights(model), before)


def trained(config: LLQRConfig | None = None, **options: Any) -> LLQR:
    model = network()
    opt = LLQR(sgd(model, **options), model, loss_fn, config)
    opt.refit(*batch())
    backward(loss_fn(model(batch()[0]), batch()[1]))
    opt.step()
    return opt


def truncated() -> dict[str, Any]:
    saved = copy.deepcopy(trained().state_dict())
    del saved["state"][2]
    return saved


def newer() -> dict[str, Any]:
    saved = copy.deepcopy(trained().state_dict())
    saved["state"][0]["llqr_novel"] = torch.zeros(2)
    return saved


def diverged() -> dict[str, Any]:
    saved = copy.deepcopy(trained().state_dict())
    saved["param_groups"][0]["lr"] = NAN
    return saved


CHECKPOINTS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "of another structure": (
        lambda: trained(LLQRConfig(structure="dense")).state_dict(),
        "build LLQR with the config",
    ),
    "of another solver": (lambda: trained(LLQRConfig.published()).state_dict(), "build LLQR with the config"),
    "of another max_side": (
        lambda: trained(LLQRConfig(max_side=5)).state_dict(),
        "build LLQR with the config",
    ),
    "of another structure in the group": (
        lambda: trained(structure="diagonal").state_dict(),
        "structure='diagonal' in group 0, this LLQR None",
    ),
    "of a newer version": (
        newer,
        r"'novel': \(2,\).* for a parameter of shape \(6, 4\), but .*build LLQR with",
    ),
    "with a learning rate of NaN": (diverged, "lr=nan"),
    "truncated": (truncated, "no llqr_ entries for parameter 2; it is truncated"),
    "no checkpoint": (lambda: {"weights": 3}, "state_dict has no"),
}


@pytest.mark.parametrize(("make", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(make: Callable[[], dict[str, Any]], message: str) -> None:
    opt = trained()
    saved = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(make())
    now = opt.state_dict()
    assert now["param_groups"] == saved["param_groups"]
    for key, entries in saved["state"].items():
        assert now["state"][key].keys() == entries.keys()
        assert all(
            torch.equal(torch.as_tensor(now["state"][key][n]), torch.as_tensor(v)) for n, v in entries.items()
        )


def test_a_failed_refit_leaves_everything_as_it_was() -> None:
    opt = trained()
    saved = copy.deepcopy(opt.state_dict())
    opt.model.train()
    stream = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"not finite|NaN"):
        opt.refit(NO_X, batch()[1])
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(module.training for module in opt.model.modules())
    now = opt.state_dict()
    assert now["param_groups"] == saved["param_groups"]
    for key, entries in saved["state"].items():
        assert all(
            torch.equal(torch.as_tensor(now["state"][key][n]), torch.as_tensor(v)) for n, v in entries.items()
        )
