"""The PyTorch SAM family takes the steps of the NumPy one: 50 steps, float64, 1e-10."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from llqr_sam_ref.exact import dynamics, geometry, landscapes
from llqr_sam_ref.exact.network import Network
from llqr_sam_ref.optim import SAM, Adaptive, Fisher, Metric, Monge, Preconditioned
from tests.optim._training import backward

STEPS = 50
HESSIAN = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
START = np.array([0.3, -0.2, 0.5])
U = np.array([[0.3, 0.05, 0.0], [0.05, 0.6, 0.1], [0.0, 0.1, 0.9]])


def learned(vectors: list[Tensor], parameters: Any) -> list[Tensor]:
    return [torch.from_numpy(U) @ v for v in vectors]


QUADRATIC: dict[str, tuple[dynamics.Method, dict[str, Any]]] = {
    "sam": (dynamics.sam(0.05, 0.1), {}),
    "sam, momentum": (dynamics.sam(0.05, 0.1, beta=0.9), {}),
    "monge": (dynamics.monge_sam(0.05, 0.1), {"metric": Monge()}),
    "monge, alpha 3, momentum": (dynamics.monge_sam(0.05, 0.1, 3.0, beta=0.9), {"metric": Monge(alpha=3.0)}),
    "preconditioned perturbation": (
        dynamics.Method("", 0.05, dynamics.Normalized(0.1, geometry.Preconditioned(U))),
        {"metric": Preconditioned(learned)},
    ),
    "preconditioned perturbation, dual": (
        dynamics.Method("", 0.05, dynamics.Steepest(0.1, geometry.Preconditioned(U))),
        {"metric": Preconditioned(learned), "norm": "dual"},
    ),
}


@pytest.mark.parametrize(("method", "options"), QUADRATIC.values(), ids=QUADRATIC)
@pytest.mark.parametrize("foreach", [False, True])
def test_on_a_quadratic(method: dynamics.Method, options: dict[str, Any], foreach: bool) -> None:
    expected = dynamics.trajectory(method, landscapes.quadratic(HESSIAN), START, STEPS)
    w, H = nn.Parameter(torch.tensor(START)), torch.from_numpy(HESSIAN)
    opt = SAM(SGD([w], lr=method.eta, momentum=method.beta), method.rho, foreach=foreach, **options)

    def closure() -> Tensor:
        opt.zero_grad()
        return backward(0.5 * w @ H @ w)

    path = [w.detach().numpy().copy()]
    for _ in range(STEPS):
        opt.step(closure)
        path.append(w.detach().numpy().copy())
    np.testing.assert_allclose(path, expected, rtol=0, atol=1e-10)
    assert np.abs(expected[-1]).max() > 1e-3  # the cycle around the minimum, not the minimum


NETWORK = Network(widths=(4, 6, 5, 3), activation="tanh")
NAMES = [f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
MLP: dict[str, Metric | None] = {
    "sam": None,
    "monge": Monge(),
    "monge 0.3": Monge(alpha=0.3),
    "adaptive": Adaptive(eta=0.01),
    "adaptive, all": Adaptive(eta=0.1, biases=True),
    "fisher": Fisher(eta=0.1),
}


def exact_metric(metric: Metric | None, w: np.ndarray, g: np.ndarray) -> geometry.Metric:
    match metric:
        case Monge(alpha=alpha):
            return geometry.Monge(g, alpha)
        case Adaptive(eta=eta, biases=everything):
            blocks = NETWORK.unflatten(w)
            bias = np.concatenate([np.repeat([False, True], [W.size, b.size]) for W, b in blocks])
            return geometry.Adaptive(w, eta, None if everything else bias)
        case Fisher(eta=eta):
            return geometry.Fisher(g**2, eta)
    return geometry.Euclidean()


@pytest.mark.parametrize("metric", MLP.values(), ids=MLP)
@pytest.mark.parametrize("norm", ["dual", "euclidean"])
@pytest.mark.parametrize("ascent_ema", [None, 0.9])
def test_on_an_mlp(
    metric: Metric | None, norm: str, ascent_ema: float | None, rng: np.random.Generator
) -> None:
    x, y = rng.standard_normal((12, 4)), rng.integers(3, size=12)
    w = NETWORK.random_weights(rng)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.utils.vector_to_parameters(torch.from_numpy(w), model.parameters())
    assert [name for name, _ in model.named_parameters()] == NAMES
    opt = SAM(
        SGD(model.named_parameters(), lr=0.1, momentum=0.9), 0.1, metric, norm=norm, ascent_ema=ascent_ema
    )

    def closure() -> Tensor:
        opt.zero_grad()
        return backward(nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)))

    velocity, average = np.zeros_like(w), np.zeros_like(w)
    for _ in range(STEPS):
        g = NETWORK.gradient(w, x, y)
        v = g - average if ascent_ema is not None else g
        average = 0.9 * average + 0.1 * g
        epsilon = geometry.ascent_step(v, 0.1, exact_metric(metric, w, g), norm)
        velocity = 0.9 * velocity + NETWORK.gradient(w + epsilon, x, y)
        w = w - 0.1 * velocity
        opt.step(closure)
        assert opt.realized_radius == pytest.approx(np.linalg.norm(epsilon), rel=1e-10)
    got = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    np.testing.assert_allclose(got, w, rtol=1e-10, atol=1e-11)
