"""Part 4, LLQR: the relaxed objective, its probes and its early end, each result with its mutation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import curvature, curvature_estimate, lqr, optima
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.network import Network, layerwise_lqr
from llqr_sam_ref.exact.preconditioner import Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.relaxation import inner_loop, relaxed_gradient, relaxed_objective
from tests.exact.numerical import relative
from tests.exact.relaxed import NAMES, random_like, random_spd, random_symmetric
from tests.theorems.catalogue import mutation


def _norm(v: Array) -> float:
    return float(np.linalg.norm(v))


def _whole(name: str, array: Array) -> Preconditioner:
    """A dense or diagonal U over all weights, its one stored array given."""
    key = {"dense": "U", "diagonal": "d"}[name]
    return identity_preconditioner([[(len(array),)]], name).with_arrays([{key: array}])


def _gap(away: Array, damped: Array) -> float:
    return float(away @ damped @ away / 2)


@mutation("the gap is Euclidean", gap=lambda away, damped: float(away @ away / 2))
def test_thm_relaxed_objective(gap: Callable[[Array, Array], float] = _gap) -> None:
    """The controls -U g cost J(U) on the network; the excess over the minimum is half a squared length."""
    network, rng = Network((4, 6, 5, 3)), np.random.default_rng(500)
    layers = [[W.shape, b.shape] for W, b in network.unflatten(np.zeros(network.dimension))]
    w = network.random_weights(rng) + 0.1 * rng.standard_normal(network.dimension)
    x, y = rng.standard_normal((5, 4)), rng.integers(0, 3, 5)
    g, G, mu = network.gradient(w, x, y), curvature.ggn(network, w, x, y, route="complex-step"), 0.1
    damped = G + mu * np.eye(len(g))
    problem = layerwise_lqr(network, w, x, y, divergence="gauss-newton", damping=mu)
    best = np.linalg.solve(damped, g)
    for name in NAMES:
        U = random_like(identity_preconditioner(layers, name), rng)
        J = relaxed_objective(U, g, G, mu)
        assert abs(lqr.cost(problem, network.blocks(-U.apply(g))) - J) < 1e-11 * (1 + abs(J))
        excess = J + g @ best / 2
        assert abs(excess - gap(U.apply(g) - best, damped)) < 1e-10 * (1 + excess)


@mutation("a positive definite curvature", draw=random_spd)
def test_cex_newton_unbounded(draw: Callable[[np.random.Generator, int], Array] = random_symmetric) -> None:
    """Along a direction of negative curvature J falls like t^2, for a dense U and for a diagonal one."""
    rng = np.random.default_rng(501)
    G, g = draw(rng, 12), rng.standard_normal(12)
    v = np.linalg.eigh(G)[1][:, 0]
    for name, start, along in (
        ("dense", np.eye(12), np.outer(v, g) / (g @ g)),
        ("diagonal", np.ones(12), v / g),
    ):
        near, far = (relaxed_objective(_whole(name, start + t * along), g, G) for t in (1e2, 1e3))
        assert far < -1e4
        assert 85 < far / near < 115


@mutation("the target is -s*", target=lambda s: -s)
def test_thm_one_probe_underdetermined(target: Callable[[Array], Array] = lambda s: s) -> None:
    """Positive definite minimizers, one for each form on the complement of g, far apart."""
    rng = np.random.default_rng(502)
    for _ in range(10):
        G, g = random_spd(rng, 6), rng.standard_normal(6)
        best = np.linalg.solve(G, g)
        s = target(best)
        off = np.eye(6) - np.outer(g, g) / (g @ g)
        first, second = (
            np.outer(s, s) / (g @ s) + scale * off @ random_spd(rng, 6) @ off for scale in (1.0, 5.0)
        )
        for U in (first, second):
            assert abs(relaxed_objective(_whole("dense", U), g, G) + g @ best / 2) < 1e-10
            assert np.linalg.eigvalsh(U)[0] > 1e-6
        assert relative(first, second) > 0.3
        assert np.linalg.matrix_rank(np.kron(np.eye(6), g)) == 6  # U g = s*: 6 conditions on 36 entries


@mutation("1/G_ii", entries=lambda s, g, G: 1 / np.diag(G))
def test_thm_diagonal_memorises(
    entries: Callable[[Array, Array, Array], Array] = lambda s, g, G: s / g,
) -> None:
    """s*_i/g_i reaches the dense minimum on its probe; some are negative, and a new gradient shows it."""
    rng = np.random.default_rng(503)
    negative, errors = [], []
    for _ in range(20):
        G, g, fresh = random_spd(rng, 20), rng.standard_normal(20), rng.standard_normal(20)
        s = np.linalg.solve(G, g)
        d = entries(s, g, G)
        assert abs(relaxed_objective(_whole("diagonal", d), g, G) + g @ s / 2) < 1e-10 * (1 + g @ s)
        assert np.array_equal(d > 0, s * g > 0)
        negative.append(np.mean(d < 0))
        errors.append(relative(d * fresh, np.linalg.solve(G, fresh)))
    assert np.mean(negative) > 0.1
    assert min(errors) > 0.5


def _independent(rng: np.random.Generator) -> Array:
    return np.diag(rng.uniform(0.2, 2.0, 5))


@mutation("correlated coordinates", uncorrelated=lambda rng: random_spd(rng, 5))
@mutation("the probes' second moment does not enter", second=lambda C: np.eye(5))
@mutation("the optima are those of half the curvature", share=0.5)
def test_thm_multi_probe_optimum(
    uncorrelated: Callable[[np.random.Generator], Array] = _independent,
    second: Callable[[Array], Array] = lambda C: C,
    share: float = 1.0,
) -> None:
    """Dense and diagonal optima of the average objective against minimization over the probes themselves."""
    rng = np.random.default_rng(504)
    for _ in range(10):
        G, C = random_spd(rng, 5), random_spd(rng, 5)
        rows = np.sqrt(5) * np.linalg.cholesky(C).T  # five probes with second moment C
        U = rng.standard_normal((5, 5))
        M = second(C)
        average = -np.trace(U @ M) + np.trace(U.T @ G @ U @ M) / 2
        assert abs(relaxed_objective(_whole("dense", U), rows, G) - average) < 1e-12 * (1 + abs(average))
        stacked = np.vstack([np.kron(np.linalg.cholesky(G).T, row[None]) for row in rows])
        wanted = np.concatenate([np.linalg.solve(np.linalg.cholesky(G), row) for row in rows])
        dense = np.linalg.lstsq(stacked, wanted, rcond=None)[0].reshape(5, 5)
        assert relative(optima.dense_optimum(share * G), dense) < 1e-8
        hessian = np.mean([np.diag(row) @ G @ np.diag(row) for row in rows], axis=0)
        diagonal = np.linalg.solve(hessian, np.mean(rows**2, axis=0))
        assert relative(optima.diagonal_optimum(G, M), diagonal) < 1e-10
        assert relative(optima.diagonal_optimum(G, uncorrelated(rng)), 1 / np.diag(G)) < 1e-12


def _draw(rng: np.random.Generator, law: str, count: int, d: int) -> Array:
    signs = law == "signs"
    return rng.choice([-1.0, 1.0], (count, d)) if signs else rng.standard_normal((count, d))


def _one(rng: np.random.Generator, law: str, count: int, d: int) -> Array:
    return np.tile(_draw(rng, law, 1, d), (count, 1))


@mutation("one fixed probe", draw=_one)
@mutation("the optima are those of half the curvature", share=0.5)
@mutation("the least is not at the optimum", about=(0.998, 0.999, 1.0))
@mutation("blocks lose nothing", sizes=(8,))
def test_thm_random_probe_optimum(
    draw: Callable[[np.random.Generator, str, int, int], Array] = _draw,
    share: float = 1.0,
    about: tuple[float, float, float] = (0.999, 1.0, 1.001),
    sizes: tuple[int, ...] = (3, 5),
) -> None:
    """Probes with E v v' = I, Gaussian or signs: the average objective, and its optimum in each shape."""
    rng, d = np.random.default_rng(505), 8
    G, U = random_spd(rng, d), np.eye(d) + 0.3 * rng.standard_normal((d, d))
    for law in ("normal", "signs"):
        V = draw(rng, law, 200_000, d)
        S = V @ U.T
        sampled = np.mean(-np.sum(V * S, axis=1) + np.sum(S * (S @ G), axis=1) / 2)
        exact = -np.trace(U) + np.trace(U.T @ G @ U) / 2
        assert abs(sampled - exact) < 0.01 * np.trace(U)  # the two terms nearly cancel
        entry, kept = np.ones(d), []
        for step, batch in enumerate(np.split(V, 4000)):
            s = entry * batch
            entry = entry - 0.1 / (1 + step / 500) * np.mean((s @ G - batch) * batch, axis=0)
            kept.append(entry)
        assert relative(np.mean(kept[1000:], axis=0), optima.diagonal_optimum(G)) < 0.03
    white = np.sqrt(d) * np.eye(d)  # a set of probes whose second moment is I exactly
    u = optima.scalar_optimum(share * G)
    assert abs(u - d / np.trace(G)) < 1e-14
    around = [relaxed_objective(_whole("dense", c * u * np.eye(d)), white, G) for c in about]
    assert min(around) == around[1]
    blocks = optima.block_optimum(share * G, sizes)
    residual = G @ blocks - np.eye(d)
    assert max(np.abs(residual[:3, :3]).max(), np.abs(residual[3:, 3:]).max()) < 1e-13
    assert relative(blocks, optima.dense_optimum(G)) > 0.1
    (slope,) = relaxed_gradient(_whole("dense", optima.dense_optimum(share * G)), white, G)
    assert np.abs(slope["U"]).max() < 1e-13


