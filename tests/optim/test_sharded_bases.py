"""The default on parameters that are cut between ranks (FSDP2): its bases are blocks that no cut goes through.

Where the blocks of a whole matrix respect the cuts, two ranks take the steps of one, float64, 1e-10.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import SGD

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR, SAM
from llqr_sam_ref.optim.structures import EKFAC, Cut
from llqr_sam_ref.optim.structures.side import Side, make_side
from tests.optim._ranks import run_on_ranks, sharded, whole
from tests.optim._training import backward, same

STEPS = 12
CONFIGS = {
    "blocks of a part": LLQRConfig(max_side=2).replace(basis_every=3),
    "one block a part": LLQRConfig(max_side=4).replace(basis_every=3),
    "eigenvectors": LLQRConfig(max_side=4).replace(basis_every=3, renewal="eigendecomposition"),
    "one damping": LLQRConfig(max_side=4).replace(basis_every=3, damping_kind="relative"),
    "identity": LLQRConfig(max_side=4, wide="identity").replace(basis_every=3),
}


def network(middle: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, middle), nn.Tanh(), nn.Linear(middle, 8)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x, (x @ torch.ones(4, 8, dtype=torch.float64).cumsum(1).cos()).argmax(1)


def half(whole: Tensor, rank: int | None) -> Tensor:
    return whole if rank is None else whole.chunk(2)[rank]


def walk(model: nn.Module, opt: Any, steps: range, rank: int | None) -> list[Tensor]:
    """Steps on this rank's half of every batch (the whole of it without ranks), and all weights after each."""
    path = []
    for t in steps:
        x, y = (half(part, rank) for part in batch(t))

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            return backward(nn.functional.cross_entropy(model(x), y))

        opt.step(closure)
        path.append(torch.cat([whole(p).reshape(-1) for p in model.parameters()]))
    return path


def built(model: nn.Module, config: LLQRConfig) -> LLQR:
    return LLQR(SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True), model, config=config)


def stored(opt: LLQR) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in opt.model.named_parameters()}
    return {
        f"{names[p]} {name}": whole(t)
        for p, entries in opt.own.items()
        for name, t in entries.items()
        if isinstance(t, Tensor)
    }


