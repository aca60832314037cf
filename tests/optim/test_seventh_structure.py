"""A structure added in one file, this one, works everywhere: LLQR, checkpoints, reports, ranks, the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from llqr_sam_ref import LLQR, SAM
from llqr_sam_ref.config import CHOICES, LLQRConfig
from llqr_sam_ref.optim.structures import (
    STRUCTURES,
    Cost,
    Diagonal,
    Factors,
    Shape,
    Structure,
    make_structure,
    register_structure,
)
from llqr_sam_ref.train import cli
from tests.optim import test_structure
from tests.optim._ranks import run_on_ranks
from tests.optim._training import backward, same
from tests.optim.test_llqr_distributed import batch, half, network, train
from tests.optim.test_structure import near_identity, normal

NAME = "output-side"


@dataclass(frozen=True)
class OutputSide(Structure):
    """S = E (d o E^T X): a basis, and one scale per direction, on the output side alone; vectors get a diagonal."""

    scales: ClassVar[tuple[str, ...]] = ("d",)
    joins_layers: ClassVar[bool] = False

    @classmethod
    def for_shape(cls, shape: Shape, *, positive: bool = False, **_: Any) -> Structure:
        return Diagonal(shape, positive) if len(shape) == 1 else cls(shape, positive)

    def array_shapes(self) -> dict[str, Shape]:
        m, _ = self.shape
        return {"E": (m, m), "d": (m,)}

    def cost(self) -> Cost:
        m, _ = self.shape
        return Cost(4 * m * self.size, 8 * m * self.size, m * m + m)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        E, d = factors["E"], factors["d"]
        return E @ (d.unsqueeze(-1) * (E.mT @ X))

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        E, d = factors["E"], factors["d"].unsqueeze(-1)
        x, z = E.mT @ X, E.mT @ Z
        return {"E": Z @ (d * x).mT + X @ (d * z).mT, "d": (z * x).sum(-1)}

    def _dense(self, factors: Factors) -> Tensor:
        E, d = factors["E"], factors["d"].unsqueeze(-2)
        side, eye = (E * d) @ E.mT, torch.eye(self.shape[1]).to(E)
        product = side[..., :, None, :, None] * eye[:, None, :]
        return product.flatten(-4, -3).flatten(-2, -1)

    def _squared_distance(self, factors: Factors) -> Tensor:
        E, d = factors["E"], factors["d"].unsqueeze(-2)
        off = (E * (d - 1)) @ E.mT + (E @ E.mT - torch.eye(self.shape[0]).to(E))
        return self.shape[1] * off.square().flatten(-2).sum(-1)

    @property
    def curvature_shape(self) -> Shape:
        return self.shape[:1]

    def curvature_sample(
        self, arrays: Factors, V: Float[Tensor, "b k m n"], weight: float
    ) -> Float[Tensor, "b m"]:
        return (arrays["E"].mT.unsqueeze(1) @ V).square().sum(1).mean(-1) * weight

    def trace(self, c: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
        return c.sum(-1) * self.shape[1]

    def minimizer(self, c: Float[Tensor, "b m"], mu: Float[Tensor, ""]) -> Factors:
        return {"d": (c + mu).reciprocal()}

    def bases(self) -> dict[str, str]:
        return {"E": "gram"}

    def gram_samples(self, V: Float[Tensor, "b k m n"], weight: float) -> Factors:
        rows = V.movedim(1, -2).flatten(2)
        return {"gram": rows @ rows.mT * weight}

    def turned(self, c: Float[Tensor, "b m"], turns: Factors) -> Float[Tensor, "b m"]:
        return (turns["E"].square() @ c.unsqueeze(-1)).squeeze(-1)


CLOSED: dict[str, Any] = {"every": 2, "probes": 4, "basis_every": 2}
INNER: dict[str, Any] = {"every": 2, "lr": 0.02, "ema": 0.5, "steps": 10}
SOLVERS = ("closed form", "inner loop")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """The structure has its name while a test of this file runs."""
    known = CHOICES["structure"]
    register_structure(NAME)(OutputSide)
    yield
    del STRUCTURES[NAME]
    CHOICES["structure"] = known


def config(solver: str) -> LLQRConfig:
    if solver == "closed form":
        return LLQRConfig(structure=NAME).replace(**CLOSED)
    return LLQRConfig.published(structure=NAME, **INNER)


def step(opt: Any, model: nn.Module, t: int) -> None:
    x, y = batch(t)
    opt.zero_grad()
    backward(nn.functional.cross_entropy(model(x), y))
    opt.step()


def loss_of(model: nn.Module) -> float:
    x, y = batch(0)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


def trained(solver: str, steps: int = 6) -> tuple[LLQR, nn.Module]:
    model = network()
    rate = 0.02 if solver == "closed form" else 0.2
    opt = LLQR(SGD(model.parameters(), lr=rate, momentum=0.9), model, nn.CrossEntropyLoss(), config(solver))
    for t in range(steps):
        if opt.refit_due:
            opt.refit(*batch(100 + t))
        step(opt, model, t)
    return opt, model


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("positions", [(), (2,), (2, 3)])
def test_it_is_a_structure_like_the_others(positive: bool, positions: tuple[int, ...]) -> None:
    structure = make_structure(NAME, (3, 4), positive=positive)
    assert structure == OutputSide((3, 4), positive)
    assert make_structure(NAME, (3,)) == Diagonal((3,))
    test_structure.test_apply_is_the_dense_matrix_and_pullback_is_its_derivative(structure, positions)
    test_structure.test_the_distance_to_the_identity_is_that_of_the_dense_matrix(structure)
    if positive:
        test_structure.test_positive_structures_are_positive_definite_wherever_their_arrays_go(NAME)


def test_its_minimizer_is_the_stationary_point_of_the_expected_objective() -> None:
    """E J = tr(U (F + mu I) U)/2 - tr U over white probes, with F from the very gradients that c was sampled from."""
    structure, mu = OutputSide((3, 4)), torch.tensor(0.3, dtype=torch.float64)
    V = normal(2, 5, 3, 4)
    arrays = structure.identity((2,), torch.float64)
    arrays["E"] = torch.linalg.qr(normal(2, 3, 3, seed=1)).Q
    c = structure.curvature_sample(arrays, V, 0.2)
    F = 0.2 * V.flatten(2).mT @ V.flatten(2)
    assert torch.allclose(structure.trace(c), F.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-12)
    best = {n: a.requires_grad_() for n, a in structure.minimizer(c, mu).items()}
    U = structure.to_dense({**arrays, **best})
    J = (U @ (F + mu * torch.eye(12).double()) @ U).diagonal(dim1=-2, dim2=-1) / 2 - U.diagonal(
        dim1=-2, dim2=-1
    )
    (slope,) = torch.autograd.grad(J.sum(), list(best.values()))
    assert float(slope.abs().max()) < 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_trains(solver: str) -> None:
    opt, model = trained(solver, steps=30)
    learned = opt._preconditioner()
    assert {type(stack.structure) for stack in learned.stacks} == {OutputSide, Diagonal}
    assert all(row.distance > 1e-3 for row in opt.report())
    assert loss_of(model) < loss_of(network())
    if solver == "closed form":
        for stack in learned.stacks:
            c, U = stack.kept["c"], stack.structure.to_dense(stack.arrays)
            mean = stack.structure.trace(c) / U.shape[-1]
            units = mean.view(-1, *(1 for _ in c.shape[1:]))
            assert torch.allclose(stack.kept["d"], 1 / (c / units + 0.1), rtol=1e-12)
            assert float(torch.linalg.eigvalsh(U).min()) > 0
            assert torch.allclose(U, U.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_saved_and_resumed_bit_for_bit(solver: str) -> None:
    opt, model = trained(solver)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, twin = trained(solver, steps=0)
    twin.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    for one, other in ((opt, model), (again, twin)):
        for t in range(6, 10):
            if one.refit_due:
                one.refit(*batch(100 + t))
            step(one, other, t)
    assert same(list(model.parameters()), list(twin.parameters()))
    assert all(
        same(list(_tensors(opt, p)), list(_tensors(again, q)))
        for p, q in zip(*_both(opt, again), strict=True)
    )
    diagonal = LLQR(
        SGD(twin.parameters(), lr=0.1),
        twin,
        nn.CrossEntropyLoss(),
        config(solver).replace(structure="diagonal"),
    )
    with pytest.raises(ValueError, match="structure='diagonal'.* keeps .*configuration it was saved with"):
        diagonal.load_state_dict(saved["optimizer"])


def _both(*optimizers: LLQR) -> list[list[Tensor]]:
    return [opt.param_groups[0]["params"] for opt in optimizers]


def _tensors(opt: LLQR, parameter: Tensor) -> Iterator[Tensor]:
    return (value for value in opt.own[parameter].values() if isinstance(value, Tensor))


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_reported_on(solver: str) -> None:
    opt, model = trained(solver)
    rows = {row.name: row for row in opt.report()}
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    reported = 0
    for stack in opt._preconditioner().stacks:
        for U, block in zip(stack.structure.to_dense(stack.arrays), stack.blocks, strict=True):
            if isinstance(block.structure, OutputSide):
                row, g = rows[block.name], torch.cat([gradient[name].reshape(-1) for name in block.names])
                assert row.distance == pytest.approx(float((U - torch.eye(len(U))).norm()), rel=1e-10)
                assert row.descent == pytest.approx(float(g @ U @ g), rel=1e-10)
                assert row.cost == block.structure.cost()
                reported += 1
    assert reported == 2
    fresh, _ = trained(solver, steps=0)
    assert fresh.quadratic_gain(*batch(100)) == pytest.approx(1.0, rel=1e-12)
    assert abs(opt.quadratic_gain(*batch(100)) - 1) > 1e-3


def on_a_rank(rank: int) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Training on half of every batch; a process of its own has to hear of the structure."""
    register_structure(NAME)(OutputSide)
    paths = {}
    for solver in SOLVERS:
        opt, path = train(DistributedDataParallel(network()), config(solver), 0.1, half(rank))
        paths[solver] = (
            path,
            [t for entries in opt.own.values() for t in entries.values() if isinstance(t, Tensor)],
        )
    return paths


