"""LLQR and LLQR+SAM over whole training steps on a small network: what any implementation must reproduce."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from jaxtyping import Float

from llqr_sam_ref.config import ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.curvature import fisher, hessian
from llqr_sam_ref.exact.geometry import Learned, ascent_step
from llqr_sam_ref.exact.llqr import HeavyBall, State, perturbation, refit, refit_due, start, step_rule, update
from llqr_sam_ref.exact.network import Network
from llqr_sam_ref.exact.preconditioner import Block, Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.probes import micro_batch_gradients, sample_labels
from llqr_sam_ref.exact.structures import Diagonal
from tests.exact.relaxed import NAMES, random_preconditioner

NET = Network((6, 5, 3))
LAYERS = (((5, 6), (5,)), ((3, 5), (3,)))
X = np.random.default_rng(1).standard_normal((16, 6))
Y = np.random.default_rng(2).integers(0, 3, 16)
W = NET.random_weights(np.random.default_rng(3))
SIZE = W.size


def model(w: Array) -> Float[np.ndarray, "n k"]:
    """Class probabilities of all examples."""
    logits = NET.states(w, X)[-1]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Float[np.ndarray, "n k"] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def probes_at(
    config: LLQRConfig, w: Array, uniforms: Array, loss_scale: float = 1.0
) -> Float[np.ndarray, "k d"]:
    labels = sample_labels(model(w), uniforms) if config.probe_vector == "sampled" else Y
    return loss_scale * micro_batch_gradients(lambda x, y: NET.gradient(w, x, y), X, labels, config.probes)


def train(
    config: LLQRConfig,
    steps: int,
    *,
    eta: float = 0.01,
    base: HeavyBall | None = None,
    rho: float = 0.0,
    loss_scale: float = 1.0,
    U_scale: float = 1.0,
) -> list[State]:
    """The loop that a user writes, all randomness from one seed."""
    rng = np.random.default_rng(4)
    state = start(config, W, LAYERS)
    history = [state]
    for _ in range(steps):
        if refit_due(config, state):
            curvature = None
            if isinstance(config.solver, InnerLoop):
                matrix = (
                    hessian(NET, state.w, X, Y)
                    if config.solver.divergence == "newton"
                    else fisher(NET, state.w, X)
                )
                curvature = loss_scale * matrix
            probes = probes_at(config, state.w, rng.random(len(X)), loss_scale)
            state = refit(config, state, probes, len(X), curvature)
            if U_scale != 1:
                state = replace(state, U=scaled(state.U, U_scale))
        g = loss_scale * NET.gradient(state.w, X, Y)
        if rho:
            away = state.w + perturbation(state.U, g, rho)
            g = loss_scale * NET.gradient(away, X, Y)
        state = update(config, state, g, eta, base)
        history.append(state)
    return history


def scaled(U: Preconditioner, factor: float) -> Preconditioner:
    keys = {"u", "d", "D", "U", "d_Psi", "Psi"}
    return U.with_arrays([
        {key: factor * a if key in keys else a for key, a in block.arrays.items()} for block in U.blocks
    ])


def test_fifty_steps_of_the_default_against_a_second_writing_of_it() -> None:
    """Sampled labels now and then, transcribed with running sums, bias corrections and a momentum average."""
    config = LLQRConfig.sampled(
        every=3,
        probes=4,
        curvature_memory=1 / (1 - 0.95 ** (1 / 3)),
        basis_memory=1 / (1 - 0.8 ** (1 / 15)),
        gram_every=15,
        basis_every=15,
    )
    rng = np.random.default_rng(4)
    w, M = W.copy(), np.zeros(SIZE)
    shapes = [shape for layer in LAYERS for shape in layer]
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    grams = {i: [np.zeros((side, side)) for side in s] for i, s in enumerate(shapes) if len(s) == 2}
    bases = {i: [np.eye(side) for side in shapes[i]] for i in grams}
    raw = [np.zeros(shape) for shape in shapes]
    drawn, d = 0, [np.ones(shape) for shape in shapes]
    states = train(config, 50)
    for step in range(50):
        if step % 3 == 0:
            number = step // 3 + 1
            labels = sample_labels(model(w), rng.random(16))
            flat = [NET.gradient(w, X[4 * j : 4 * j + 4], labels[4 * j : 4 * j + 4]) for j in range(4)]
            V = [[p.reshape(s) for p, s in zip(np.split(v, cuts), shapes, strict=True)] for v in flat]
            if number in {1, 2} or number % 5 == 0:
                drawn += 1
                for i in grams:
                    L = 4 / 4 * sum(v[i] @ v[i].T for v in V)
                    R = 4 / 4 * sum(v[i].T @ v[i] for v in V)
                    fresh = []
                    for side, sample in enumerate((L, R)):
                        grams[i][side] = 0.8 * grams[i][side] + 0.2 * sample
                        gram = grams[i][side] / (1 - 0.8**drawn)
                        ridge = np.diag(np.linspace(1e-7, 2e-7, len(gram)))
                        fresh.append(np.linalg.eigh(gram / np.trace(gram) + ridge)[1])
                    left = (fresh[0].T @ bases[i][0]) ** 2
                    right = (fresh[1].T @ bases[i][1]) ** 2
                    raw[i] = left @ raw[i] @ right.T
                    bases[i] = fresh
            for i, shape in enumerate(shapes):
                sample = np.zeros(shape)
                for v in V:
                    turned = bases[i][0].T @ v[i] @ bases[i][1] if i in bases else v[i]
                    sample = sample + 4 / 4 * turned**2
                raw[i] = 0.95 * raw[i] + 0.05 * sample
            c = [r / (1 - 0.95**number) for r in raw]
            lam = 0.03 * sum(part.sum() for part in c) / SIZE
            d = [1 / (part + lam) for part in c]
        g = NET.gradient(w, X, Y)
        M = 0.9 * M + 0.1 * g
        ahead = [p.reshape(s) for p, s in zip(np.split(0.9 * M + 0.1 * g, cuts), shapes, strict=True)]
        S = np.concatenate([
            (
                bases[i][0] @ (d[i] * (bases[i][0].T @ m @ bases[i][1])) @ bases[i][1].T
                if i in bases
                else d[i] * m
            ).ravel()
            for i, m in enumerate(ahead)
        ])
        w = w - 0.01 * S * np.sqrt(SIZE) / np.linalg.norm(S)
        np.testing.assert_allclose(states[step + 1].w, w, rtol=1e-9, atol=1e-9)
    assert NET.value(w, X, Y) < 0.5 * NET.value(W, X, Y)


def test_the_published_order_of_decay_and_momentum() -> None:
    """U g, then decay added to it, then heavy ball; U from the published inner loop, guarded and averaged."""
    config, base = LLQRConfig.published(every=10), HeavyBall(beta=0.9, nesterov=False, wd=0.01)
    states = train(config, 25, eta=0.1, base=base)
    w, m, d = W.copy(), np.zeros(SIZE), np.ones(SIZE)
    for step in range(25):
        if step % 10 == 0:
            g, G = NET.gradient(w, X, Y), 16 * fisher(NET, w, X)
            u, v = d.copy(), np.zeros(SIZE)
            for _ in range(50):
                pull = (G @ (u * g) - g) * g
                for layer in (slice(0, 35), slice(35, 53)):
                    pull[layer] *= min(1.0, 5 / np.linalg.norm(pull[layer]))
                v = 0.9 * v + pull
                u = u - 1e-3 * v
            d = np.maximum(0.95 * d + 0.05 * u, 1e-8)
        m = 0.9 * m + d * NET.gradient(w, X, Y) + 0.01 * w
        w = w - 0.1 * m
        np.testing.assert_allclose(states[step + 1].w, w, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(states[step + 1].U.to_dense(), np.diag(d), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("acts_on", ["update", "gradient"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "solver", [ClosedForm(), InnerLoop(damping=0.01, lr=0.05, ema=0.5)], ids=lambda s: type(s).__name__
)
def test_every_structure_descends_with_a_positive_preconditioner(
    name: str, solver: ClosedForm | InnerLoop, acts_on: str
) -> None:
    config = LLQRConfig(structure=name, solver=solver, acts_on=acts_on, every=5, probes=4)
    history = train(config, 20, eta=0.02 if acts_on == "update" else 0.003)
    g = NET.gradient(W, X, Y)
    for state in history:
        assert g @ state.U.apply(g) > 0
    assert np.abs(history[-1].U.to_dense() - np.eye(SIZE)).max() > 0.01
    assert NET.value(history[-1].w, X, Y) < NET.value(W, X, Y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("divergence", ["fisher", "newton"])
def test_the_published_inner_loop_runs_on_indefinite_curvature_too(name: str, divergence: str) -> None:
    config = LLQRConfig.published(structure=name, divergence=divergence, every=5)
    assert isinstance(config.solver, InnerLoop)
    assert (config.reduction, config.solver.ema) == (
        ("mean", 0.9) if divergence == "newton" else ("sum", 0.95)
    )
    base = HeavyBall(nesterov=False)
    history = train(config, 20, eta=0.1, base=base)
    assert np.linalg.eigvalsh(hessian(NET, W, X, Y)).min() < 0
    assert all(np.all(np.isfinite(state.w)) for state in history)
    assert not np.array_equal(history[-1].U.to_dense(), np.eye(SIZE))
    assert NET.value(history[-1].w, X, Y) < NET.value(W, X, Y)


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_loss_and_of_U_cannot_matter(name: str) -> None:
    """Default LLQR+SAM: the same steps for L, 1000 L and L/1000, and for U and 7 U."""
    config = LLQRConfig(structure=name, every=4, probes=4)
    plain = train(config, 12, rho=0.1)
    for other in (
        train(config, 12, rho=0.1, loss_scale=1e3),
        train(config, 12, rho=0.1, loss_scale=1e-3),
        train(config, 12, rho=0.1, U_scale=7.0),
    ):
        np.testing.assert_allclose(other[-1].w, plain[-1].w, rtol=1e-9, atol=1e-10)
    assert np.abs(train(config, 12)[-1].w - plain[-1].w).max() > 1e-5


def test_sum_or_mean_cannot_matter_for_the_default_and_does_for_the_published() -> None:
    default = [train(LLQRConfig(reduction=r, every=4, probes=4), 8)[-1].w for r in ("mean", "sum")]
    np.testing.assert_allclose(default[0], default[1], rtol=1e-10, atol=1e-11)
    published = [train(LLQRConfig.published(reduction=r, every=4), 8)[-1].w for r in ("mean", "sum")]
    assert np.abs(published[0] - published[1]).max() > 1e-5


def test_the_learning_rate_is_the_rms_change_of_a_weight() -> None:
    for rule in ("rms", "rms-per-tensor"):
        history = train(LLQRConfig(step_rule=rule, every=4, probes=4), 6, eta=0.003)
        for before, after in itertools.pairwise(history):
            move = after.w - before.w
            np.testing.assert_allclose(np.sqrt(np.mean(move**2)), 0.003, rtol=1e-12)
            parts = [np.sqrt(np.mean(part**2)) for part in np.split(move, [30, 35, 50])]
            assert np.allclose(parts, 0.003, rtol=1e-12) == (rule == "rms-per-tensor")


def test_an_array_that_rounding_alone_keeps_from_zero_stays_small() -> None:
    S, shapes = np.array([3.0, 4.0, 4e-16, 4e-6]), ((2,), (1,), (1,))
    step = step_rule("rms-per-tensor", S, S, shapes)
    s, eps = 5 / np.sqrt(2), np.finfo(np.float64).eps
    np.testing.assert_allclose(step[:2], S[:2] / s, rtol=1e-12)
    np.testing.assert_allclose(step[2], 4e-16 / (s * np.sqrt(eps)), rtol=1e-12)
    np.testing.assert_allclose(step[3], 1.0, rtol=1e-4)


def test_the_step_rules_by_hand() -> None:
    S, v, shapes = np.array([3.0, 0.0, 4.0]), np.array([0.0, 6.0, 8.0]), ((2,), (1,))
    np.testing.assert_allclose(step_rule("rms", S, v, shapes), S * np.sqrt(3) / 5)
    np.testing.assert_allclose(step_rule("rms-per-tensor", S, v, shapes), [np.sqrt(2), 0, 1])
    np.testing.assert_allclose(step_rule("graft", S, v, shapes), 2 * S)
    assert step_rule("none", S, v, shapes) is S
    for rule in ("rms", "rms-per-tensor", "graft", "none"):
        assert np.array_equal(step_rule(rule, 0 * S, v, shapes), np.zeros(3))


def test_without_a_refit_it_is_the_base_optimizer_and_with_the_identity_sam() -> None:
    for nesterov in (False, True):
        base = HeavyBall(beta=0.8, nesterov=nesterov, wd=0.02)
        config = LLQRConfig.published()
        state, w, m = start(config, W, LAYERS), W.copy(), np.zeros(SIZE)
        for _ in range(10):
            epsilon = perturbation(state.U, NET.gradient(w, X, Y), 0.05)
            np.testing.assert_allclose(epsilon, ascent_step(NET.gradient(w, X, Y), 0.05), rtol=1e-12)
            g = NET.gradient(w + epsilon, X, Y)
            state = update(config, state, g, 0.1, base)
            v = g + 0.02 * w
            m = 0.8 * m + v
            w = w - 0.1 * (v + 0.8 * m if nesterov else m)
            np.testing.assert_allclose(state.w, w, rtol=1e-12, atol=1e-14)


def test_the_update_mode_decays_outside_of_the_step_rule() -> None:
    config, base = LLQRConfig(step_rule="rms"), HeavyBall(beta=0.0, nesterov=False, wd=0.5)
    g = NET.gradient(W, X, Y)
    state = update(config, start(config, W, LAYERS), g, 0.01, base)
    np.testing.assert_allclose(
        state.w, W - 0.01 * (g * np.sqrt(SIZE) / np.linalg.norm(g) + 0.5 * W), rtol=1e-12
    )
    still = update(config, start(config, W, LAYERS), np.zeros(SIZE), 0.01, base)
    np.testing.assert_allclose(still.w, (1 - 0.005) * W, rtol=1e-12)


def test_refits_are_due_once_a_period_and_stay_due() -> None:
    config = LLQRConfig.published(every=3)
    state, due = start(config, W, LAYERS), []
    for step in range(10):
        if refit_due(config, state):
            due.append(step)
            if step != 3:  # missed
                state = replace(state, last_refit=state.steps)
        state = update(config, state, np.zeros(SIZE), 0.0)
    assert due == [0, 3, 4, 6, 9]


@pytest.mark.parametrize("name", NAMES)
def test_probes_of_zero_teach_nothing(name: str) -> None:
    config = LLQRConfig(structure=name, probes=2)
    state = refit(config, start(config, W, LAYERS), np.zeros((2, SIZE)), 16)
    np.testing.assert_array_equal(state.U.to_dense(), np.eye(SIZE))
    assert state.last_refit == 0
    later = refit(config, state, np.ones((2, SIZE)), 16)
    assert np.all(np.isfinite(later.U.to_dense()))


def test_a_cold_start_forgets_where_U_was() -> None:
    g, F = NET.gradient(W, X, Y), fisher(NET, W, X)
    cold = LLQRConfig.published(warm_start=False, ema=0.0, structure="ekfac")
    once = refit(cold, start(cold, W, LAYERS), g, 16, F)
    twice = refit(cold, once, g, 16, F)
    np.testing.assert_array_equal(once.U.to_dense(), twice.U.to_dense())
    warm = cold.replace(warm_start=True)
    assert np.abs(refit(warm, once, g, 16, F).U.to_dense() - once.U.to_dense()).max() > 1e-6


def test_the_guard_is_for_published_scalars_and_diagonals_and_can_be_waived() -> None:
    g, F = 10 * NET.gradient(W, X, Y), fisher(NET, W, X)
    lowest = {}
    for allowed in (False, True):
        config = LLQRConfig.published(ema=0.0, lr=0.1, allow_inversion=allowed)
        state = refit(config, start(config, W, LAYERS), g, 16, F)
        lowest[allowed] = float(np.diag(state.U.to_dense()).min())
    assert lowest[False] == 1e-8
    assert lowest[True] < 0


def test_the_curvature_is_that_of_the_mean_loss_or_n_times_that(rng: np.random.Generator) -> None:
    """With absolute damping the scale is visible: c averages m V^2, and n times that when summed."""
    V = rng.standard_normal((4, SIZE))
    for reduction, factor in (("mean", 1.0), ("sum", 16.0)):
        config = LLQRConfig(
            structure="diagonal",
            solver=ClosedForm(damping=0.5, damping_kind="absolute"),
            probes=4,
            reduction=reduction,
        )
        state = refit(config, start(config, W, LAYERS), V, 16)
        c = factor * 4 * np.mean(V**2, axis=0)
        np.testing.assert_allclose(np.diag(state.U.to_dense()), 1 / (c + 0.5), rtol=1e-13)


# The seam, and the numbers of the book


def test_the_perturbation_is_the_seam_with_the_inverse_of_U(rng: np.random.Generator) -> None:
    U = random_preconditioner("kronecker", rng, positive=True)
    v = rng.standard_normal(U.size)
    np.testing.assert_allclose(Learned(U).multiply(Learned(U).solve(v)), v, rtol=1e-6, atol=1e-8)
    dual = perturbation(U, v, 0.3, "dual")
    np.testing.assert_allclose(dual @ Learned(U).multiply(dual), 0.09, rtol=1e-6)
    euclidean = perturbation(U, v, 0.3)
    np.testing.assert_allclose(np.linalg.norm(euclidean), 0.3, rtol=1e-13)
    np.testing.assert_allclose(np.cross(dual[:3], euclidean[:3]), 0, atol=1e-13)
    assert not np.any(perturbation(U, np.zeros(U.size), 0.3))
    assert not np.any(perturbation(U, np.zeros(U.size), 0.3, "dual"))


def test_who_gets_the_radius() -> None:
    g = np.array([10.0, 1.2])
    U = Preconditioner((Block(Diagonal(), (2,), {"d": np.array([0.1, 20.0])}),))
    raw = perturbation(U.identity(), g, 1.0)
    assert round(float(raw[1]), 6) == 0.119145
    np.testing.assert_allclose(perturbation(U, g, 1.0), [0.0416, 0.9991], atol=5e-5)
    np.testing.assert_allclose(perturbation(U, g, 1.0, "dual"), [0.1605, 3.8530], atol=5e-5)
    hundred = scaled(U, 100.0)
    np.testing.assert_allclose(perturbation(hundred, g, 1.0), perturbation(U, g, 1.0), rtol=1e-14)
    np.testing.assert_allclose(
        perturbation(hundred, g, 1.0, "dual"), 10 * perturbation(U, g, 1.0, "dual"), rtol=1e-14
    )
    np.testing.assert_allclose(hundred.apply(g), 100 * U.apply(g), rtol=1e-14)


def test_decay_is_divided_by_U() -> None:
    for u, rest in ((0.1, 0.667), (1.0, 0.952), (10.0, 0.995)):
        config, base = LLQRConfig.published(), HeavyBall(beta=0.0, nesterov=False, wd=0.05)
        state = start(config, np.zeros(1), [[(1,)]])
        state = replace(state, U=scaled(identity_preconditioner([[(1,)]], "diagonal"), u))
        for _ in range(3000):
            state = update(config, state, state.w - 1.0, 0.1, base)
        assert round(float(state.w[0]), 3) == rest
