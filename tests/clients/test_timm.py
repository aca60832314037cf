"""timm: each of its small test models under SAM and LLQR, and its own training parts around them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.clients import loops
from tests.clients.recipes import timm_training

MODELS = timm.list_models("test_*")


def model(name: str) -> nn.Module:
    """Random weights, four classes."""
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, num_classes=4).double()
    return net


def images(name: str, count: int = 1) -> list[loops.Batch]:
    """Eight images a batch, as small as the model takes them."""
    known = timm.get_pretrained_cfg(name)
    side = known.input_size[-1] if known.fixed_input_size else 64
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * 8, 3, side, side, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (count * 8,), generator=generator)
    return list(zip(x.split(8), y.split(8), strict=True))


def test_timm_has_small_models() -> None:
    assert len(MODELS) > 10


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_sam(name: str) -> None:
    net, step = model(name), images(name)
    opt = SAM(torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9))
    found = loops.plain_loop(net, opt, [step])
    assert loops.gap(found, loops.sam_by_hand(model(name), [step], lr=0.01)) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_a_refit_leaves_the_model_alone_and_learns_every_block(name: str) -> None:
    net, (batch,) = model(name), images(name)
    opt = LLQR(
        torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), net, cross_entropy, LLQRConfig.sampled()
    )
    cross_entropy(net(batch[0]), batch[1]).backward()
    before, modes = loops.state(net), [module.training for module in net.modules()]
    random = torch.get_rng_state()
    opt.refit(*batch)
    assert loops.same(loops.state(net), before)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    report = opt.report()
    assert {block.name for block in report} == gradients.keys()
    for block in report:
        assert block.distance > 0
        # U is positive definite; where a scale begins at 0 what lies before it has no gradient yet
        assert (block.cosine > 0) == bool(gradients[block.name].any())


def test_the_recipe_is_the_plain_loop() -> None:
    """Weight decay where timm puts it, its schedule, and an average that follows the weights."""
    name, epochs = "test_resnet", 2
    net, plain, parts = model(name), model(name), images(name, 2)
    average = timm_training.train(net, parts, epochs)
    base = create_optimizer_v2(plain, opt="adamw", lr=0.01, weight_decay=0.05)
    opt: Any = SAM(LLQR(base, plain))
    assert {group["weight_decay"] for group in opt.param_groups} == {0.0, 0.05}
    mean = loops.state(plain)
    for t, part in enumerate(epochs * parts):
        for group in opt.param_groups:
            group["lr"] = rate(t, epochs * len(parts))
        now = loops.plain_loop(plain, opt, [[part]], clip=1.0)
        mean = {k: mean[k].lerp(now[k], 0.1) if now[k].is_floating_point() else now[k] for k in now}
    assert loops.gap(loops.state(net), loops.state(plain)) < 1e-12
    assert loops.gap(loops.state(average.module), mean) < 1e-12
    assert opt.param_groups[0]["llqr_refits"] == epochs * len(parts)


def rate(t: int, steps: int) -> float:
    """timm's cosine at update t: from 0.01 to its smallest rate, 0."""
    return float(0.005 * (1 + torch.cos(torch.tensor(torch.pi * t / steps, dtype=torch.float64))))