@mutation("the length of the probe is forgotten", rate=lambda eta_U, g: eta_U)
@mutation("the filter is the whole inverse", answer=lambda w, T, a: 1 / np.asarray(w))
@mutation("the filter is twice as high", answer=lambda w, T, a: 2 * optima.early_stopping_filter(w, T, a))
@mutation("the filter passes nothing", answer=lambda w, T, a: np.zeros(len(w)))
def test_thm_early_stopping_filter(
    rate: Callable[[float, Array], float] = lambda eta_U, g: eta_U * float(g @ g),
    answer: Callable[..., Array] = optima.early_stopping_filter,
) -> None:
    """17 inner steps from the identity, any symmetric curvature: the filter, and a rank-one change of U."""
    rng, eta_U = np.random.default_rng(506), 0.01
    for _ in range(10):
        G, g = random_symmetric(rng, 6), rng.standard_normal(6)
        w, v = np.linalg.eigh(G)
        U = inner_loop(_whole("dense", np.eye(6)), g, G, steps=17, eta_U=eta_U, beta=0.0, clip=None)
        s = v @ (answer(w, 17, rate(eta_U, g)) * (v.T @ g))
        assert relative(U.apply(g), s) < 1e-12
        assert relative(U.to_dense(), np.eye(6) + np.outer(s - g, g) / (g @ g)) < 1e-12
    w = np.geomspace(1e-3, 20, 200)
    response = answer(w, 17, 0.05)  # a w up to one
    assert np.all(response >= np.minimum(1, 1 / w) * (1 - 1e-14))
    assert np.all(response <= np.maximum(1, 1 / w) * (1 + 1e-14))
    assert abs(answer([1.0], 17, 0.05)[0] - 1) < 1e-15
    assert answer([30.0], 17, 0.05)[0] < 1 / 30  # 1 < a w < 2 overshoots
    assert abs(answer([0.0], 17, 0.05)[0] - (1 + 17 * 0.05)) < 1e-14


