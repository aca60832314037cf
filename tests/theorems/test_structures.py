"""Part 4, LLQR: the shapes a preconditioner may have, each result with its mutation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import landscapes
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.optima import separable_minimizer
from llqr_sam_ref.exact.preconditioner import Block, Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.relaxation import (
    average,
    condition_left,
    inner_loop,
    relaxed_gradient,
    relaxed_objective,
)
from llqr_sam_ref.exact.structures import EKFAC, STRUCTURES, Kronecker
from tests.exact.relaxed import (
    NAMES,
    SIZE,
    complex_step,
    distance,
    random_preconditioner,
    random_spd,
    random_symmetric,
)
from tests.theorems.catalogue import mutation, require

Pair = tuple[Array, Array]


def _one_block(name: str, shape: tuple[int, ...], **arrays: Array) -> Preconditioner:
    return Preconditioner((Block(STRUCTURES[name], shape, arrays),))


def _written_out(block: Block, x: Array, z: Array, dPsi: Callable[..., Array]) -> dict[str, Array]:
    """The gradients of <Z, U X> as the theorem states them."""
    name, a, X, Z = block.structure.name, block.arrays, x.reshape(block.shape), z.reshape(block.shape)
    if name == "dense":
        return {"U": np.outer(Z, X)}
    if name == "scalar":
        return {"u": np.sum(Z * X).reshape(1)}
    if name == "diagonal":
        return {"d": Z * X}
    if name == "kronecker":
        return {"Phi": Z.T @ a["Psi"] @ X, "Psi": dPsi(Z, X, a["Phi"])}
    E_Psi, E_Phi = a["E_Psi"], a["E_Phi"]
    X_hat, Z_hat = E_Psi.T @ X @ E_Phi, E_Psi.T @ Z @ E_Phi
    D = a["D"] if name == "ekfac" else np.outer(a["d_Psi"], a["d_Phi"])
    gradients = {
        "E_Psi": Z @ E_Phi @ (D * X_hat).T + X @ E_Phi @ (D * Z_hat).T,
        "E_Phi": Z.T @ E_Psi @ (D * X_hat) + X.T @ E_Psi @ (D * Z_hat),
    }
    if name == "ekfac":
        return gradients | {"D": Z_hat * X_hat}
    return gradients | {"d_Psi": (Z_hat * X_hat) @ a["d_Phi"], "d_Phi": (Z_hat * X_hat).T @ a["d_Psi"]}


@mutation("Phi' in place of Phi in the gradient of Psi", dPsi=lambda Z, X, Phi: Z @ Phi.T @ X.T)
def test_thm_relaxed_gradients(dPsi: Callable[..., Array] = lambda Z, X, Phi: Z @ Phi @ X.T) -> None:
    """Six structures, indefinite curvature, against complex steps; roots and logarithms by the chain rule."""
    rng, mu = np.random.default_rng(520), 0.1
    for name in NAMES:
        U, G, g = random_preconditioner(name, rng), random_symmetric(rng), rng.standard_normal(SIZE)
        z = G @ U.apply(g) + mu * U.apply(g) - g
        stated = [
            _written_out(block, x, part, dPsi)
            for block, x, part in zip(U.blocks, U.split(g), U.split(z), strict=True)
        ]
        reference = complex_step(lambda V, g=g, G=G: relaxed_objective(V, g, G, mu), U)  # type: ignore[misc]
        ordered = [{key: part[key] for key in block} for part, block in zip(stated, reference, strict=True)]
        assert distance(ordered, reference) < 1e-12
        assert distance(relaxed_gradient(U, g, G, mu), reference) < 1e-12
        positive = random_preconditioner(name, rng, positive=True)
        chained = []
        parts = zip(positive.blocks, positive.split(g), positive.split(z), strict=True)
        for block, x, part in parts:
            shape = block.shape
            outer = block.structure.pullback(block.factors, x.reshape(shape), part.reshape(shape))
            inner = {key: outer[key] * np.exp(block.arrays[key]) for key in block.structure.scales}
            roots = block.structure.matrices
            inner |= {key: (outer[key] + outer[key].T) @ block.arrays[key] for key in roots}
            chained.append({key: inner.get(key, outer[key]) for key in block.arrays})
        pulled = complex_step(lambda V, g=g, z=z: complex(z @ V.apply(g)), positive)  # type: ignore[misc]
        assert distance(chained, pulled) < 1e-12


@mutation("an indefinite curvature", draw=random_symmetric)
def test_thm_relaxed_convexity(draw: Callable[[np.random.Generator, int], Array] = random_spd) -> None:
    """Parameters in which s is linear: J is convex; for a diagonal its Hessian is diag(g) G diag(g)."""
    rng = np.random.default_rng(521)
    moving = {"dense": "U", "scalar": "u", "diagonal": "d", "ekfac": "D", "kronecker": "Psi"}
    for _ in range(10):
        G, g = draw(rng, 6), rng.standard_normal(6)
        for name, key in moving.items():
            arrays = {k: rng.standard_normal(a.shape) for k, a in STRUCTURES[name].identity((2, 3)).items()}
            shape, at = arrays[key].shape, arrays[key].ravel()
            slopes = []
            for p in (at, *(at + np.eye(at.size))):
                moved = _one_block(name, (2, 3), **{**arrays, key: p.reshape(shape)})
                slopes.append(relaxed_gradient(moved, g, G)[0][key].ravel())
            hessian = np.stack(slopes[1:]) - slopes[0]  # exact: the slope is linear in p
            assert np.linalg.eigvalsh((hessian + hessian.T) / 2)[0] > -1e-9 * np.abs(hessian).max()
            if name == "diagonal":
                np.testing.assert_allclose(hessian, np.diag(g) @ G @ np.diag(g), atol=1e-12)


def _two_factors(phi: float, psi: float) -> float:
    U = _one_block("kronecker", (1, 1), Phi=np.array([[phi]]), Psi=np.array([[psi]]))
    return relaxed_objective(U, np.ones(1), np.eye(1))


def _linear(phi: float, psi: float) -> float:
    s = (phi + psi) / 2
    return -s + s * s / 2


@mutation("the mean of the factors in place of their product", J=_linear)
def test_cex_kronecker_nonconvex(J: Callable[[float, float], float] = _two_factors) -> None:
    """Midpoints lie above: for one weight (the two-weight network again), for any g, and for E-KFAC."""
    assert [J(1, 1), J(-1, -1), J(0, 0)] == [-0.5, -0.5, 0.0]
    banana = landscapes.banana()
    for phi, psi in np.random.default_rng(522).standard_normal((20, 2)):
        assert abs(J(phi, psi) - (float(banana.value(np.array([phi, psi]))) - 1) / 2) < 1e-12
    rng = np.random.default_rng(523)
    for _ in range(10):
        G, g = random_symmetric(rng, 12), rng.standard_normal(12)
        for name, keys in (("kronecker", ("Phi", "Psi")), ("ekfac", ("E_Psi",))):
            neutral = STRUCTURES[name].identity((3, 4))
            values = []
            for sign in (1.0, -1.0, 0.0):
                small = {key: sign * 0.05 * neutral[key] for key in keys}
                values.append(relaxed_objective(_one_block(name, (3, 4), **{**neutral, **small}), g, G))
            assert values[0] < -1e-4
            assert abs(values[0] - values[1]) < 1e-15
            assert values[2] == 0


@mutation("two copies of (I, I)", sign=1.0)
def test_cex_ema_of_factors(sign: float = -1.0) -> None:
    """(I, I) and (-I, -I) are the same U = I; averaging their factors gives U = 0."""
    U = identity_preconditioner([[(2, 3)]], "kronecker")
    other = U.with_arrays([{key: sign * array for key, array in block.arrays.items()} for block in U.blocks])
    assert np.array_equal(other.to_dense(), U.to_dense())
    assert np.linalg.norm(average(U, other, 0.5).to_dense()) == 0
    assert abs(np.linalg.norm((U.to_dense() + other.to_dense()) / 2) - np.sqrt(6)) < 1e-15
    one, three = ({"Phi": np.array([[c]]), "Psi": np.array([[c]])} for c in (1.0, 3.0))
    mean = average(_one_block("kronecker", (1, 1), **one), _one_block("kronecker", (1, 1), **three), 0.5)
    assert mean.to_dense() == 4  # and the products average to 5


@mutation("W in place of W X X'", gram=lambda X: np.eye(len(X)))
def test_thm_kronecker_inner_loop(gram: Callable[[Array], Array] = lambda X: X @ X.T) -> None:
    """30 steps with momentum, clipping and averaging: the wide factor from a thin one."""
    rng, steps, eta_U, beta, clip = np.random.default_rng(524), 30, 1e-2, 0.9, 2.0
    X, G = rng.standard_normal((3, 7)), random_spd(rng, 21)
    start = {"Phi": np.eye(7) + 0.1 * rng.standard_normal((7, 7)), "Psi": np.eye(3)}
    before = _one_block("kronecker", (3, 7), **start)
    after = inner_loop(before, X.ravel(), G, steps=steps, eta_U=eta_U, beta=beta, clip=clip)
    small, fixed, Psi, W = gram(X), X @ start["Phi"].T, np.eye(3), np.zeros((3, 7)).T
    v_Psi, v_W, clipped = np.zeros((3, 3)), np.zeros((7, 3)), 0
    for _ in range(steps):
        XPhi = fixed + small @ W.T  # X Phi_t'
        S = Psi @ XPhi
        Z = (G @ S.ravel() - X.ravel()).reshape(3, 7)
        Y, dPsi = Z.T @ Psi, Z @ XPhi.T
        length = float(np.sqrt(np.sum((Y.T @ Y) * small)))  # the norm of Y X
        clipped += length > clip
        v_W = beta * v_W + Y * min(1.0, clip / length)
        v_Psi = beta * v_Psi + dPsi * min(1.0, clip / float(np.linalg.norm(dPsi)))
        W, Psi = W - eta_U * v_W, Psi - eta_U * v_Psi
    require(3 < clipped < steps - 3, "the clip is at work")
    explicit = after.blocks[0].arrays
    np.testing.assert_allclose(X @ explicit["Phi"].T, fixed + small @ W.T, atol=1e-11)
    np.testing.assert_allclose(explicit["Phi"], start["Phi"] + W @ X, atol=1e-11)
    np.testing.assert_allclose(explicit["Psi"], Psi, atol=1e-11)
    kept = average(before, after, 0.95).blocks[0].arrays["Phi"]
    np.testing.assert_allclose(kept, start["Phi"] + 0.05 * W @ X, atol=1e-11)


def _definite(matrix: Array) -> bool:
    return bool(np.linalg.eigvalsh(matrix)[0] > 0)


@mutation("a positive trace", positive=lambda matrix: bool(np.trace(matrix) > 0))
@mutation("the number of negative rates does not decide", negative=lambda D: 0)
@mutation("positive eigenvalues make a positive U", corner=0.0)
@mutation("structures are positive by themselves", by_construction=False)
def test_prop_structure_positivity(
    positive: Callable[[Array], bool] = _definite,
    negative: Callable[[Array], int] = lambda D: int(np.sum(D < 0)),
    corner: float = 10.0,
    by_construction: bool = True,
) -> None:
    rng = np.random.default_rng(525)
    pairs: list[Pair] = [(random_symmetric(rng, 2), random_symmetric(rng, 3)) for _ in range(50)]
    definite = [(random_spd(rng, 2), random_spd(rng, 3)) for _ in range(3)]
    pairs += definite + [(-Psi, -Phi) for Psi, Phi in definite]
    for Psi, Phi in pairs:
        product = Kronecker().to_dense({"Phi": Phi, "Psi": Psi}, (2, 3))
        same_sign = (positive(Psi) and positive(Phi)) or (positive(-Psi) and positive(-Phi))
        assert _definite(product) == same_sign
    for _ in range(50):
        factors = {"E_Psi": rng.standard_normal((2, 2)), "E_Phi": rng.standard_normal((3, 3))}
        D = rng.standard_normal((2, 3))
        spectrum = np.linalg.eigvalsh(EKFAC().to_dense({**factors, "D": D}, (2, 3)))
        assert np.sum(spectrum < 0) == negative(D)
    skew, g = np.array([[1.0, corner], [0.0, 1.0]]), np.array([1.0, -1.0])
    require(np.all(np.linalg.eigvals(skew) > 0), "its eigenvalues are positive")
    assert g @ _one_block("kronecker", (2, 1), Phi=np.eye(1), Psi=skew).apply(g) == -8
    for name in NAMES:
        dense = random_preconditioner(name, rng, positive=by_construction).to_dense()
        assert _definite((dense + dense.T) / 2)


def _inverse_diagonal(H: Array) -> Array:
    return 1 / np.diag(H)


@mutation("one over the square root of the diagonal", entries=lambda H: 1 / np.sqrt(np.diag(H)))
def test_prop_best_diagonal(entries: Callable[[Array], Array] = _inverse_diagonal) -> None:
    """Two coordinates: the best diagonal is 1/H_ii and leaves (1 + r)/(1 - r); at 45 degrees, all of it."""
    rng = np.random.default_rng(526)
    for _ in range(20):
        H = random_spd(rng, 2)
        r = abs(H[0, 1]) / np.sqrt(H[0, 0] * H[1, 1])
        best = condition_left(np.diag(entries(H)), H)
        assert abs(best - (1 + r) / (1 - r)) < 1e-10 * best
        for other in np.exp(rng.standard_normal((50, 2))):
            assert condition_left(np.diag(other), H) > best * (1 - 1e-12)
    turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    H = turn @ np.diag([10.0, 1.0]) @ turn.T
    assert abs(condition_left(np.diag(entries(H)), H) - 10) < 1e-12


def _both(Psi: Array, Phi: Array) -> Pair:
    return np.linalg.inv(Psi), np.linalg.inv(Phi)


@mutation("the two sides are exchanged", undo=lambda Psi, Phi: _both(Phi, Psi))
def test_prop_kronecker_undone(undo: Callable[[Array, Array], Pair] = _both) -> None:
    """One inverse a side undoes (output) x (input); E-KFAC undoes any diagonal in the bases."""
    rng = np.random.default_rng(527)
    for _ in range(10):
        out, inp = random_spd(rng, 3), random_spd(rng, 3)
        Psi, Phi = undo(out, inp)
        U = Kronecker().to_dense({"Phi": Phi, "Psi": Psi}, (3, 3))
        assert abs(condition_left((U + U.T) / 2, np.kron(out, inp)) - 1) < 1e-10
        bases = [np.linalg.eigh(side)[1] for side in (out, inp)]
        basis, c = np.kron(*bases), rng.uniform(0.1, 10, (3, 3))
        G = basis * c.ravel() @ basis.T
        ekfac = EKFAC().to_dense({"E_Psi": bases[0], "E_Phi": bases[1], "D": 1 / c}, (3, 3))
        np.testing.assert_allclose(ekfac @ G, np.eye(9), atol=1e-10)
        rates = np.outer(*separable_minimizer(c))  # c is no row times column: a pair leaves something
        assert np.max(rates * c) / np.min(rates * c) > 1.01
