"""The inner loop that never touches the large factor equals the loop as written, the exact layer and the golden run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.exact.preconditioner import Block as ExactBlock
from llqr_sam_ref.exact.preconditioner import Preconditioner
from llqr_sam_ref.exact.relaxation import inner_loop as exact_inner_loop
from llqr_sam_ref.exact.structures import structure_for
from llqr_sam_ref.nets import mlp
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.likelihood import Categorical
from llqr_sam_ref.optim.preconditioner.blocks import make_blocks
from llqr_sam_ref.optim.preconditioner.inner_loop import KroneckerLoop, Loop, PlainLoop, inner_loop
from llqr_sam_ref.optim.preconditioner.stack import make_stacks
from llqr_sam_ref.optim.structures import STRUCTURES, Factors, make_structure
from tests.exact import golden
from tests.optim.test_structure import near_identity, normal

STEPS = 50


def curvature(size: int, seed: int = 3) -> Tensor:
    root = normal(size, size, seed=seed)
    return root @ root.mT / size


def run(loop: Loop, G: Tensor, lr: float) -> None:
    """50 steps on J with a falling learning rate; G acts on each block of a stack alike."""
    shape = loop.structure.shape
    for t in range(STEPS):
        S = loop.apply()
        Z = (S.reshape(*S.shape[: S.ndim - len(shape)], -1) @ G).reshape(S.shape) + 0.1 * S - loop.X
        loop.step(Z, lr * (1 - t / 100))


def worst(found: Factors, expected: Factors) -> float:
    assert set(found) == set(expected)
    return max(float((found[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected)


@pytest.mark.parametrize(
    ("shape", "limit"),
    [
        ((7, 4), {}),
        ((4, 7), {}),
        ((5, 5), {}),
        ((8, 3), {"max_side": 4, "wide": "blocks"}),
        ((3, 8), {"max_side": 4, "wide": "blocks"}),
    ],
)
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_large_factor_is_never_needed(
    shape: tuple[int, int], limit: dict[str, Any], batch: tuple[int, ...], clip: float | None
) -> None:
    structure = make_structure("kronecker", shape, **limit)
    arrays, X = near_identity(structure, batch), 0.5 * normal(*batch, *shape)
    kept = {n: a.clone() for n, a in arrays.items()}
    G = curvature(structure.size)
    fast, plain = inner_loop(structure, arrays, X, clip=clip), PlainLoop(structure, arrays, X, clip=clip)
    assert isinstance(fast, KroneckerLoop)
    for loop in (fast, plain):
        run(loop, G, 1e-2)
    assert float((fast.apply() - plain.apply()).abs().max() / plain.apply().abs().max()) < 1e-12
    for ema in (0.0, 0.9):
        assert worst(fast.arrays(ema), plain.arrays(ema)) < 1e-12
    assert worst(fast.arrays(), arrays) > 1e-2
    for name, hits in plain.clip_hits.items():
        assert torch.equal(hits, fast.clip_hits[name])
        assert (int(hits.sum()) > 0) == (clip is not None)
    assert all(torch.equal(arrays[n], a) for n, a in kept.items())


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("positive", [False, True])
def test_the_loop_equals_the_exact_layer(name: str, positive: bool) -> None:
    shape = (4, 3)
    structure = make_structure(name, shape, positive=positive)
    arrays, X, G = near_identity(structure), 0.5 * normal(*shape), curvature(12)
    start = ExactBlock(structure_for(name, shape), shape, {n: a.numpy() for n, a in arrays.items()}, positive)
    U = exact_inner_loop(
        Preconditioner((start,)),
        X.numpy().ravel(),
        G.numpy(),
        0.1,
        steps=STEPS,
        eta_U=1e-2,
        beta=0.9,
        clip=3.0,
    )
    loop = inner_loop(structure, arrays, X, momentum=0.9, clip=3.0)
    for _ in range(STEPS):
        S = loop.apply()
        loop.step((S.reshape(-1) @ G).reshape(shape) + 0.1 * S - X, 1e-2)
    found = loop.arrays()
    for array, expected in U.blocks[0].arrays.items():
        np.testing.assert_allclose(found[array], expected, rtol=1e-12, atol=1e-12)


def test_what_is_not_finite_is_replaced_and_nothing_given_is_written() -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("diagonal", {}),
        ("kronecker", {}),
        ("kronecker", {"max_side": 2}),
    ]
    for name, limit in [*kinds, ("kronecker", {"max_side": 2, "wide": "blocks"})]:
        structure = make_structure(name, (3, 2), **limit)
        loop = inner_loop(structure, structure.identity(dtype=torch.float64), torch.ones(3, 2).double())
        Z = torch.zeros(3, 2).double()
        Z[0, 0], Z[1, 1] = torch.inf, torch.nan
        given = Z.clone()
        loop.step(Z, 0.1)
        assert torch.equal(Z.nan_to_num(), given.nan_to_num())
        assert bool(Z[1, 1].isnan())
        assert all(bool(a.isfinite().all()) for a in loop.arrays().values())
        assert bool(loop.apply().isfinite().all())


@pytest.mark.parametrize(
    ("name", "published"), [("scalar", "scalar"), ("diagonal", "diagonal"), ("kronecker", "kfac")]
)
def test_fifty_steps_reproduce_the_authors_numbers(name: str, published: str) -> None:
    numbers = golden.numbers()
    net = mlp(golden.WIDTHS, "tanh").double()
    with torch.no_grad():
        for i in range(3):
            net[2 * i + 1].weight.copy_(torch.from_numpy(numbers[f"W{i}"]).T)  # type: ignore[operator]
            net[2 * i + 1].bias.copy_(torch.from_numpy(numbers[f"b{i}"]))  # type: ignore[operator]
    x, y = torch.from_numpy(numbers["x"]), torch.from_numpy(numbers["y"]).long()
    lin = Linearization(net, torch.nn.CrossEntropyLoss(), x, y, likelihood=Categorical())
    g = lin.gradient()
    names: dict[Tensor, str] = {p: parameter for parameter, p in net.named_parameters()}
    groups = [{"params": list(names), "structure": None}]
    stacks = make_stacks(make_blocks(groups, names, LLQRConfig.published(structure=name)), {})
    loops = [inner_loop(stack.structure, stack.arrays, stack.gather(g)) for stack in stacks]
    prefix = f"B_tanh/{published}/ngd/lam0.01"
    s: dict[str, Tensor] = {}
    for step in range(51):
        for stack, loop in zip(stacks, loops, strict=True):
            s.update(stack.scatter(loop.apply()))
        if step in (1, 50):
            Ug = [torch.cat((s[f"{i}.bias"], s[f"{i}.weight"].T.reshape(-1))) for i in (1, 3, 5)]
            np.testing.assert_allclose(
                torch.cat(Ug), numbers[f"{prefix}/steps{step}/Ug"], rtol=1e-9, atol=1e-12
            )
        curved = lin.fisher(s, "sum")
        for stack, loop in zip(stacks, loops, strict=True):
            loop.step(stack.gather(curved) + 0.01 * loop.apply() - loop.X, 1e-3)


def test_bad_settings_are_named() -> None:
    structure = make_structure("diagonal", (3,))
    for arguments, message in [({"momentum": 1.0}, "momentum=1.0"), ({"clip": 0.0}, "clip=0.0")]:
        with pytest.raises(ValueError, match=message):
            inner_loop(structure, structure.identity(), torch.ones(3), **arguments)