@mutation("the inner loop runs to the end", steps=10**8)
def test_cex_loss_scale_relaxation(steps: int = 20) -> None:
    """The loss times c: the exact step stays, the early-stopped one turns."""
    w, g, eta_U = np.array([0.1, 0.5, 2.0, 5.0]), np.ones(4), 0.02
    steps_of = {}
    for c in (0.1, 1.0):
        assert np.allclose(np.linalg.solve(c * np.diag(w), c * g), g / w, rtol=1e-14)
        steps_of[c] = optima.early_stopping_filter(c * w, steps, eta_U * c * c * float(g @ g)) * c * g
    assert steps_of[0.1] @ steps_of[1.0] / (_norm(steps_of[0.1]) * _norm(steps_of[1.0])) < 0.95
    for c, s in steps_of.items():
        a = eta_U * c**3 * float(g @ g) * w
        assert relative(s, (1 / (c * w) + (1 - 1 / (c * w)) * (1 - a) ** steps) * c * g) < 1e-12
        U = inner_loop(_whole("dense", np.eye(4)), c * g, c * np.diag(w), steps=steps, eta_U=eta_U, beta=0.0,
                       clip=None)  # fmt: skip
        assert relative(U.apply(c * g), s) < 1e-12


@mutation("the factor n is forgotten", total=lambda n, G: G)
def test_prop_sum_mean_scale(total: Callable[[int, Array], Array] = lambda n, G: n * G) -> None:
    """Curvature summed over n examples, gradient a mean: the target is divided by n."""
    rng = np.random.default_rng(507)
    G, g, eta_U = random_spd(rng, 6), rng.standard_normal(6), 1e-3
    w, v = np.linalg.eigh(G)
    for n in (1, 8, 128):
        assert relative(n * optima.dense_optimum(total(n, G)), optima.dense_optimum(G)) < 1e-13
        U = inner_loop(_whole("dense", np.eye(6)), g, total(n, G), steps=9, eta_U=eta_U, beta=0.0, clip=None)
        left = (1 - eta_U * n * (g @ g) * w) ** 9
        assert relative(U.apply(g), v @ ((1 / (n * w) + (1 - 1 / (n * w)) * left) * (v.T @ g))) < 1e-12
        assert abs(optima.early_stopping_filter([n * (1 / n)], 9, 0.05)[0] - 1) < 1e-14


