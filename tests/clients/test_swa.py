"""torch.optim.swa_utils: the average is that of the weights, its batch statistics are its own, its rate is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from llqr_sam_ref import LLQR, SAM
from tests.clients import loops
from tests.clients.recipes import averaged

PARTS = loops.batches(4)
STEPS = loops.grouped(PARTS, 1)


def optimizer(kind: str, net: nn.Module) -> SAM:
    base = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    if kind == "SAM":
        return SAM(base)
    return SAM(LLQR(base, net, cross_entropy, probe=lambda: PARTS[0]))


def mean(states: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([state[name] for state in states]).mean(0)


@pytest.mark.parametrize("kind", ["SAM", "LLQR+SAM"])
def test_the_recipe_averages_the_weights_of_the_epochs(kind: str) -> None:
    net = loops.network()
    average = averaged.train(net, optimizer(kind, net), loops.loader(PARTS), epochs=5, start=2)
    plain = loops.network()
    opt = optimizer(kind, plain)
    states = []
    # SWALR takes two epochs from one rate to the other, by a cosine.
    for rate in (0.02, 0.02, 0.02, 0.0125, 0.005):
        for group in opt.param_groups:
            group["lr"] = rate
        states.append(loops.plain_loop(plain, opt, STEPS, probe=lambda _: PARTS[0]))
    assert loops.gap(loops.state(net), states[-1]) < 1e-12
    for name, _ in net.named_parameters():
        found = average.module.get_parameter(name)
        torch.testing.assert_close(found.detach(), mean(states[2:], name), rtol=0, atol=1e-12)
    assert int(average.n_averaged) == 3


def test_the_batch_statistics_are_those_of_the_average() -> None:
    """One pass of the loader through the averaged weights, every batch of it once."""
    net = loops.network()
    average = averaged.train(net, optimizer("SAM", net), loops.loader(PARTS), epochs=3, start=1)
    inside: Any = average.module
    first, norm, trained_norm = inside[0], inside[1], net.get_submodule("1")
    hidden = [nn.functional.linear(x, first.weight, first.bias) for x, _ in PARTS]
    expected = torch.stack([h.mean(0) for h in hidden]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected.detach(), rtol=0, atol=1e-12)
    assert int(norm.num_batches_tracked) == len(PARTS)
    assert int(trained_norm.get_buffer("num_batches_tracked")) == 3 * len(PARTS)


def test_an_exponential_average_and_swalr_follow_a_wrapped_optimizer() -> None:
    net, decay = loops.network(), 0.8
    opt: Any = optimizer("LLQR+SAM", net)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))
    schedule = SWALR(opt, swa_lr=0.001, anneal_epochs=4, anneal_strategy="linear")
    by_hand: dict[str, Tensor] = {}
    rates = []
    for step in STEPS:
        now = loops.plain_loop(net, opt, [step])
        average.update_parameters(net)
        rates.append(opt.base.base.param_groups[0]["lr"])
        schedule.step()
        by_hand = {k: decay * by_hand[k] + (1 - decay) * v for k, v in now.items()} if by_hand else now
    for name, _ in net.named_parameters():
        found = average.module.get_parameter(name)
        torch.testing.assert_close(found.detach(), by_hand[name], rtol=0, atol=1e-12)
    assert rates == pytest.approx([0.02, 0.01525, 0.0105, 0.00575])
