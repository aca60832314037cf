"""The PyTorch LLQR takes the steps of the NumPy one: 50 steps on a network, float64, 1e-10.

Both draw labels from the same uniforms, and the exact version takes the eigenbases of the other: eigenvectors of equal
eigenvalues, and signs, are free.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llqr_sam_ref.config import CHOICES, InnerLoop, LLQRConfig
from llqr_sam_ref.exact import llqr as exact
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.bases import Bases
from llqr_sam_ref.exact.curvature import fisher, hessian
from llqr_sam_ref.exact.network import Network
from llqr_sam_ref.exact.probes import micro_batch_gradients, sample_labels
from llqr_sam_ref.exact.structures import STRUCTURES
from llqr_sam_ref.optim import LLQR, SAM
from tests.optim._training import backward

NET = Network((6, 5, 3))
LAYERS = (((5, 6), (5,)), ((3, 5), (3,)))
X = np.random.default_rng(1).standard_normal((16, 6))
Y = np.random.default_rng(2).integers(0, 3, 16)
W = NET.random_weights(np.random.default_rng(3))
STEPS = 50


def network(w: Array = W) -> nn.Sequential:
    """The network in torch."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.utils.vector_to_parameters(torch.from_numpy(w.copy()), model.parameters())
    return model


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def exact_refit(config: LLQRConfig, state: exact.State, uniforms: Array, opt: LLQR | None) -> exact.State:
    """A refit of the exact version, with the bases of the other if that has any."""
    w = state.w
    sampled = config.probe_vector == "sampled"
    labels = sample_labels(softmax(NET.states(w, X)[-1]), uniforms) if sampled else Y
    probes = micro_batch_gradients(lambda x, y: NET.gradient(w, x, y), X, labels, config.probes)
    if isinstance(config.solver, InnerLoop):
        curvature = hessian(NET, w, X, Y) if config.solver.divergence == "newton" else fisher(NET, w, X)
        return exact.refit(config, state, probes, len(X), curvature)
    return exact.refit(config, state, probes, len(X), bases=bases_of(opt))


def bases_of(opt: LLQR | None) -> list[Bases] | None:
    if opt is None:
        return None
    found: list[Bases] = []
    for p in opt.param_groups[0]["params"]:
        own = opt.own[p]
        psi, phi = (whole(own[name]) if name in own else None for name in ("E_Psi", "E_Phi"))
        found.append((psi, phi))
    return found


def whole(E: Tensor) -> Array:
    """A basis as one matrix; several blocks are stored one after the other."""
    return torch.block_diag(*E).numpy().copy() if E.ndim == 3 else E.numpy().copy()


def compare(
    config: LLQRConfig,
    rho: float = 0.0,
    nesterov: bool = True,
    wd: float = 0.0,
    lr: float = 0.01,
    steps: int = STEPS,
) -> None:
    """Run both and compare weights and preconditioned gradients at every step."""
    rng = np.random.default_rng(4)
    model, loss_fn = network(), nn.CrossEntropyLoss()
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=nesterov, weight_decay=wd)
    llqr = LLQR(sgd, model, loss_fn, config)
    opt: Any = SAM(llqr, rho) if rho else llqr
    state = exact.start(config, W, LAYERS)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)

    def closure() -> Tensor:
        opt.zero_grad()
        return backward(loss_fn(model(x), y))

    for _ in range(steps):
        assert llqr.refit_due == exact.refit_due(config, state)
        if llqr.refit_due:
            uniforms = rng.random(len(X))
            llqr.refit(x, y, uniforms=torch.from_numpy(uniforms))
            state = exact_refit(config, state, uniforms, llqr)
        g = NET.gradient(state.w, X, Y)
        closure()
        found = nn.utils.parameters_to_vector([t for t in llqr.preconditioned_gradients() if t is not None])
        np.testing.assert_allclose(found.numpy(), state.U.apply(g), rtol=1e-9, atol=1e-10)
        if rho:
            g = NET.gradient(state.w + exact.perturbation(state.U, g, rho), X, Y)
        state = exact.update(config, state, g, lr, exact.HeavyBall(0.9, nesterov, wd))
        opt.step(closure)
        got = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
        np.testing.assert_allclose(got, state.w, rtol=1e-10, atol=1e-10)
    assert np.abs(state.w - W).max() > 0.1
    assert np.abs(state.U.to_dense() - np.eye(W.size)).max() > 1e-3


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_default(structure: str, rho: float) -> None:
    compare(LLQRConfig(structure=structure, every=3, probes=4), rho)


