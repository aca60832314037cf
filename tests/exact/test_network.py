"""The network as a control system: pencil numbers, prescribed zeros, complex steps, the golden network."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llqr_sam_ref.exact import landscapes
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.losses import LOSSES
from llqr_sam_ref.exact.network import Network, layerwise_lqr, two_weight_network
from llqr_sam_ref.exact.stages import ACTIVATIONS, Dense, Elementwise, LogSoftmax, Stage
from tests.exact import golden

STEP = 1e-30


def example(
    rng: np.random.Generator,
    widths: tuple[int, ...] = (4, 6, 5, 3),
    n: int = 7,
    loss: str = "cross-entropy",
    **kw: str,
) -> tuple[Network, Array, Array, Array]:
    network = Network(widths, loss=loss, **kw)  # type: ignore[arg-type]
    w = 0.5 * rng.standard_normal(network.dimension)
    x = rng.standard_normal((n, widths[0]))
    labels = rng.integers(0, widths[-1], n)
    return network, w, x, rng.standard_normal((n, widths[-1])) if loss == "squared-error" else labels


def test_two_weight_network_by_hand() -> None:
    network, x, y = two_weight_network()
    for w, states, costates, gradient in (
        ((2.0, 1.0), (1, 2, 2), (4, 2, 2), (2, 4)),
        ((1.0, 3.0), (1, 1, 3), (12, 12, 4), (12, 4)),
    ):
        assert [state.item() for state in network.states(w, x)] == list(states)
        assert [costate.item() for costate in network.costates(w, x, y)] == list(costates)
        np.testing.assert_array_equal(network.gradient(w, x, y), gradient)
    problem = layerwise_lqr(network, (2.0, 1.0), x, y)
    assert (problem.A[1].item(), problem.B[0].item(), problem.B[1].item()) == (1.0, 1.0, 2.0)
    assert (problem.M[0].item(), problem.M[1].item()) == (2.0, 2.0)
    assert (problem.Q[2].item(), problem.q[2].item()) == (2.0, 2.0)
    assert all(not np.any(cost) for cost in (*problem.Q[:2], *problem.R))
    at_minimum = layerwise_lqr(network, (0.5, 2.0), x, y)
    assert at_minimum.M[1].item() == 0.0


def test_two_weight_network_is_the_banana(rng: np.random.Generator) -> None:
    network, x, y = two_weight_network()
    banana = landscapes.banana()
    for w in rng.standard_normal((10, 2)):
        assert abs(network.value(w, x, y) - float(banana.value(w))) < 1e-13
        np.testing.assert_allclose(network.gradient(w, x, y), banana.gradient(w), atol=1e-13)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_derivatives_by_complex_step(name: str, rng: np.random.Generator) -> None:
    activation = ACTIVATIONS[name]
    z = np.concatenate((3 * rng.standard_normal(50), [-800.0, 800.0, -30.0, 30.0]))
    np.testing.assert_allclose(activation.slope(z), activation.value(z + 1j * STEP).imag / STEP, atol=1e-15)
    if name != "relu":  # the slope of ReLU is a step function
        np.testing.assert_allclose(
            activation.bend(z), activation.slope(z + 1j * STEP).imag / STEP, atol=1e-15
        )


def test_activation_values() -> None:
    z = np.array([-800.0, -1.0, 0.0, 2.0, 800.0])
    np.testing.assert_array_equal(ACTIVATIONS["relu"].value(z), [0, 0, 0, 2, 800])
    softplus = [0.0, math.log1p(math.exp(-1)), math.log(2), 2 + math.log1p(math.exp(-2)), 800.0]
    np.testing.assert_allclose(ACTIVATIONS["softplus"].value(z), softplus, rtol=1e-15)
    assert ACTIVATIONS["relu"].slope(np.zeros(1)) == 0.0  # the convention at the kink


STAGES: list[Stage] = [
    Dense(3, 4),
    Dense(3, 4, bias=False),
    *(Elementwise(3, name) for name in sorted(ACTIVATIONS)),
    LogSoftmax(3),
]


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_stage_jacobians_pullback_and_costs(stage: Stage, rng: np.random.Generator) -> None:
    """A, B by a complex step of f; pullback by A', B'; Q, R, M by a complex step of pullback."""
    x, w = rng.standard_normal((2, stage.inputs)), rng.standard_normal(stage.size)
    costate = rng.standard_normal((2, stage.outputs))
    A, B = stage.jacobians(w, x)
    Q, R, M = stage.costs(w, x, costate)
    by_x, by_w = stage.pullback(w, x, costate)
    np.testing.assert_allclose(by_x.ravel(), A.T @ costate.ravel(), atol=1e-14)
    np.testing.assert_allclose(by_w, B.T @ costate.ravel(), atol=1e-14)
    for j in range(x.size):
        moved = x + 1j * STEP * np.eye(x.size)[j].reshape(x.shape)
        np.testing.assert_allclose(A[:, j], stage.forward(w, moved).imag.ravel() / STEP, atol=1e-14)
        pulled_x, pulled_w = stage.pullback(w, moved, costate)
        np.testing.assert_allclose(Q[:, j], pulled_x.imag.ravel() / STEP, atol=1e-14)
        np.testing.assert_allclose(M[:, j], pulled_w.imag / STEP, atol=1e-14)
    for j in range(stage.size):
        moved = w + 1j * STEP * np.eye(stage.size)[j]
        np.testing.assert_allclose(B[:, j], stage.forward(moved, x).imag.ravel() / STEP, atol=1e-14)
        pulled_x, pulled_w = stage.pullback(moved, x, costate)
        np.testing.assert_allclose(M[j], pulled_x.imag.ravel() / STEP, atol=1e-14)
        np.testing.assert_allclose(R[:, j], pulled_w.imag / STEP, atol=1e-14)


def test_who_has_which_terms(rng: np.random.Generator) -> None:
    """Dense stages: only M. Smooth activations: only a diagonal Q. ReLU: none."""
    network, w, x, y = example(rng, activation=("tanh", "relu", "identity"))  # type: ignore[arg-type]
    problem = layerwise_lqr(network, w, x, y, divergence="newton")
    for i, stage in enumerate(network.stages):
        if isinstance(stage, Dense):
            assert not problem.Q[i].any()
            assert not problem.R[i].any()
            assert np.abs(problem.M[i]).max() > 1e-3
        else:
            assert problem.R[i].size == problem.M[i].size == 0
            assert isinstance(stage, Elementwise)
            assert problem.Q[i].any() == (stage.name == "tanh")
            assert not (problem.Q[i] - np.diag(np.diag(problem.Q[i]))).any()


@pytest.mark.parametrize("divergence", ["gauss-newton", "fisher"])
def test_output_divergences_have_only_a_terminal_cost(divergence: str, rng: np.random.Generator) -> None:
    network, w, x, y = example(rng)
    problem = layerwise_lqr(network, w, x, y, divergence=divergence)
    assert not any(cost.any() for cost in (*problem.Q[:-1], *problem.R, *problem.M))
    assert np.abs(problem.Q[-1]).max() > 1e-3


def test_fisher_on_log_probabilities_moves_into_the_log_softmax_stage(rng: np.random.Generator) -> None:
    logits, w, x, y = example(rng)
    logs = Network(logits.widths, loss="negative-log-likelihood")
    ends_in_logits = layerwise_lqr(logits, w, x, y, divergence="fisher")
    ends_in_logs = layerwise_lqr(logs, w, x, y, divergence="fisher")
    assert not ends_in_logs.Q[-1].any()
    np.testing.assert_allclose(ends_in_logs.Q[-2], ends_in_logits.Q[-1], atol=1e-15)
    assert max(np.abs(cost).max(initial=0.0) for cost in (*ends_in_logs.Q[:-2], *ends_in_logs.M)) < 1e-16
    assert abs(logs.value(w, x, y) - logits.value(w, x, y)) < 1e-15
    np.testing.assert_allclose(logs.gradient(w, x, y), logits.gradient(w, x, y), atol=1e-16)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradient_is_the_complex_step_of_the_value(
    loss: str, activation: str, rng: np.random.Generator
) -> None:
    network, w, x, y = example(rng, loss=loss, activation=activation)
    forward = [
        network.end.value(network.states(w + 1j * STEP * direction, x)[-1], network.targets(x, y)).imag / STEP
        for direction in np.eye(network.dimension)
    ]
    np.testing.assert_allclose(network.gradient(w, x, y), forward, atol=1e-14)


def test_costates_are_the_adjoint_recursion(rng: np.random.Generator) -> None:
    network, w, x, y = example(rng)
    problem = layerwise_lqr(network, w, x, y)
    costates = [costate.ravel() for costate in network.costates(w, x, y)]
    for i in range(problem.horizon):
        np.testing.assert_allclose(costates[i], problem.A[i].T @ costates[i + 1], atol=1e-15)
    gradient = np.concatenate([B.T @ costate for B, costate in zip(problem.B, costates[1:], strict=True)])
    np.testing.assert_allclose(network.gradient(w, x, y), gradient, atol=1e-15)


def test_label_smoothing_and_squared_error_by_definition(rng: np.random.Generator) -> None:
    _, w, x, y = example(rng)
    smooth = Network((4, 6, 5, 3), label_smoothing=0.3)
    z = smooth.states(w, x)[-1]
    log_pi = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    truth = -np.mean([0.7 * row[label] + 0.1 * row.sum() for row, label in zip(log_pi, y, strict=True)])
    assert abs(smooth.value(w, x, y) - truth) < 1e-15 * 4
    squared, w, x, target = example(rng, loss="squared-error")
    truth = np.mean(np.sum((squared.states(w, x)[-1] - target) ** 2, axis=1))
    assert abs(squared.value(w, x, target) - truth) < 1e-14


def test_huge_logits_do_not_overflow() -> None:
    network = Network((1, 2), bias=False)
    w, x, y = np.array([1000.0, -1000.0]), np.ones((1, 1)), np.array([1])
    assert network.value(w, x, y) == 2000.0
    np.testing.assert_array_equal(network.gradient(w, x, y), [1.0, -1.0])


def test_weights_unflatten_and_flatten(rng: np.random.Generator) -> None:
    for network in (Network((4, 6, 5, 3)), Network((4, 6, 5, 3), bias=False, activation="relu")):
        w = network.random_weights(rng)
        layers = network.unflatten(w)
        assert [W.shape for W, _ in layers] == [(6, 4), (5, 6), (3, 5)]
        np.testing.assert_array_equal(network.flatten(layers), w)
        assert network.dimension == w.size == sum(part.size for layer in layers for part in layer)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_golden_forward_and_gradient(activation: str) -> None:
    numbers = golden.numbers()
    network = Network(golden.WIDTHS, activation=activation)
    w = network.flatten([(numbers[f"W{i}"].T, numbers[f"b{i}"]) for i in range(3)])
    np.testing.assert_array_equal(w, golden.ours(numbers[f"{activation}/theta"]))
    x, y = numbers["x"], numbers["y"]
    assert abs(network.value(w, x, y) - float(numbers[f"{activation}/loss"])) < 1e-14
    np.testing.assert_allclose(network.gradient(w, x, y), golden.ours(numbers[f"{activation}/g"]), atol=1e-14)
    log_probabilities = Network(golden.WIDTHS, activation=activation, loss="negative-log-likelihood")
    np.testing.assert_allclose(log_probabilities.states(w, x)[-1], numbers[f"{activation}/logp"], atol=1e-14)
