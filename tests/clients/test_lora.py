"""PEFT: low-rank adapters train as those written by hand, the rest stays, and a refit leaves them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.clients import loops
from tests.clients.recipes import lora

PARTS = loops.batches(14)
STEPS = loops.grouped(PARTS, 1)
HEAD = "base_model.model.3.modules_to_save.default."


class LowRank(nn.Module):
    """x -> (W + s B A) x + b with W and b frozen: what an adapter is."""

    def __init__(self, layer: nn.Linear, A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__()
        self.A, self.B = (nn.Parameter(factor.detach().clone()) for factor in (A, B))
        self.layer, self.scale = layer.requires_grad_(False), scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.scale * (x @ self.A.T @ self.B.T)
        return y


def adapted() -> tuple[Any, SAM]:
    torch.manual_seed(3)  # of the adapter's A
    return lora.adapted(loops.network(), layers=["0"], head="3")


def by_hand(model: Any) -> nn.Sequential:
    """The same network with an adapter of our own: rank 4, alpha 8, hence a scale of 2."""
    net = loops.network()
    layer = model.base_model.model[0]
    A, B = (factor["default"].weight for factor in (layer.lora_A, layer.lora_B))
    first = net[0]
    assert isinstance(first, nn.Linear)
    net[1].requires_grad_(False)
    net[0] = LowRank(first, A, B, scale=2.0)
    return net


def trained(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters() if p.requires_grad]


def frozen(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters() if not p.requires_grad]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_recipe_trains_an_adapter_as_one_by_hand() -> None:
    model, opt = adapted()
    net = by_hand(model)
    ours = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=0.01, weight_decay=0.0)
    other = SAM(LLQR(ours, net))
    before = frozen(model)
    loops.plain_loop(model, opt, STEPS)
    loops.plain_loop(net, other, STEPS)
    found, expected = trained(model), trained(net)
    assert [tuple(p.shape) for p in found] == [(4, 4), (8, 4), (3, 8), (3,)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert equal(frozen(model), before)
    assert opt.param_groups[0]["llqr_refits"] == len(STEPS)


def test_sam_over_adapters_is_sam_by_hand() -> None:
    model, _ = adapted()
    net = by_hand(model)
    opt = SAM(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9))
    loops.plain_loop(model, opt, STEPS)
    loops.sam_by_hand(net, STEPS, lr=0.05)
    torch.testing.assert_close(trained(model), trained(net), rtol=0, atol=1e-12)


def test_only_adapters_and_head_are_learned() -> None:
    """B begins at 0, so that A has no gradient at first; nothing frozen has any."""
    model, opt = adapted()
    loops.plain_loop(model, opt, STEPS[:1])
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    llqr: Any = opt.base
    assert {block.name for block in llqr.report()} == names
    assert {p for p in model.parameters() if p.grad is not None} == {
        p for p in model.parameters() if p.requires_grad
    }
    assert {HEAD + "weight", HEAD + "bias"} < names


@pytest.mark.parametrize("merged", [False, True])
def test_a_refit_leaves_an_adapter_merged_or_unmerged_as_it_was(merged: bool) -> None:
    model, opt = adapted()
    loops.plain_loop(model, opt, STEPS[:3])
    x, y = PARTS[3]
    base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    llqr = LLQR(base, model, cross_entropy, LLQRConfig.sampled())
    if merged:
        model.merge_adapter()
    layer = model.base_model.model[0]
    before, modes = loops.state(model), [module.training for module in model.modules()]
    llqr.refit(x, y)
    assert layer.merged is merged
    assert loops.same(loops.state(model), before)
    assert [module.training for module in model.modules()] == modes


def test_merging_between_two_steps_changes_no_output_and_no_step() -> None:
    """Merged for an evaluation between two steps: the run goes on as one that never merged."""
    model, opt = adapted()
    other, straight = adapted()
    loops.plain_loop(other, straight, STEPS)
    loops.plain_loop(model, opt, STEPS[:7])
    x, _ = PARTS[0]
    apart = model.eval()(x).detach()
    model.merge_adapter()
    torch.testing.assert_close(model(x).detach(), apart, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    loops.plain_loop(model.train(), opt, STEPS[7:])
    assert opt.param_groups[0]["llqr_refits"] == len(STEPS)
    torch.testing.assert_close(trained(model), trained(other), rtol=0, atol=1e-10)


def test_adapters_that_were_saved_go_on_bit_for_bit(tmp_path: Path) -> None:
    """PEFT saves adapters and head, torch the optimizer and the statistics."""
    model, opt = adapted()
    loops.plain_loop(model, opt, STEPS[:7])
    model.save_pretrained(str(tmp_path))
    torch.save((opt.state_dict(), model.base_model.model[1].state_dict()), tmp_path / "opt.pt")
    loops.plain_loop(model, opt, STEPS[7:])
    resumed: Any = PeftModel.from_pretrained(loops.network(), str(tmp_path), is_trainable=True)
    base = torch.optim.AdamW((p for p in resumed.parameters() if p.requires_grad), lr=0.01, weight_decay=0.0)
    other = SAM(LLQR(base, resumed), rho=0.05)
    saved, statistics = torch.load(tmp_path / "opt.pt", weights_only=True)
    other.load_state_dict(saved)
    resumed.base_model.model[1].load_state_dict(statistics)
    resumed.train()
    loops.plain_loop(resumed, other, STEPS[7:])
    assert equal(trained(resumed), trained(model))
