"""Two ranks with half a batch each take the steps of one rank with the whole: LLQR and LLQR+SAM, float64, 1e-10."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR, SAM, llqr
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.preconditioner import closed_form
from llqr_sam_ref.optim.preconditioner.closed_form import eigenbasis as estimate_eigenbasis
from llqr_sam_ref.optim.preconditioner.report import BlockReport
from llqr_sam_ref.optim.probes import batch as probe_batch
from tests.optim import _ranks
from tests.optim._ranks import run_on_ranks, whole
from tests.optim._training import backward, same

STEPS = 6
DEFAULT = LLQRConfig().replace(every=2, probes=4, basis_every=2)
INNER = LLQRConfig.published(every=2, structure="kronecker", lr=0.02, ema=0.5, steps=10)
CONFIGS: dict[str, LLQRConfig] = {
    "default": DEFAULT,
    # (A single probe leaves eigenvalues of zero, whose eigenvectors are anybody's.)
    "default, one probe, no bases": DEFAULT.replace(probes=1, max_side=0),
    "default, summed, absolute": DEFAULT.replace(reduction="sum", damping_kind="absolute", damping=3.0),
    "default, true labels": DEFAULT.replace(probe_vector="gradient"),
    "dense": DEFAULT.replace(structure="dense"),
    "published": LLQRConfig.published(every=2, lr=0.02, ema=0.5),
    "published, newton": LLQRConfig.published(every=2, divergence="newton", lr=0.02),
    "inner loop, four probes": INNER.replace(probes=4, probe_vector="sampled"),
}


SHARDED: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "true labels": {"probe_vector": "gradient"},
    "per tensor": {"step_rule": "rms-per-tensor"},
    "grafted": {"step_rule": "graft"},
    "on the gradient": {
        "acts_on": "gradient",
        "step_rule": "none",
        "damping": 1.0,
        "damping_kind": "absolute",
    },
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    return x, (x[:, :3] + 0.5 * x[:, 2:]).argmax(1)


def train(
    model: nn.Module, config: LLQRConfig, rho: float, share: Callable[[Tensor], Tensor]
) -> tuple[LLQR, list[Tensor]]:
    """Some steps on this rank's share of every batch, and the weights after each."""
    loss_fn = nn.CrossEntropyLoss()
    rate = 0.02 if config.acts_on == "update" else 0.2
    inner = LLQR(SGD(model.parameters(), lr=rate, momentum=0.9), model, loss_fn, config)
    opt: Any = SAM(inner, rho) if rho else inner
    path = []
    for t in range(STEPS):
        if inner.refit_due:
            uniforms = torch.rand(16, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
            chosen = {} if t else {"uniforms": share(uniforms)}  # the first from the test, the others its own
            inner.refit(*map(share, batch(100 + t)), **chosen)
        x, y = map(share, batch(t))

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            return backward(loss_fn(model(x), y))

        opt.step(closure)
        path.append(torch.cat([whole(p).reshape(-1) for p in model.parameters()]))
    return inner, path


def half(rank: int) -> Callable[[Tensor], Tensor]:
    return lambda whole: whole.chunk(2)[rank]


def on_a_rank(rank: int) -> dict[str, Any]:
    """Everything that needs two processes, in one start of them."""
    found: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        for rho in (0.0, 0.1):
            model = DistributedDataParallel(network())
            opt, path = train(model, config, rho, half(rank))
            stored = [t for entries in opt.own.values() for t in entries.values() if isinstance(t, Tensor)]
            found[f"{name}, {rho}"] = path, stored
    wrongs = (three_probes, unequal_shares, sharded_separable, sharded_published, sharded_gain)
    found["errors"] = [error_of(rank, wrong) for wrong in wrongs]
    config = DEFAULT.replace(structure="diagonal")
    for name, changes in SHARDED.items():
        opt, path = train(sharded(), config.replace(**changes), 0.1, half(rank))
        entries = next(iter(opt.own.values()))
        found[f"sharded, {name}"] = path, tuple(entries["d"].shape), type(entries["d"]).__name__
    found["sharded gradients"] = gradients_stay(rank)
    found["sharded resume"] = [sharded_resume(rank, full=full) for full in (None, False, True)]
    found["sharded autocast"] = autocast_stays_out(rank)
    found["sharded report"] = sharded_report(rank)
    found["bases"] = bases_by_turns(rank)
    return found


def sharded(dtype: torch.dtype = torch.float64) -> nn.Module:
    return _ranks.sharded(network().to(dtype))


def gradients_stay(rank: int) -> bool:
    """A refit of a sharded model leaves the gradients that are there."""
    model = sharded()
    opt = LLQR(
        SGD(model.parameters(), lr=0.1), model, nn.CrossEntropyLoss(), DEFAULT.replace(structure="diagonal")
    )
    x, y = map(half(rank), batch(0))
    backward(nn.functional.cross_entropy(model(x), y))
    before = [p.grad for p in model.parameters()]
    values = [whole(g) for g in before]
    opt.refit(x, y)
    after = [p.grad for p in model.parameters()]
    return all(a is b for a, b in zip(before, after, strict=True)) and same(values, [whole(g) for g in after])


def autocast_stays_out(rank: int) -> bool:
    """A refit of a sharded model under autocast is one in float32."""
    found = []
    for enabled in (False, True):
        model = sharded(torch.float32)
        opt = LLQR(
            SGD(model.parameters(), lr=0.1),
            model,
            nn.CrossEntropyLoss(),
            DEFAULT.replace(structure="diagonal"),
        )
        x, y = map(half(rank), batch(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            opt.refit(x.float(), y)
        found.append([whole(entries["d"]) for entries in opt.own.values()])
    return same(*found)


def sharded_resume(rank: int, *, full: bool | None) -> bool:
    """What is saved of a sharded U is sharded too (or gathered, ``full``), and goes on where it was."""
    config = DEFAULT.replace(structure="diagonal")
    model = sharded()
    opt, _ = train(model, config, 0.0, half(rank))
    twin = sharded()
    again = LLQR(SGD(twin.parameters(), lr=0.02, momentum=0.9), twin, nn.CrossEntropyLoss(), config)
    if full is None:
        twin.load_state_dict(model.state_dict())
        again.load_state_dict(copy.deepcopy(opt.state_dict()))  # torch shares the base's tensors
    else:
        opt.zero_grad()
        options = StateDictOptions(full_state_dict=full)
        saved = copy.deepcopy(get_state_dict(model, opt, options=options))
        options = StateDictOptions(full_state_dict=full, broadcast_from_rank0=full)
        set_state_dict(twin, again, model_state_dict=saved[0], optim_state_dict=saved[1], options=options)
    for one, other in ((model, opt), (twin, again)):
        if other.refit_due:
            other.refit(*map(half(rank), batch(50)))
        other.zero_grad()
        x, y = map(half(rank), batch(51))
        backward(nn.functional.cross_entropy(one(x), y))
        other.step()
    return same([whole(p) for p in model.parameters()], [whole(p) for p in twin.parameters()])


def sharded_report(rank: int) -> list[BlockReport]:
    """A report on a model of which every rank has half, the last bias cut into 2 + 1."""
    opt, _ = train(sharded(), DEFAULT.replace(structure="diagonal"), 0.0, half(rank))
    x, y = map(half(rank), batch(0))
    opt.zero_grad()
    backward(nn.functional.cross_entropy(opt.model(x), y))
    return opt.report()


def bases_by_turns(rank: int) -> tuple[list[Tensor], int]:
    """What is learned if the ranks' eigenvectors come in different orders, as those of different machines may.

    And how many bases this rank made.
    """
    made = 0
    model = network()
    opt = LLQR(
        SGD(model.parameters(), lr=0.02),
        model,
        nn.CrossEntropyLoss(),
        DEFAULT.replace(renewal="eigendecomposition"),
    )

    def turned(gram: Tensor, old: Tensor) -> Tensor:
        nonlocal made
        made += len(gram)
        return estimate_eigenbasis(gram, old).flip(-1) if rank else estimate_eigenbasis(gram, old)

    with patch.object(closed_form, "eigenbasis", turned):
        for t in range(3):
            opt.refit(*map(half(rank), batch(t)))
    return [t for entries in opt.own.values() for t in entries.values() if isinstance(t, Tensor)], made


def three_probes(rank: int) -> None:
    model = network()
    LLQR(SGD(model.parameters(), lr=0.1), model, nn.CrossEntropyLoss(), DEFAULT.replace(probes=3)).refit(
        *batch(0)
    )


def unequal_shares(rank: int) -> None:
    model = network()
    x, y = batch(0)
    opt = LLQR(SGD(model.parameters(), lr=0.1), model, nn.CrossEntropyLoss(), DEFAULT)
    opt.refit(x[: 8 - 4 * rank], y[: 8 - 4 * rank])


def sharded_separable(rank: int) -> None:
    model = sharded()
    LLQR(
        SGD(model.parameters(), lr=0.1),
        model,
        nn.CrossEntropyLoss(),
        DEFAULT.replace(structure="separable-ekfac"),
    )


def sharded_published(rank: int) -> None:
    model = sharded()
    LLQR(SGD(model.parameters(), lr=0.1), model, nn.CrossEntropyLoss(), LLQRConfig.published())


def sharded_gain(rank: int) -> None:
    model = sharded()
    config = DEFAULT.replace(structure="diagonal")
    opt = LLQR(SGD(model.parameters(), lr=0.1), model, nn.CrossEntropyLoss(), config)
    opt.quadratic_gain(*map(half(rank), batch(0)))


def error_of(rank: int, wrong: Callable[[int], None]) -> str:
    try:
        wrong(rank)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_on_ranks(on_a_rank)


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_equal_one(name: str, rho: float, two: list[dict[str, Any]]) -> None:
    _, expected = train(network(), CONFIGS[name], rho, lambda whole: whole)
    (path, stored), (other, twin) = (results[f"{name}, {rho}"] for results in two)
    for found, wanted in zip(path, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert float((expected[-1] - expected[0]).abs().max()) > 1e-2
    assert same(path, other)  # bit for bit
    assert same(stored, twin)


def interleaved(whole: Tensor) -> Tensor:
    """Micro-batch j of a sharded model is made of the j-th micro-batches of all ranks."""
    return whole.view(2, 4, 2, *whole.shape[1:]).transpose(0, 1).reshape(whole.shape)


@pytest.fixture
def interleaved_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = probe_batch.draw_uniforms
    monkeypatch.setattr(llqr, "draw_uniforms", lambda *given: interleaved(draw(*given)))


@pytest.mark.usefixtures("interleaved_uniforms")
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_ranks_equal_one(name: str, two: list[dict[str, Any]]) -> None:
    config = DEFAULT.replace(structure="diagonal", **SHARDED[name])
    _, expected = train(network(), config, 0.1, interleaved)
    for results in two:
        path, shape, kind = results[f"sharded, {name}"]
        for found, wanted in zip(path, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert (shape, kind) == ((6, 5), "DTensor")


def test_sharded_refits_leave_the_gradients_and_resume(two: list[dict[str, Any]]) -> None:
    assert [results["sharded gradients"] for results in two] == [True, True]
    assert [results["sharded autocast"] for results in two] == [True, True]
    assert [results["sharded resume"] for results in two] == [[True] * 3] * 2


@pytest.mark.usefixtures("interleaved_uniforms")
def test_a_sharded_report_is_that_of_the_whole(two: list[dict[str, Any]]) -> None:
    opt, _ = train(network(), DEFAULT.replace(structure="diagonal"), 0.0, interleaved)
    x, y = batch(0)
    opt.zero_grad()
    backward(nn.functional.cross_entropy(opt.model(x), y))
    for results in two:
        for found, wanted in zip(results["sharded report"], opt.report(), strict=True):
            assert found.name == wanted.name
            for number in ("distance", "descent", "stretch", "cosine"):
                assert getattr(found, number) == pytest.approx(getattr(wanted, number), rel=1e-9)


def test_every_rank_makes_its_share_of_the_bases_and_all_take_them(two: list[dict[str, Any]]) -> None:
    (ours, some), (twin, others) = (results["bases"] for results in two)
    assert same(ours, twin)
    renewals = sum(closed_form.due(count, 1) for count in range(1, 4))
    assert some == others == renewals * 2  # of two matrices with two sides each


def test_portions_are_disjoint_and_whole() -> None:
    for count, turn, size in ((1, 0, 2), (1, 1, 2), (7, 2, 3), (8, 5, 4)):
        parts = [Ranks(None, rank, size).portion(count, turn) for rank in range(size)]
        assert sorted(i for part in parts for i in range(count)[part]) == list(range(count))
    assert Ranks().portion(5, 3) == slice(0, 5)


def test_what_cannot_be_shared_says_so(two: list[dict[str, Any]]) -> None:
    for results in two:
        probes, shares, sharding, inner, gain = results["errors"]
        assert "probes=3 micro-batches cannot be shared at world size 2; choose a multiple, or 1" in probes
        assert "the number of probe examples differs between the ranks: [8, 4]" in shares
        assert "structure='separable-ekfac'" in sharding
        assert "use structure='diagonal' or 'ekfac' with solver=ClosedForm(...)" in sharding
        assert "structure='diagonal' with solver=InnerLoop needs whole ones" in inner
        assert "quadratic_gain() needs whole parameters" in gain


def test_a_single_process_is_rank_0_of_1() -> None:
    alone = Ranks.of()
    assert (alone.rank, alone.world_size) == (0, 1)
