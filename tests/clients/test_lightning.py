"""Lightning: both kinds of optimization give what a plain loop gives, and a stopped run goes on bit for bit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, LLQRConfig, frozen_batch_stats
from tests.clients import loops
from tests.clients.recipes import lightning_automatic, lightning_manual

RATE = 0.01
PARTS = loops.batches(12)
OFTEN = LLQRConfig.sampled(every=3, basis_every=2)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def trainer(**settings: Any) -> lightning.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_epochs": 1,
    }  # fmt: skip
    return lightning.Trainer(**{**quiet, **settings})


def fit(
    model: lightning.LightningModule, parts: list[loops.Batch] = PARTS, **settings: Any
) -> dict[str, Any]:
    """Train on these batches and return the final weights and buffers of ``model.net``."""
    trainer(**settings).fit(model, loops.loader(parts))
    assert isinstance(model.net, nn.Module)
    return loops.state(model.net)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)


class Automatic(lightning_automatic.Classifier):
    """The recipe with a plain SAM."""

    def configure_optimizers(self) -> Any:
        return SAM(sgd(self.net), model=self.net)


class Manual(lightning_manual.Classifier):
    """The recipe with a plain SAM, or the optimizer that it is given."""

    calls = 0

    def configure_optimizers(self) -> Any:
        return SAM(sgd(self.net))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls += 1
        super().on_before_optimizer_step(optimizer)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_automatic_optimization_is_sam(clip: float | None) -> None:
    found = fit(Automatic(loops.network()), gradient_clip_val=clip)
    by_hand = loops.sam_by_hand(loops.network(), loops.grouped(PARTS, 1), lr=RATE, clip=clip)
    assert loops.gap(found, by_hand) < 1e-10


def test_automatic_optimization_of_the_recipe_is_the_plain_loop() -> None:
    """What U learns, the schedule of each step, and momentum: bit for bit."""
    model = lightning_automatic.Classifier(loops.network())
    found = fit(model)
    net = loops.network()
    opt = SAM(LLQR(sgd(net), net))
    decay = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, len(PARTS))
    assert loops.same(found, loops.plain_loop(net, opt, loops.grouped(PARTS, 1), scheduler=decay))
    assert model.trainer.optimizers[0].param_groups[0]["llqr_refits"] == len(PARTS)


def test_automatic_optimization_refuses_to_accumulate() -> None:
    """Lightning's closure then leaves gradients where they are, and a second pass would add to them."""
    with pytest.raises(RuntimeError, match="closure"):
        fit(Automatic(loops.network()), accumulate_grad_batches=2)


def test_automatic_optimization_with_a_scaler_warns_that_it_does_not_perturb() -> None:
    """Lightning then evaluates the closure itself and steps without it; here the warning is an error."""
    parts = loops.batches(2, dtype=torch.float32)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**4))
    with pytest.raises(UserWarning, match="without a perturbation"):
        fit(Automatic(loops.network(torch.float32)), parts, plugins=plugin)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_manual_optimization_is_sam(accumulate: int) -> None:
    model = Manual(loops.network(), accumulate)
    found = fit(model)
    steps = loops.grouped(PARTS, accumulate)
    assert loops.gap(found, loops.sam_by_hand(loops.network(), steps, lr=RATE, clip=1.0)) < 1e-10
    assert model.trainer.global_step == model.calls == len(steps)
    assert model.trainer.optimizers[0].param_groups[0]["sam_steps"] == len(steps)


def test_micro_batches_that_are_left_over_belong_to_the_next_epoch() -> None:
    """Five in each of two epochs, two in a step: the third step has one of either epoch."""
    model = Manual(loops.network(), accumulate=2)
    found = fit(model, PARTS[:5], max_epochs=2)
    steps = loops.grouped([*PARTS[:5], *PARTS[:5]], 2)
    assert loops.gap(found, loops.sam_by_hand(loops.network(), steps, lr=RATE, clip=1.0)) < 1e-10


def test_clipping_by_value_in_automatic_optimization_turns_the_perturbation() -> None:
    """Lightning clips in each pass; by norm (above) this is SAM, by value it is not."""
    settings: dict[str, Any] = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    found = fit(Automatic(loops.network()), PARTS[:1], **settings)
    net = loops.network()
    opt = SAM(sgd(net))
    (x, y), clip = PARTS[0], nn.utils.clip_grad_value_

    def after_one_step(clip_first: bool) -> dict[str, Any]:
        net.load_state_dict(loops.network().state_dict())
        opt.zero_grad()
        cross_entropy(net(x), y).backward()
        if clip_first:
            clip(net.parameters(), 0.01)
        with opt.perturbed(), frozen_batch_stats(net):
            opt.zero_grad()
            cross_entropy(net(x), y).backward()
        clip(net.parameters(), 0.01)
        opt.base.state.clear()
        opt.step()
        return loops.state(net)

    assert loops.gap(found, after_one_step(clip_first=True)) < 1e-12
    assert loops.gap(found, after_one_step(clip_first=False)) > 1e-8