def on_a_rank(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        for rho in (0.0, 0.1):
            model = sharded(network())
            opt = built(model, config)
            found[f"{name}, {rho}"] = (
                walk(model, SAM(opt, rho) if rho else opt, range(STEPS), rank),
                stored(opt),
            )
    found["uneven"] = {middle: uneven(middle, rank) for middle in (1, 5, 7)}
    found["second axis"] = by_columns(rank)
    found["resumed"] = [resumed(rank, full=full) for full in (None, False, True)]
    found["not finite"] = not_finite(rank)
    found["two axes"] = two_axes()
    return found


def uneven(middle: int, rank: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """A side of which the ranks hold unequal parts, or one of them nothing."""
    model = sharded(network(middle))
    opt = built(model, CONFIGS["one block a part"])
    return walk(model, opt, range(STEPS), rank), stored(opt)


def by_columns(rank: int) -> dict[str, Tensor]:
    """A matrix cut along its second axis, given the gradients of a whole one."""
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Linear(8, 4, bias=False).double()
    torch.manual_seed(1)
    start = torch.randn(4, 8, dtype=torch.float64)
    model.weight = nn.Parameter(distribute_tensor(start, mesh, [Shard(1)]))
    opt = built(model, CONFIGS["one block a part"])
    for t in range(STEPS):
        gradient = torch.randn(4, 8, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        model.weight.grad = distribute_tensor(gradient, mesh, [Shard(1)])
        opt.step()
    return {"w": whole(model.weight), **stored(opt)}


def resumed(rank: int, *, full: bool | None) -> bool:
    """What is saved of a U that is cut goes on where it was."""
    config = CONFIGS["one block a part"]
    model, twin = sharded(network()), sharded(network())
    opt, again = built(model, config), built(twin, config)
    walk(model, opt, range(5), rank)
    if full is None:
        twin.load_state_dict(model.state_dict())
        again.load_state_dict(copy.deepcopy(opt.state_dict()))
    else:
        opt.zero_grad()
        saved = copy.deepcopy(get_state_dict(model, opt, options=StateDictOptions(full_state_dict=full)))
        options = StateDictOptions(full_state_dict=full, broadcast_from_rank0=full)
        set_state_dict(twin, again, model_state_dict=saved[0], optim_state_dict=saved[1], options=options)
    return same(walk(model, opt, range(5, 10), rank), walk(twin, again, range(5, 10), rank))


def not_finite(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is remembered before and after a step whose gradient one rank alone finds broken."""
    model = sharded(network())
    opt = built(model, CONFIGS["one block a part"])
    walk(model, opt, range(4), rank)
    before = stored(opt)
    for p in model.parameters():
        gradient: Any = torch.full_like(p, 0.1)
        if rank:
            gradient.to_local().fill_(math.nan)
        p.grad = gradient
    opt._learn_from_step()
    return before, stored(opt)


def two_axes() -> str:
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Conv2d(4, 4, 3).double()
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(1)]))
    model.bias = None
    try:
        LLQR(SGD(model.parameters(), lr=0.1), model)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_on_ranks(on_a_rank)


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "identity"])
def test_two_ranks_with_a_part_each_equal_one(name: str, rho: float, two: list[dict[str, Any]]) -> None:
    model = network()
    opt = built(model, CONFIGS[name])
    expected = walk(model, SAM(opt, rho) if rho else opt, range(STEPS), None)
    for results in two:
        path, kept = results[f"{name}, {rho}"]
        for found, wanted in zip(path, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        for what, wanted in stored(opt).items():
            torch.testing.assert_close(kept[what].reshape(wanted.shape), wanted, rtol=1e-9, atol=1e-10)
    assert float((expected[-1] - expected[0]).abs().max()) > 1e-2
    far = [t for what, t in stored(opt).items() if "E_" in what]
    assert max(float((t - torch.eye(t.shape[-1], dtype=t.dtype)).abs().max()) for t in far) > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_all_ranks_hold_the_same(name: str, two: list[dict[str, Any]]) -> None:
    (path, kept), (other, twin) = (results[f"{name}, 0.1"] for results in two)
    assert same(path, other)
    assert {what: t.tolist() for what, t in kept.items()} == {what: t.tolist() for what, t in twin.items()}


@pytest.mark.parametrize("middle", [1, 5, 7])
def test_unequal_parts_have_no_basis_on_the_side_that_is_cut(middle: int, two: list[dict[str, Any]]) -> None:
    (path, kept), (other, twin) = (results["uneven"][middle] for results in two)
    assert same(path, other)
    assert all(bool(t.isfinite().all()) for t in path)
    assert set(kept) == set(twin)
    assert "0.weight E_Psi" not in kept
    assert kept["0.weight E_Phi"].shape == (4, 4)
    assert float((kept["0.weight E_Phi"] - torch.eye(4, dtype=torch.float64)).abs().max()) > 0.1
    assert kept["2.weight E_Psi"].shape == (2, 4, 4)


def test_columns_may_be_cut_as_well(two: list[dict[str, Any]]) -> None:
    model = nn.Linear(8, 4, bias=False).double()
    torch.manual_seed(1)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 8, dtype=torch.float64))
    opt = built(model, CONFIGS["one block a part"])
    for t in range(STEPS):
        model.weight.grad = torch.randn(4, 8, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        opt.step()
    for results in two:
        torch.testing.assert_close(results["second axis"]["w"], model.weight.detach(), rtol=1e-10, atol=1e-10)
        assert results["second axis"]["weight E_Phi"].shape == (2, 4, 4)


def test_it_resumes_sharded_and_gathered(two: list[dict[str, Any]]) -> None:
    assert [results["resumed"] for results in two] == [[True] * 3] * 2


def test_a_part_that_is_not_finite_keeps_the_whole_from_learning(two: list[dict[str, Any]]) -> None:
    for results in two:
        before, after = results["not finite"]
        assert {n: t.tolist() for n, t in before.items()} == {n: t.tolist() for n, t in after.items()}


def test_a_cut_that_no_side_can_follow_says_so(two: list[dict[str, Any]]) -> None:
    for results in two:
        assert "use structure='diagonal' for it" in results["two axes"]


@pytest.mark.parametrize(
    ("whole", "parts", "max_side", "width"),
    [
        (8, 2, None, 4),
        (8, 2, 2, 2),
        (9, 2, 4, 0),
        (10, 4, None, 0),
        (12, 4, 128, 3),
        (256, 2, 64, 64),
        (3, 4, 8, 0),
        (6, 4, 8, 0),
    ],
)
def test_blocks_lie_on_one_rank_each(whole: int, parts: int, max_side: int | None, width: int) -> None:
    cut, part = Cut(0, whole, parts), -(-whole // parts)
    for start in range(0, parts * part, part):
        size = max(0, min(part, whole - start))
        side = make_side(size, max_side, "blocks", cut)
        assert side.width == width
        assert side.count * width in {size, 0}
    structure = EKFAC((part, 6), False, max_side, "blocks", cut)
    assert structure.phi == make_side(6, max_side, "blocks")


def test_whole_sides_are_as_ever() -> None:
    assert make_side(0, 4, "blocks") == Side(0, 1)
    assert make_side(7, 4, "blocks") == Side(7, 7)
    assert make_side(6, 4, "blocks") == Side(6, 2)
    assert make_side(6, 4, "identity") == Side(6, 0)
    assert make_side(6, 0, "blocks") == Side(6, 0)
    assert make_side(6, None, "identity") == Side(6, 1)
