"""Accelerate: the recipe gives what a plain loop gives, and a saved state goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.clients import loops
from tests.clients.recipes import accelerate_loop

RATE = 0.01


@pytest.fixture(autouse=True)
def _forget_the_accelerator() -> Iterator[None]:
    """Accelerate keeps one state for the process; each test begins without it."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def accelerator(**settings: Any) -> Accelerator:
    return Accelerator(cpu=True, **settings)


OFTEN = LLQRConfig.sampled(every=3, basis_every=2)


class Run(NamedTuple):
    """A model and all that trains it."""

    net: nn.Module
    opt: SAM
    decay: torch.optim.lr_scheduler.LinearLR


def run(kind: str, steps: int, dtype: torch.dtype = torch.float64) -> Run:
    net = loops.network(dtype)
    base = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    opt = SAM(base) if kind == "SAM" else SAM(LLQR(base, net, cross_entropy, OFTEN), ascent_ema=0.9)
    return Run(net, opt, torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, steps))


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_the_recipe_is_sam(accumulate: int) -> None:
    """With five, the last step of the epoch has two micro-batches only; Accelerate divides by five all the same."""
    parts = loops.batches(12)
    steps = loops.grouped(parts, accumulate)
    here = run("SAM", len(steps))
    accelerate_loop.train(accelerator(gradient_accumulation_steps=accumulate), *here, loops.loader(parts))
    net = loops.network()
    rates = [RATE * (1 - t / len(steps)) for t in range(len(steps))]
    expected = loops.sam_by_hand(net, steps, lr=rates, clip=1.0, divisor=accumulate)
    assert loops.gap(loops.state(here.net), expected) < 1e-10
    assert here.opt.param_groups[0]["sam_steps"] == len(steps)


def _under_autocast(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What Accelerate makes of a model: it enters autocast wherever it is called, by a refit too."""
    return lambda x: torch.autocast("cpu", torch.bfloat16)(forward)(x).float()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_recipe_is_the_plain_loop(precision: str) -> None:
    dtype = torch.float64 if precision == "no" else torch.float32
    parts = loops.batches(12, dtype=dtype)
    steps = loops.grouped(parts, 2)
    here, plain = run("LLQR", len(steps), dtype), run("LLQR", len(steps), dtype)
    client = accelerator(gradient_accumulation_steps=2, mixed_precision=precision)
    accelerate_loop.train(client, *here, loops.loader(parts))
    if precision == "bf16":
        plain.net.forward = _under_autocast(plain.net.forward)  # type: ignore[method-assign]
    expected = loops.plain_loop(plain.net, plain.opt, steps, clip=1.0, scheduler=plain.decay)
    assert loops.same(loops.state(here.net), expected)
    assert here.opt.param_groups[0]["llqr_refits"] == 2  # before steps 0 and 3


def test_a_saved_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Saved after an epoch, between two refits; loaded into new objects that have been prepared."""
    parts = loops.batches(4)
    data = loops.loader(parts)
    whole = run("LLQR", 8)
    client = accelerator()
    accelerate_loop.train(client, *whole, data)
    client.save_state(str(tmp_path))
    accelerate_loop.train(client, *whole, data)
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = run("LLQR", 8)
    nn.init.constant_(next(resumed.net.parameters()), 0.3)  # whatever the new objects begin with
    fresh = accelerator()
    fresh.prepare(*resumed)
    fresh.load_state(str(tmp_path))
    accelerate_loop.train(fresh, *resumed, data)
    assert loops.same(loops.state(whole.net), loops.state(resumed.net))
    assert resumed.opt.param_groups[0]["llqr_refits"] == 3  # before steps 0, 3 and 6
