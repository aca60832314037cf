"""The relaxed step and the perturbation against numbers printed by the authors' own code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.exact.llqr import perturbation, refit, start
from llqr_sam_ref.exact.preconditioner import Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.relaxation import inner_loop, relaxed_gradient, relaxed_objective
from llqr_sam_ref.exact.structures import Arrays
from tests.exact import golden

NUMBERS = golden.numbers()
LAYERS = (((5, 6), (5,)), ((4, 5), (4,)), ((3, 4), (3,)))
STRUCTURES = {"scalar": "scalar", "diagonal": "diagonal", "kfac": "kronecker"}
MU = 0.01
THETA, G_VECTOR = golden.ours(NUMBERS["tanh/theta"]), golden.ours(NUMBERS["tanh/g"])
F_SUM, F_MEAN = golden.ours_matrix(NUMBERS["tanh/Fsum"]), golden.ours_matrix(NUMBERS["tanh/Fmean"])


def close(value: object, wanted: object) -> None:
    np.testing.assert_allclose(np.asarray(value), np.asarray(wanted), rtol=1e-9, atol=1e-9)


def compare_arrays(arrays: Sequence[Arrays], name: str, prefix: str) -> None:
    """Stored arrays against the fixture: its A is the input side's factor (Phi), its B the output side's."""
    if name == "kfac":
        for layer in range(3):
            close(arrays[2 * layer]["Phi"], NUMBERS[f"{prefix}/layers_{layer}/Dense_0.kernel/A"])
            close(arrays[2 * layer]["Psi"], NUMBERS[f"{prefix}/layers_{layer}/Dense_0.kernel/B"])
            close(arrays[2 * layer + 1]["d"], NUMBERS[f"{prefix}/layers_{layer}/Dense_0.bias/diag"])
        return
    stored = [NUMBERS[f"{prefix}/layers_{layer}"] for layer in range(3)]
    if name == "diagonal":
        close(np.concatenate([part["d"] for part in arrays]), golden.ours(np.concatenate(stored)))
    else:
        close([part["u"] for part in arrays], stored)


def identity(name: str) -> Preconditioner:
    return identity_preconditioner(LAYERS, STRUCTURES[name], per_layer=True)


@pytest.mark.parametrize("name", STRUCTURES)
def test_value_and_gradient_at_the_identity(name: str) -> None:
    prefix = f"B_tanh/{name}/ngd/lam0.01"
    close(relaxed_objective(identity(name), G_VECTOR, F_SUM, MU), NUMBERS[f"{prefix}/J_identity"])
    compare_arrays(relaxed_gradient(identity(name), G_VECTOR, F_SUM, MU), name, f"{prefix}/dJdU_identity")


@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_inner_loop_ends_where_theirs_does(name: str, steps: int) -> None:
    prefix = f"B_tanh/{name}/ngd/lam0.01/steps{steps}"
    U = inner_loop(identity(name), G_VECTOR, F_SUM, MU, steps=steps)
    compare_arrays([block.arrays for block in U.blocks], name, prefix)
    close(U.apply(G_VECTOR), golden.ours(NUMBERS[f"{prefix}/Ug"]))
    close(relaxed_objective(identity(name), G_VECTOR, F_SUM, MU), NUMBERS[f"{prefix}/J_before"])
    close(relaxed_objective(U, G_VECTOR, F_SUM, MU), NUMBERS[f"{prefix}/J_after"])


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_published_configuration_is_that_inner_loop(name: str) -> None:
    """With no averaging, and the mean Fisher, which the configuration sums over the eight examples."""
    config = LLQRConfig.published(structure=STRUCTURES[name], damping=MU, ema=0.0)
    state = refit(config, start(config, THETA, LAYERS), G_VECTOR, 8, F_MEAN)
    prefix = f"B_tanh/{name}/ngd/lam0.01/steps50"
    compare_arrays([block.arrays for block in state.U.blocks], name, prefix)
    close(state.U.apply(G_VECTOR), golden.ours(NUMBERS[f"{prefix}/Ug"]))


@pytest.mark.parametrize("norm", ["euclidean", "dual"])
def test_perturbations_over_all_layers_and_layer_by_layer(norm: str) -> None:
    theirs = {"euclidean": "euclidean", "dual": "matrix_norm"}[norm]
    prefix = "C/diagonal/ema_precond_grad"
    U = inner_loop(identity("diagonal"), G_VECTOR, F_SUM, MU)
    close(perturbation(U, G_VECTOR, 0.05, norm), golden.ours(NUMBERS[f"{prefix}/{theirs}"]))
    layers = [
        perturbation(Preconditioner((block,)), part, 0.05 / np.sqrt(3), norm)
        for block, part in zip(U.blocks, U.split(G_VECTOR), strict=True)
    ]
    assert [layer.size for layer in layers] == [35, 24, 15]
    close(np.concatenate(layers), golden.ours(NUMBERS[f"{prefix}/layer_{theirs}"]))