def test_two_ranks_take_the_steps_of_one() -> None:
    ours, theirs = run_on_ranks(on_a_rank)
    for solver in SOLVERS:
        _, expected = train(network(), config(solver), 0.1, lambda whole: whole)
        for path, wanted in zip(ours[solver][0], expected, strict=True):
            torch.testing.assert_close(path, wanted, rtol=1e-10, atol=1e-10)
        assert same(ours[solver][0], theirs[solver][0])
        assert same(ours[solver][1], theirs[solver][1])


def test_it_is_a_geometry_for_sam() -> None:
    opt, model = trained("closed form")
    sam = SAM(opt, rho=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    wanted = [U_g for U_g in opt.preconditioned_gradients() if U_g is not None]
    length = torch.stack([U_g.square().sum() for U_g in wanted]).sum().sqrt()
    with sam.perturbed():
        for p, w, U_g in zip(model.parameters(), before, wanted, strict=True):
            assert torch.allclose(p - w, 0.1 * U_g / length, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["llqr", "llqr-published"])
def test_the_command_line_trains_with_it(optimizer: str, tmp_path: Path) -> None:
    command = [
        *("train", "--preset", "digits-mlp", "--optimizer", optimizer, "--out", str(tmp_path)),
        *("--llqr", f"structure={NAME}", "every=2", "--epochs", "1", "--train-examples", "128"),
        *("--no-progress", "--no-tensorboard", "--sharpness-examples", "0", "--model-args", "hidden=8"),
    ]
    assert cli.main(command) == 0
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert f"structure={NAME}" in record["config"]["llqr"]


def test_mistakes_name_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="structure='output-sid' .* did you mean 'output-side'"):
        LLQRConfig(structure="output-sid")
    with pytest.raises(ValueError, match="name='output-side' is taken"):
        register_structure(NAME)
    given = ("train", "--preset=digits-mlp", "--optimizer=llqr", "--llqr", "structure=output-sid")
    assert cli.main([*given, "--out", str(tmp_path)]) == 2
    assert "'output-side'" in capsys.readouterr().err


def test_a_structure_without_a_closed_form_says_so() -> None:
    class Bare(OutputSide):
        curvature_shape = Structure.curvature_shape

    with pytest.raises(NotImplementedError, match="Bare has no closed form; .*inner loop"):
        Bare((3, 4)).memory_shapes()


def test_both_tables_know_the_same_names() -> None:
    assert CHOICES["structure"] == tuple(STRUCTURES)
    assert near_identity(make_structure(NAME, (3, 4)), (2,))["E"].shape == (2, 3, 3)