@mutation("the size of the micro-batch is forgotten", scale=lambda m: 1.0)
@mutation("the distance counts whole", half=1.0)
@mutation("the rates are the roots", power=0.5)
def test_cor_closed_form(
    scale: Callable[[int], float] = float, half: float = 0.5, power: float = 1.0
) -> None:
    """White probes, U = E diag(d) E': the minimizer is 1/diag(E'GE), and sampled labels estimate it."""
    rng = np.random.default_rng(508)
    G, E = random_spd(rng, 6), np.linalg.qr(rng.standard_normal((6, 6)))[0]
    w, v = np.linalg.eigh(G)
    root, inverse_root = v * np.sqrt(w) @ v.T, v / np.sqrt(w) @ v.T
    d = np.diag(E.T @ G @ E) ** -power

    def average(U: Array) -> float:
        return relaxed_objective(_whole("dense", U), np.sqrt(6) * np.eye(6), G)

    for entries in (d, *(d * np.exp(0.1 * rng.standard_normal((5, 6))))):
        U = E * entries @ E.T
        distance = np.sum((root @ U - inverse_root) ** 2) * half - np.trace(inverse_root @ inverse_root) / 2
        assert abs(average(U) - distance) < 1e-12 * (1 + abs(distance))
        assert average(U) >= average(E * d @ E.T)
    network, shapes, m = Network((2, 3)), [(3, 2), (3,)], 2
    weights, x = network.random_weights(rng), rng.standard_normal((m, 2))
    pi = np.exp(network.states(weights, x)[-1])
    pi /= pi.sum(axis=1, keepdims=True)
    F = curvature.fisher(network, weights, x, route="scores")
    moment = np.zeros_like(F)  # E V V' over all label pairs, V the gradient of the mean loss over m examples
    for labels in itertools.product(range(3), repeat=m):
        V = network.gradient(weights, x, np.array(labels))
        moment += pi[np.arange(m), labels].prod() * np.outer(V, V)
    assert relative(scale(m) * moment, F) < 1e-13
    values, vectors = np.linalg.eigh(moment)
    rows = np.sqrt(len(F)) * (vectors * np.sqrt(np.maximum(values, 0))).T  # the same second moment
    state = curvature_estimate.update_curvature(
        curvature_estimate.no_curvature(shapes, "ekfac"), rows, scale(m)
    )
    U = curvature_estimate.minimizer(state, 0.1)
    start = 0
    for block in U.blocks:
        size = int(np.prod(block.shape))
        part = slice(start, start + size)
        basis: Array = np.eye(size)
        if len(block.shape) == 2:
            basis = np.kron(block.arrays["E_Psi"], block.arrays["E_Phi"])
        wanted = basis / np.diag(basis.T @ F[part, part] @ basis + 0.1 * np.eye(size)) @ basis.T
        assert relative(block.to_dense(), wanted) < 1e-12
        start += size


def _moment(mean: Array, covariance: Array, B: int) -> Array:
    return np.outer(mean, mean) + covariance / B


