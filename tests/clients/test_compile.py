"""torch.compile: the same weights as without it, one graph for both passes, and none for each learning rate."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from llqr_sam_ref import LLQR, SAM
from tests.clients import loops
from tests.clients.recipes import compiled

PARTS = loops.batches(14)
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def plain(parts: list[loops.Batch]) -> dict[str, Any]:
    net = loops.network()
    base = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.01), momentum=0.9)
    opt = SAM(LLQR(base, net))
    decay = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, len(parts))
    return loops.plain_loop(net, opt, loops.grouped(parts, 1), scheduler=decay)


def test_the_recipe_is_the_plain_loop_bit_for_bit() -> None:
    net = loops.network()
    opt = compiled.train(net, PARTS, backend="aot_eager")
    assert loops.same(loops.state(net), plain(PARTS))
    assert opt.param_groups[0]["llqr_refits"] == len(PARTS)


@needs_a_compiler
def test_inductor_rounds_otherwise_and_that_is_all() -> None:
    net = loops.network()
    compiled.train(net, PARTS)
    found, expected = loops.state(net), plain(PARTS)
    # The bias before the batch normalization has no gradient but rounding's, some eps of the largest,
    # and moves by lr times as many sqrt(eps) per step.
    noise = loops.gap({"": found.pop("0.bias")}, {"": expected.pop("0.bias")})
    mean = loops.gap({"": found.pop("1.running_mean")}, {"": expected.pop("1.running_mean")})
    assert max(noise, mean) < 12 * 0.01 * 8 * 2**-26
    assert loops.gap(found, expected) < 1e-10


def test_both_passes_run_the_same_graph() -> None:
    """The weights move in place, and nothing is set on the layers: nothing to compile anew, refits included."""
    net = loops.network()
    fast: Any = torch.compile(net, backend="aot_eager")
    opt = SAM(LLQR(torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), fast))
    loops.plain_loop(fast, opt, loops.grouped(PARTS, 1))
    assert counters["stats"]["unique_graphs"] == 1


def test_a_longer_run_compiles_no_more_of_the_step() -> None:
    """Counters, refits and learning rates change; after the second refit nothing is compiled any more."""
    graphs = []
    for count in (12, 33):
        torch._dynamo.reset()
        counters.clear()
        compiled.train(loops.network(), loops.batches(count), backend="aot_eager")
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]
