"""The relaxed step and the perturbation against numbers printed by the authors' own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llqr_sam_ref.exact.config import Config
from llqr_sam_ref.exact.llqr import perturbation, refit, start
from llqr_sam_ref.exact.precondition import inner_loop, relaxed_gradient, relaxed_objective
from llqr_sam_ref.exact.preconditioner import Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.structures import Array

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official_llqr_mlp.npz")
LAYERS = (((5,), (6, 5)), ((4,), (5, 4)), ((3,), (4, 3)))
STRUCTURES = {"scalar": "scalar", "diagonal": "diagonal", "kfac": "kronecker"}
LAYER_SIZES = (35, 24, 15)
MU = 0.01


def close(found: object, golden: str) -> None:
    np.testing.assert_allclose(np.asarray(found), GOLDEN[golden], rtol=1e-9, atol=1e-9)


def compare_arrays(arrays: list[dict[str, Array]], name: str, prefix: str) -> None:
    """Stored arrays against the fixture, which keeps kernels as (input, output): its A acts on our rows."""
    if name != "kfac":
        for layer, stored in enumerate(arrays):
            close(next(iter(stored.values())), f"{prefix}/layers_{layer}")
        return
    for layer in range(3):
        close(arrays[2 * layer]["d"], f"{prefix}/layers_{layer}/Dense_0.bias/diag")
        close(arrays[2 * layer + 1]["Psi"], f"{prefix}/layers_{layer}/Dense_0.kernel/A")
        close(arrays[2 * layer + 1]["Phi"], f"{prefix}/layers_{layer}/Dense_0.kernel/B")


def identity(name: str) -> Preconditioner:
    return identity_preconditioner(LAYERS, STRUCTURES[name], per_layer=True)


@pytest.mark.parametrize("name", STRUCTURES)
def test_value_and_gradient_at_the_identity(name: str) -> None:
    prefix, g, G = f"B_tanh/{name}/ngd/lam0.01", GOLDEN["tanh/g"], GOLDEN["tanh/Fsum"]
    close(relaxed_objective(identity(name), g, G, MU), f"{prefix}/J_identity")
    compare_arrays(relaxed_gradient(identity(name), g, G, MU), name, f"{prefix}/dJdU_identity")


@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_inner_loop_ends_where_theirs_does(name: str, steps: int) -> None:
    prefix, g, G = f"B_tanh/{name}/ngd/lam0.01/steps{steps}", GOLDEN["tanh/g"], GOLDEN["tanh/Fsum"]
    U = inner_loop(identity(name), g, G, MU, steps=steps)
    compare_arrays([dict(block.arrays) for block in U.blocks], name, prefix)
    close(U.apply(g), f"{prefix}/Ug")
    close(relaxed_objective(identity(name), g, G, MU), f"{prefix}/J_before")
    close(relaxed_objective(U, g, G, MU), f"{prefix}/J_after")


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_published_configuration_is_that_inner_loop(name: str) -> None:
    """With no averaging, and the mean Fisher, which the configuration sums over the eight examples."""
    config = Config.published(structure=STRUCTURES[name], damping=MU, ema=0.0)
    g = GOLDEN["tanh/g"]
    state = refit(config, start(config, GOLDEN["tanh/theta"], LAYERS), g, 8, GOLDEN["tanh/Fmean"])
    prefix = f"B_tanh/{name}/ngd/lam0.01/steps50"
    compare_arrays([dict(block.arrays) for block in state.U.blocks], name, prefix)
    close(state.U.apply(g), f"{prefix}/Ug")


@pytest.mark.parametrize("norm", ["euclidean", "dual"])
def test_perturbations_over_all_layers_and_layer_by_layer(norm: str) -> None:
    theirs = {"euclidean": "euclidean", "dual": "matrix_norm"}[norm]
    v = GOLDEN["tanh/g"]
    U = inner_loop(identity("diagonal"), v, GOLDEN["tanh/Fsum"], MU)
    close(perturbation(U, v, 0.05, norm), f"C/diagonal/ema_precond_grad/{theirs}")
    parts = [
        perturbation(Preconditioner((block,)), part, 0.05 / np.sqrt(3), norm)
        for block, part in zip(U.blocks, U.split(v), strict=True)
    ]
    assert tuple(part.size for part in parts) == LAYER_SIZES
    close(np.concatenate(parts), f"C/diagonal/ema_precond_grad/layer_{theirs}")
