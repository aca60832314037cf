"""Nothing in the inner loop and in a step waits for the device, and the work goes in few, small operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from llqr_sam_ref import LLQR, SAM, Adaptive, Fisher, LLQRConfig, Monge
from llqr_sam_ref.optim.preconditioner import closed_form, refit
from llqr_sam_ref.optim.preconditioner.inner_loop import (
    KroneckerLoop,
    Loop,
    PlainLoop,
    inner_loop,
    refit_inner_loop,
)
from llqr_sam_ref.optim.structures import STRUCTURES, make_structure
from tests.optim._training import backward

WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique")
MASKING = {"index", "index_put", "index_put_", "masked_select"}  # the size of the result is on the device
READING = ("tolist", "cpu", "numpy", "__array__")
loss_fn = nn.CrossEntropyLoss()


class Watch(TorchDispatchMode):
    """Counts operations, notes those that wait for the device, and the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        self.operations: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in MASKING and any(
            isinstance(leaf, Tensor) and leaf.dtype is torch.bool for leaf in pytree.tree_leaves(args[1:])
        )
        if by_mask or any(name.startswith(word) for word in WAITING):
            self.waited.append(name)
        self.operations[name] += 1
        result = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *made])
        return result


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which whatever reads a value back is noted."""

    @contextmanager
    def watching() -> Iterator[Watch]:
        seen = Watch()
        with monkeypatch.context() as patch, seen:
            for name in READING:
                patch.setattr(Tensor, name, lambda tensor, *_, name=name, **__: seen.waited.append(name))
            yield seen

    return watching


def network(widths: tuple[int, ...] = (4, 6, 6, 3)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (16,), generator=generator)


def test_the_watch_sees_who_waits(watch: Callable[[], Any]) -> None:
    x = torch.arange(3.0)
    acts: list[Callable[[], object]] = [
        lambda: x.sum().item(),
        lambda: float(x[0]),
        lambda: bool((x > 1).any()),
        lambda: x[x > 1],
        lambda: x.tolist(),
        lambda: x.cpu(),
    ]
    for act in acts:
        with watch() as seen:
            act()
        assert seen.waited


@pytest.mark.parametrize(
    "options",
    [{}, {"positive": True}, {"probes": 4}, {"clip": None}, {"divergence": "newton"}],
    ids=str,
)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_inner_loop_waits_for_nobody(
    structure: str,
    options: dict[str, Any],
    watch: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, loop, found = network((4, 5, 3)), refit_inner_loop, []

    def watched(*given: Any) -> None:
        with watch() as seen:
            loop(*given)
        found.append(seen)

    monkeypatch.setattr(refit, "refit_inner_loop", watched)
    config = LLQRConfig.published(structure=structure, steps=3, **options)
    LLQR(SGD(model.parameters(), lr=0.1), model, loss_fn, config).refit(*batch())
    assert [seen.waited for seen in found] == [[]]
    assert found[0].operations.total() > 100


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": Monge()},
        {"metric": Fisher()},
        {"metric": Adaptive()},
        {"ascent_ema": 0.9},
        {"layerwise": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "config", [None, LLQRConfig(), LLQRConfig.published()], ids=["sgd", "default", "published"]
)
def test_a_step_waits_for_nobody(
    config: LLQRConfig | None,
    options: dict[str, Any],
    foreach: bool,
    watch: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closed_form, "answers_at_once", lambda device: False)  # as it is on an accelerator
    model = network()
    x, y = batch()
    base: Any = SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    if config is not None:
        base = LLQR(base, model, loss_fn, config)
        base.refit(x, y)
    opt = SAM(base, foreach=foreach, **options)
    for _ in range(2):
        opt.zero_grad()
        backward(loss_fn(model(x), y))
        with watch() as seen:
            block = opt.perturbed()
            block.__enter__()
        opt.zero_grad()
        backward(loss_fn(model(x), y))
        with seen:
            block.__exit__(None, None, None)
            opt.step()
        assert seen.waited == []
    assert opt.realized_radius > 0


def test_layers_of_equal_shape_share_every_operation(watch: Callable[[], Any]) -> None:
    """Six more layers of a shape cost a step no more products, only the views that hand the parts out."""
    counts = []
    for depth in (2, 8):
        model = network((4, *[6] * depth, 3))
        opt = LLQR(SGD(model.parameters(), lr=0.1), model, loss_fn)
        opt.refit(*batch())
        backward(loss_fn(model(batch()[0]), batch()[1]))
        sizes = sorted(len(stack.heads) for stack in opt._preconditioner().stacks)
        assert sizes == sorted([
            1,
            1,
            depth - 1,
            depth,
            1,
        ])  # weights: first, last, middle; biases: of 6, of 3
        with watch() as seen:
            opt.preconditioned_gradients()
        counts.append(seen.operations["mm"] + seen.operations["bmm"])
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("shape", [(64, 3), (3, 64)])
def test_no_tensor_as_large_as_the_large_factor_is_made_in_the_loop(
    shape: tuple[int, int], watch: Callable[[], Any]
) -> None:
    structure = make_structure("kronecker", shape)
    arrays, X = structure.identity((2,), torch.float64), torch.randn(2, *shape, dtype=torch.float64)

    def largest(loop: Loop) -> int:
        with watch() as seen:
            for _ in range(3):
                loop.step(0.5 * loop.apply() - X, 1e-3)
        return int(seen.largest)

    fast = inner_loop(structure, arrays, X)
    assert isinstance(fast, KroneckerLoop)
    assert largest(fast) == X.numel()
    assert largest(PlainLoop(structure, arrays, X)) == 2 * 64 * 64