STEPWISE: dict[str, dict[str, Any]] = {
    **{structure: {"structure": structure} for structure in STRUCTURES},
    "blocks": {"max_side": 3},
    "one side": {"max_side": 5, "wide": "identity"},
    "eigenvectors": {"renewal": "eigendecomposition", "basis_every": 1},
    "slow": {"every": 3, "gram_every": 6, "basis_every": 9},
    "one damping": {"damping_kind": "relative", "damping": 0.03},
    "on the gradient": {"acts_on": "gradient", "step_rule": "graft"},
}


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("settings", STEPWISE.values(), ids=STEPWISE)
def test_the_default_learns_from_the_steps(settings: dict[str, Any], rho: float) -> None:
    """Each by itself, bases too: nothing is handed over."""
    config = LLQRConfig().replace(**settings)
    model = network()
    rate = 0.1 if config.acts_on == "gradient" else 0.005
    inner = LLQR(
        torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True), model, config=config
    )
    opt: Any = SAM(inner, rho) if rho else inner
    state = exact.start(config, W, LAYERS)
    for t in range(STEPS):
        rows = np.random.default_rng(t).permutation(len(X))[:8]
        x, y = torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            return backward(nn.functional.cross_entropy(model(x), y))

        opt.step(closure)

        def gradient(w: Array, rows: Array = rows) -> Array:
            return NET.gradient(w, X[rows], Y[rows])

        state = exact.training_step(config, state, gradient, rate, rho=rho)
        got = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
        np.testing.assert_allclose(got, state.w, rtol=1e-10, atol=1e-10)
    assert np.abs(state.w - W).max() > 0.1
    assert np.abs(state.U.to_dense() - np.eye(W.size)).max() > 1e-3


