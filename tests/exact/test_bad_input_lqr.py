"""What lqr, network and curvature say of bad input: the argument, its value, the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llqr_sam_ref.exact import curvature, lqr
from llqr_sam_ref.exact.network import Network, layerwise_lqr

NETWORK = Network((3, 4, 2))
SQUARED = Network((3, 4, 2), loss="squared-error")
W, X, Y = np.full(NETWORK.dimension, 0.1), np.ones((5, 3)), np.array([0, 1, 0, 1, 1])
CART = lqr.Problem.repeated(3, A=1, B=1, Q=1, R=1)
NAN = float("nan")


def with_nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    copy = array.astype(float)
    copy.flat[1] = NAN
    return copy


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "no stages": (lambda: lqr.Problem([], [], [1], []), r"A=\(\) has no stage"),
    "a missing B": (
        lambda: lqr.Problem([1, 1], [1], [1, 1, 1], [1, 1]),
        "B has 1 entries; with 2 stages it needs 2",
    ),
    "no terminal Q": (
        lambda: lqr.Problem([1, 1], [1, 1], [1, 1], [1, 1]),
        "Q has 2 entries.*last state included",
    ),
    "wrong shape": (
        lambda: lqr.Problem([np.eye(2)], [np.ones((2, 1))], [np.eye(2), np.eye(3)], [1]),
        r"Q\[1\] has shape \(3, 3\); its neighbors ask for \(2, 2\)",
    ),
    "M transposed": (
        lambda: lqr.Problem([np.eye(2)], [np.ones((2, 1))], [np.eye(2)] * 2, [1], M=[np.ones((2, 1))]),
        r"M\[0\] has shape \(2, 1\); its neighbors ask for \(1, 2\)",
    ),
    "NaN in A": (lambda: lqr.Problem([NAN], [1], [1, 1], [1]), r"A\[0\] holds nan"),
    "infinite slope": (lambda: lqr.Problem([1], [1], [1, 1], [1], q=[0, np.inf]), r"q\[1\] holds inf"),
    "complex B": (lambda: lqr.Problem([1], [1j], [1, 1], [1]), r"B\[0\].*real numbers"),
    "text": (lambda: lqr.Problem(["a"], [1], [1, 1], [1]), r"A\[0\].*real numbers"),
    "ragged": (lambda: lqr.Problem([[[1, 2], [3]]], [1], [1, 1], [1]), r"A\[0\].*real numbers"),
    "Q not symmetric": (
        lambda: lqr.Problem([np.eye(2)], [np.eye(2)], [np.eye(2), [[1, 2], [0, 1]]], [np.eye(2)]),
        r"Q\[1\] is not symmetric.*pass \(Q\[1\] \+ Q\[1\].T\) / 2",
    ),
    "zero stages repeated": (lambda: lqr.Problem.repeated(0, A=1, B=1, Q=1, R=1), "stages=0.*at least 1"),
    "too few controls": (lambda: lqr.rollout(CART, [1.0]), "u has 1 entries; the problem has 3 stages"),
    "a control too long": (lambda: lqr.cost(CART, [1, [1, 2], 1]), r"u\[1\] has shape \(2,\).*\(1,\)"),
    "a step too long": (lambda: lqr.curvature_product(CART, np.ones(4)), r"step has shape \(4,\).*\(3,\)"),
    "x0 too long": (lambda: lqr.solve(CART, np.ones(2)), r"x0 has shape \(2,\).*\(1,\)"),
    "NaN in x0": (lambda: lqr.solve(CART, NAN), "x0 holds nan"),
    "negative damping of a problem": (lambda: lqr.damped(CART, -1.0), r"mu=-1\.0"),
    "NaN damping of a problem": (lambda: lqr.damped(CART, NAN), "mu=nan"),
    "indefinite stage": (
        lambda: lqr.solve(lqr.Problem.repeated(2, A=1, B=1, Q=-3, R=1)),
        r"stage 1 of 2 is indefinite.*R~ is -2.*damping of \S+ on every R_i",
    ),
    "singular stage": (
        lambda: lqr.solve(lqr.Problem([1], [0], [1, 1], [0])),
        "stage 0 of 1 is singular.*damping of",
    ),
    "random problem without stages": (
        lambda: lqr.random_problem(0, 2, 2, np.random.default_rng(0)),
        "stages=0.*at least 1",
    ),
    "one width": (lambda: Network((3,)), r"widths=\(3,\) is too short"),
    "zero width": (lambda: Network((3, 0, 2)), r"widths\[1\]=0"),
    "unknown activation": (
        lambda: Network((3, 4, 2), "tahn"),
        "activation='tahn' is unknown; did you mean 'tanh'",
    ),
    "too many activations": (
        lambda: Network((3, 4, 2), ("tanh",) * 3),
        "has 3 names; give one name, or one for each of the 2",
    ),
    "unknown loss": (lambda: Network((3, 2), loss="crossentropy"), "did you mean 'cross-entropy'"),
    "smoothing of one": (lambda: Network((3, 2), label_smoothing=1.0), r"label_smoothing=1\.0"),
    "negative smoothing": (lambda: Network((3, 2), label_smoothing=-0.1), r"label_smoothing=-0\.1"),
    "smoothing without classes": (
        lambda: Network((3, 2), loss="squared-error", label_smoothing=0.1),
        r"label_smoothing=0\.1 needs classes; pass 0",
    ),
    "w too short": (
        lambda: NETWORK.value(W[:-1], X, Y),
        r"w has shape \(25,\); pass a vector of shape \(26,\)",
    ),
    "complex w too short": (
        lambda: NETWORK.states(1j * W[:-1], X),
        r"w has shape \(25,\); pass a vector of shape \(26,\)",
    ),
    "NaN in w": (lambda: NETWORK.gradient(with_nan(W), X, Y), "w holds nan at index"),
    "NaN in complex w": (lambda: NETWORK.states(with_nan(W) + 0j, X), "w holds nan at index"),
    "x too wide": (lambda: NETWORK.states(W, np.ones((5, 4))), r"x has shape \(5, 4\).*\(m, 3\)"),
    "one example without its batch": (lambda: NETWORK.states(W, np.ones(3)), r"x has shape \(3,\)"),
    "NaN in x": (lambda: NETWORK.gradient(W, with_nan(X), Y), "x holds nan at index"),
    "too few labels": (lambda: NETWORK.value(W, X, Y[:-1]), r"y has shape \(4,\).*pass 5 integer labels"),
    "labels that are not integers": (
        lambda: NETWORK.value(W, X, Y + 0.0),
        "y has .*float64; pass 5 integer labels",
    ),
    "a label out of range": (
        lambda: NETWORK.value(W, X, Y + 1),
        "y holds labels from 1 to 2.*classes 0 to 1",
    ),
    "values of the wrong width": (
        lambda: SQUARED.value(W, X, np.ones((5, 3))),
        r"y has shape \(5, 3\).*\(5, 2\)",
    ),
    "labels for squared error": (lambda: SQUARED.gradient(W, X, Y), r"y has shape \(5,\)"),
    "NaN in y": (lambda: SQUARED.gradient(W, X, with_nan(np.ones((5, 2)))), "y holds nan at index"),
    "layers of another network": (
        lambda: NETWORK.flatten([(np.ones((4, 3)), np.ones(4)), (np.ones((4, 2)), np.ones(2))]),
        r"layers has \(kernel, bias\) shapes .*\(4, 2\).*; pass .*\(2, 4\)",
    ),
    "unknown divergence": (
        lambda: layerwise_lqr(NETWORK, W, X, Y, divergence="gauss_newton"),
        "divergence='gauss_newton' is unknown; did you mean 'gauss-newton'",
    ),
    "negative damping": (lambda: layerwise_lqr(NETWORK, W, X, Y, damping=-0.1), r"damping=-0\.1"),
    "NaN damping": (lambda: layerwise_lqr(NETWORK, W, X, Y, damping=NAN), "damping=nan"),
    "metric on the data": (
        lambda: layerwise_lqr(NETWORK, W, X, Y, intermediate={0: 1.0}),
        "intermediate has a metric for state 0; weights move the states 1, ..., 3",
    ),
    "metric of the wrong size": (
        lambda: layerwise_lqr(NETWORK, W, X, Y, intermediate={1: np.eye(4)}),
        r"intermediate\[1\] has shape \(4, 4\).*\(20, 20\)",
    ),
    "NaN metric": (
        lambda: layerwise_lqr(NETWORK, W, X, Y, intermediate={1: NAN}),
        r"intermediate\[1\] holds nan",
    ),
    "indefinite model": (
        lambda: lqr.solve(layerwise_lqr(NETWORK, W, X, Y)),
        r"stage \d of 3 is (indefinite|singular): the smallest eigenvalue.*damping of",
    ),
    "unknown route": (
        lambda: curvature.hessian(NETWORK, W, X, Y, route="complexstep"),
        "route='complexstep' is unknown; did you mean 'complex-step'",
    ),
    "a route of another matrix": (
        lambda: curvature.fisher(NETWORK, W, X, route="complex-step"),
        "route='complex-step'",
    ),
    "no such state": (
        lambda: curvature.jacobian(NETWORK, W, X, state=4),
        r"state=4 does not exist; pass 0, \.\.\., 3",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_with_its_remedy(case: str) -> None:
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        call()