@mutation(
    "the noise of a batch is that of an example", moment=lambda mean, cov, B: np.outer(mean, mean) + cov
)
@mutation("the mean of two labels shows all of the Fisher matrix", labels=1)
@mutation("labels are drawn evenly", law=lambda pi: np.full_like(pi, 1 / 3))
@mutation("a fitted example shows its share of the miss", odds=lambda miss: miss)
def test_thm_free_probes(
    moment: Callable[[Array, Array, int], Array] = _moment,
    labels: int = 2,
    law: Callable[[Array], Array] = lambda pi: pi,
    odds: Callable[[float], float] = lambda miss: miss / (1 - miss),
) -> None:
    """E g g' of a batch gradient, over all batches; the Fisher matrix under the model's labels; a fitted example."""
    network, rng, n = Network((2, 3)), np.random.default_rng(509), 4
    w, x = network.random_weights(rng), rng.standard_normal((n, 2))
    y = rng.integers(0, 3, n)
    each = np.stack([network.gradient(w, x[i : i + 1], y[i : i + 1]) for i in range(n)])
    mean, covariance = each.mean(axis=0), np.cov(each.T, bias=True)
    for B in (1, 2, 3):
        batches = [each[list(batch)].mean(axis=0) for batch in itertools.product(range(n), repeat=B)]
        seen = np.mean([np.outer(g, g) for g in batches], axis=0)
        assert relative(seen, moment(mean, covariance, B)) < 1e-13
        without = [each[list(batch)].mean(axis=0) for batch in itertools.combinations(range(n), B)]
        seen = np.mean([np.outer(g, g) for g in without], axis=0)
        assert relative(seen, moment(mean, covariance * (n - B) / (n - 1), B)) < 1e-13
    pi = np.exp(network.states(w, x)[-1])
    pi /= pi.sum(axis=1, keepdims=True)
    pi = law(pi)
    pairs = [
        (i, label) for i in range(n) for label in range(3)
    ]  # an input, and a label that the model has drawn
    scores = np.stack([network.gradient(w, x[i : i + 1], np.array([label])) for i, label in pairs])
    chance = np.array([pi[pair] / n for pair in pairs])
    F = curvature.fisher(network, w, x, route="scores")
    assert _norm(chance @ scores) < 1e-14
    seen = np.zeros_like(F)
    for a, b in itertools.product(range(len(pairs)), repeat=2):
        g = (scores[a] + scores[b]) / 2
        seen += chance[a] * chance[b] * np.outer(g, g)
    assert relative(labels * seen, F) < 1e-12
    assert relative(labels * moment(chance @ scores, F, 2), F) < 1e-12
    two, x = Network((2, 2)), x[:1]
    for size in (0.1, 1.0, 3.0):
        w = size * two.random_weights(rng)
        pi = np.exp(two.states(w, x)[-1][0])
        pi /= pi.sum()
        for label in (0, 1):
            g, miss = two.gradient(w, x, np.array([label])), 1 - pi[label]
            F = curvature.fisher(two, w, x, route="scores")
            assert relative(np.outer(g, g), odds(miss) * F) < 1e-10


@mutation("the basis comes from other samples", basis=lambda own, other: other)
@mutation("the truth in that basis is as large as the samples", measured="own")
@mutation("the whole is too large as well", whole=1.1)
@mutation("one sample shows its own squares", squared=lambda values: np.sort(values)[::-1] ** 1)
@mutation("something is left beside", beside=0)
def test_prop_basis_bias(
    basis: Callable[[Array, Array], Array] = lambda own, other: own,
    measured: str = "truth",
    whole: float = 1.0,
    squared: Callable[[Array], Array] = lambda values: values**2,
    beside: int | None = None,
) -> None:
    """In the eigenbasis of its own samples the leading curvature comes out too large, the trailing too small."""
    rng = np.random.default_rng(510)
    G = np.diag([4.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    root, draws, k = np.sqrt(G), 3000, 8
    total = {"own": np.zeros(6), "truth": np.zeros(6)}
    for _ in range(draws):
        own, other = (root @ rng.standard_normal((6, k)) for _ in range(2))
        S, E = own @ own.T / k, np.linalg.eigh(basis(own, other) @ basis(own, other).T)[1][:, ::-1]
        total["own"] += np.diag(E.T @ S @ E) / draws
        total["truth"] += np.diag(E.T @ G @ E) / draws
    seen, truth = (np.cumsum(total[name]) for name in ("own", measured))
    largest = np.cumsum(np.diag(G))
    assert np.all(seen[:-1] > 1.02 * largest[:-1])  # strictly: three standard errors are about .02
    assert np.all(truth[:-1] <= largest[:-1])
    assert abs(seen[-1] / largest[-1] - whole) < 0.02
    assert seen[0] / truth[0] > 1.3
    assert total["own"][-1] / total["truth"][-1] < 0.5
    for shape in (
        (9, 1),
        (3, 4),
    ):  # one sample, by the package: everything in min(m, n) entries, and nothing beside
        v = rng.standard_normal(shape)
        state = curvature_estimate.update_curvature(
            curvature_estimate.no_curvature([shape], "ekfac"), v.reshape(1, -1), 1.0
        )
        c = np.sort(state.estimates[0].c.ravel())[::-1]
        singular = np.linalg.svd(v, compute_uv=False)
        assert relative(c[: len(singular)], squared(singular)) < 1e-5
        first = len(singular) if beside is None else beside
        assert np.max(c[first:]) < 1e-12 * c[0]