@pytest.mark.parametrize(("divergence", "rho"), [("fisher", 0.0), ("fisher", 0.1), ("newton", 0.1)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_published(structure: str, divergence: str, rho: float) -> None:
    rate = 2e-2 if divergence == "fisher" else 5e-3  # on an indefinite Hessian U may grow without bound
    config = LLQRConfig.published(structure=structure, divergence=divergence, every=10, lr=rate, ema=0.5)
    compare(config, rho, nesterov=False, lr=0.1)


CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "summed": ({"reduction": "sum"}, {}),
    "absolute damping": ({"damping_kind": "absolute", "damping": 0.1}, {}),
    "absolute damping, summed": ({"damping_kind": "absolute", "damping": 0.1, "reduction": "sum"}, {}),
    "gradient probes": ({"probe_vector": "gradient"}, {}),
    "one probe": ({"probes": 1}, {}),
    "every example a probe": ({"probes": 16}, {}),
    "on the gradient": ({"acts_on": "gradient"}, {"wd": 0.01}),
    "per tensor": ({"step_rule": "rms-per-tensor"}, {}),
    "grafted": ({"step_rule": "graft"}, {"lr": 0.1}),
    "no rule": ({"step_rule": "none", "damping": 1.0, "damping_kind": "relative"}, {"lr": 0.01}),
    "decay": ({}, {"wd": 0.5}),
    "heavy ball": ({}, {"nesterov": False}),
    "narrow": ({"max_side": 5}, {}),
    "no sides": ({"max_side": 0}, {}),
    "separable, narrow": ({"structure": "separable-ekfac", "max_side": 5}, {}),
    "bases always": ({"basis_every": 1, "basis_memory": 1.0, "curvature_memory": 1.0}, {}),
    "eigenvectors": ({"renewal": "eigendecomposition", "basis_every": 2}, {}),
    "one damping": ({"damping_kind": "relative"}, {}),
    "blocks": ({"max_side": 3}, {}),
    "one side": ({"max_side": 5, "wide": "identity"}, {}),
    "slow grams": ({"gram_every": 6, "basis_every": 10}, {}),
}


@pytest.mark.parametrize(("settings", "options"), CHANGED.values(), ids=CHANGED)
def test_the_default_with_one_thing_changed(settings: dict[str, Any], options: dict[str, Any]) -> None:
    compare(LLQRConfig().replace(**{"every": 2, "probes": 4, **settings}), **options, steps=20)


FREE: dict[str, dict[str, Any]] = {
    "positive": {"structure": "kronecker", "positive": True, "damping": 0.1},
    "positive bases": {"structure": "ekfac", "positive": True},
    "cold": {"structure": "kronecker", "warm_start": False},
    "no clip": {"clip": None, "reduction": "mean"},
    "tight clip": {"structure": "kronecker", "clip": 0.1},
    "tight clip on bases": {"structure": "ekfac", "clip": 0.1},
    "sampled": {"probe_vector": "sampled"},
    "four probes": {"structure": "kronecker", "probes": 4},
    "four sampled probes, positive": {
        "structure": "separable-ekfac",
        "probes": 4,
        "probe_vector": "sampled",
        "positive": True,
    },
    "inverted": {"lr": 0.5, "ema": 0.0, "allow_inversion": True},
    "guarded": {"lr": 0.5, "ema": 0.0},
    "gauss-newton, which is fisher for this loss": {"structure": "ekfac", "divergence": "gauss-newton"},
    "on the update": {"acts_on": "update", "step_rule": "rms"},
}


@pytest.mark.parametrize("settings", FREE.values(), ids=FREE)
def test_the_published_with_one_thing_changed(settings: dict[str, Any]) -> None:
    config = LLQRConfig.published(**{"every": 7, "lr": 2e-2, "ema": 0.5, **settings})
    compare(config, nesterov=False, lr=0.01 if config.acts_on == "update" else 0.1, steps=20)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_costs_on_states_are_part_of_G(structure: str, reduction: str) -> None:
    """The exact version is given F + (1/n) sum_i J_i^T S J_i as a matrix, J_i of the hidden layer's states."""
    config = LLQRConfig.published(structure=structure, reduction=reduction, lr=2e-2, ema=0.5)
    root = np.random.default_rng(5).standard_normal((5, 5))
    costs = {"0": 3.0 * np.eye(5), "1": root @ root.T}
    model, loss_fn, x, y = network(), nn.CrossEntropyLoss(), torch.from_numpy(X), torch.from_numpy(Y)
    states: dict[str, Any] = {"0": 3.0, "1": torch.from_numpy(costs["1"])}
    opt = LLQR(torch.optim.SGD(model.parameters(), lr=0.1), model, loss_fn, config, states=states)
    G = fisher(NET, W, X)
    for name, S in costs.items():
        h = model[: int(name) + 1](x).reshape(-1)
        rows = [torch.autograd.grad(value, list(model[0].parameters()), retain_graph=True) for value in h]
        J = np.zeros((len(X), 5, W.size))
        J[:, :, :35] = torch.stack([nn.utils.parameters_to_vector(row) for row in rows]).view(len(X), 5, 35)
        G = G + np.einsum("nci,cd,ndj->ij", J, S, J) / len(X)
    opt.refit(x, y)
    g = NET.gradient(W, X, Y)
    state = exact.refit(config, exact.start(config, W, LAYERS), g, len(X), G)
    backward(loss_fn(model(x), y))
    found = nn.utils.parameters_to_vector([t for t in opt.preconditioned_gradients() if t is not None])
    np.testing.assert_allclose(found.numpy(), state.U.apply(g), rtol=1e-10, atol=1e-12)
    without = exact.refit(config, exact.start(config, W, LAYERS), g, len(X), fisher(NET, W, X))
    assert np.abs(found.numpy() - without.U.apply(g)).max() > 1e-3


def test_both_know_the_same_structures() -> None:
    assert CHOICES["structure"] == tuple(STRUCTURES)