def test_manual_optimization_of_the_recipe_is_the_plain_loop() -> None:
    found = fit(lightning_manual.Classifier(loops.network(), accumulate=2))
    net = loops.network()
    expected = loops.plain_loop(net, SAM(LLQR(sgd(net), net)), loops.grouped(PARTS, 2), clip=1.0)
    assert loops.same(found, expected)


def test_the_block_tells_the_optimizer_inside() -> None:
    """Lightning hands out an object that imitates SAM: what happens in the block must reach the one that steps."""

    class Impatient(Manual):
        def gradient(self, opt: Any) -> None:
            super().gradient(opt)
            if self.inside:
                with pytest.raises(RuntimeError, match="inside perturbed"):
                    opt.step()
            self.inside = not self.inside

        inside = False

    model = Impatient(loops.network())
    fit(model, PARTS[:2])
    (opt,) = model.trainer.optimizers
    assert isinstance(opt, SAM)
    assert opt.realized_radius == pytest.approx(0.05)


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_step_after_the_block_perturbs_no_more(average: float | None) -> None:
    """Lightning's ``step()`` always brings a closure; the average of Friendly SAM must not see the second gradient."""

    class Friendly(Manual):
        def configure_optimizers(self) -> Any:
            return SAM(sgd(self.net), ascent_ema=average)

    found = fit(Friendly(loops.network()))
    net = loops.network()
    opt = SAM(sgd(net), ascent_ema=average)
    assert loops.same(found, loops.plain_loop(net, opt, loops.grouped(PARTS, 1), clip=1.0))


def test_bfloat16() -> None:
    parts = loops.batches(12, dtype=torch.float32)
    found = fit(lightning_automatic.Classifier(loops.network(torch.float32)), parts, precision="bf16-mixed")
    net = loops.network(torch.float32)
    opt = SAM(LLQR(sgd(net), net))
    decay = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, len(parts))
    steps = loops.grouped(parts, 1)
    assert loops.same(found, loops.plain_loop(net, opt, steps, autocast=torch.bfloat16, scheduler=decay))
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_bfloat16_in_manual_optimization() -> None:
    parts = loops.batches(12, dtype=torch.float32)
    found = fit(lightning_manual.Classifier(loops.network(torch.float32), 2), parts, precision="bf16-mixed")
    net = loops.network(torch.float32)
    opt = SAM(LLQR(sgd(net), net))
    steps = loops.grouped(parts, 2)
    assert loops.same(found, loops.plain_loop(net, opt, steps, clip=1.0, autocast=torch.bfloat16))


def test_float16_with_a_scaler() -> None:
    """The scaler's first scale overflows float16: that step is left out on both sides, and the scale halves."""
    parts = loops.batches(12, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    found = fit(lightning_manual.Classifier(loops.network(torch.float32), 2), parts, plugins=plugin)
    net = loops.network(torch.float32)
    other = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    expected = loops.plain_loop(
        net,
        SAM(LLQR(sgd(net), net)),
        loops.grouped(parts, 2),
        clip=1.0,
        scaler=other,
        autocast=torch.float16,
    )
    assert loops.same(found, expected)
    assert scaler.get_scale() == other.get_scale() < 2.0**24


class _Resumable:
    """What both kinds of optimization train with here: everything that has to be saved."""

    net: nn.Module

    def llqr_sam(self, probe: Any) -> SAM:
        return SAM(
            LLQR(sgd(self.net), self.net, cross_entropy, OFTEN, probe=probe), ascent_ema=0.9, model=self.net
        )


class _Automatic(lightning_automatic.Classifier, _Resumable):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.batch = batch

    def configure_optimizers(self) -> Any:
        return self.llqr_sam(lambda: self.batch)


class _Manual(lightning_manual.Classifier, _Resumable):
    def configure_optimizers(self) -> Any:
        return self.llqr_sam(lambda: self.kept[-1])


@pytest.mark.parametrize("kind", [_Automatic, _Manual])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    """Stopped after the first of three epochs, between two refits, and continued by new objects."""
    checkpoints = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    parts = PARTS[:7]
    end = fit(kind(loops.network()), parts, max_epochs=3, callbacks=[checkpoints], enable_checkpointing=True)
    resumed = kind(loops.network())
    nn.init.constant_(resumed.net[0].weight, 0.3)  # whatever the new object begins with
    trainer(max_epochs=3).fit(resumed, loops.loader(parts), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert loops.same(end, loops.state(resumed.net))
    assert resumed.trainer.optimizers[0].param_groups[0]["llqr_refits"] == 7  # before steps 0, 3, ..., 18
