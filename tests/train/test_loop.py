"""A training step is the method's update, however the batch is cut and whatever the precision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llqr_sam_ref.train import seeds
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.loop import Observer, Trainer
from llqr_sam_ref.train.methods import METHODS
from llqr_sam_ref.train.presets import configured
from llqr_sam_ref.train.schedule import learning_rate
from tests.train import files
from tests.train.runs import QUIET, read_by, small, steps, trainer, weights

methods = pytest.mark.parametrize("method", METHODS)


def same(a: list[Tensor], b: list[Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in zip(a, b, strict=True))


def by_hand(config: TrainConfig, update: Any, count: int = 6) -> list[Tensor]:
    """The same run with the update written out; ``update`` changes the parameters in place."""
    run = trainer(config)
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    state: dict[int, Tensor] = {}
    for step in range(count):
        epoch, position = divmod(step, run.steps_per_epoch)
        order = run.data.batches(config.schedule.batch_size, seeds.generator(0, "order", epoch))
        x, y = run.data.train_batch(order[position], torch.empty(32, 6))

        def gradient(x: Tensor = x, y: Tensor = y) -> list[Tensor]:
            return list(torch.autograd.grad(nn.functional.cross_entropy(run.model(x), y), parameters))

        lr = learning_rate(config.schedule, config.optimizer.lr, step, run.steps_per_epoch)
        update(parameters, gradient, lr, state)
    return weights(run)


def test_sgd_is_what_it_says() -> None:
    config = small("sgd", weight_decay=0.01, augment=())

    def update(w: list[Tensor], gradient: Any, lr: float, buffers: dict[int, Tensor]) -> None:
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(w, gradient(), strict=False)):
                g = g + 0.01 * p
                buffers[i] = 0.9 * buffers[i] + g if i in buffers else g
                p -= lr * buffers[i]

    def with_grad(w: list[Tensor], gradient: Any, lr: float, buffers: dict[int, Tensor]) -> None:
        gradients = gradient()
        update(w, lambda: gradients, lr, buffers)

    assert same(steps(config), by_hand(config, with_grad), 1e-12)


def test_sam_is_what_it_says() -> None:
    config = small("sam", momentum=0.0, weight_decay=0.0, rho=0.3, augment=())

    def update(w: list[Tensor], gradient: Any, lr: float, _: dict[int, Tensor]) -> None:
        g = gradient()
        length = torch.cat([t.flatten() for t in g]).norm()
        before = [p.detach().clone() for p in w]
        with torch.no_grad():
            for p, t in zip(w, g, strict=True):
                p += 0.3 * t / length
        perturbed = gradient()
        with torch.no_grad():
            for p, old, t in zip(w, before, perturbed, strict=True):
                p.copy_(old - lr * t)

    assert same(steps(config), by_hand(config, update), 1e-12)


@methods
def test_parts_add_up_to_the_batch(method: str) -> None:
    whole, parts = (steps(small(method, accumulate=a, weight_decay=1e-3)) for a in (1, 4))
    assert same(whole, parts, 1e-10)


def test_rounding_does_not_choose_the_bases() -> None:
    """Without augmentation some pixels stay dark, and an eigenvalue of LLQR's Gram matrices occurs several times.

    Whatever basis of its space a refit takes, the next ones measure curvature along it: were the basis left to
    rounding, the last bit of a sum, which the number of parts or of workers decides, would grow to 4e-6 here.
    """
    config = configured("digits-mlp", "llqr-sampled").replace(**QUIET, precision="float64")
    whole, parts = (steps(config.replace(accumulate=a), 30) for a in (1, 2))
    assert same(whole, parts, 1e-10)


@methods
def test_every_method_goes_down(method: str) -> None:
    run = trainer(small(method, epochs=20, augment=(), **read_by(method, rho=0.01)))
    losses = []
    for _ in range(run.steps):
        run.train_step()
        losses.append(float(run.totals()[0]))
        run.reset_meters()
    assert run.finite()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("base", ["adamw", "muon"])
@pytest.mark.parametrize("method", ["sam", "llqr", "llqr-published-sam"])
def test_methods_go_over_every_base(method: str, base: str) -> None:
    moved = steps(small(method, base, lr=1e-3), 3)
    assert not same(moved, steps(small("sgd"), 0))
    assert all(bool(t.isfinite().all()) for t in moved)


def test_perturbations_begin_and_pause() -> None:
    """Three steps of the bare base, then every second one perturbs: the other steps are the base's."""
    assert same(steps(small("sam", sam_start=3), 3), steps(small("sgd"), 3))
    run = trainer(small("sam", sam_start=3, sam_every=2))
    radii = []
    for _ in range(6):
        run.optimizer.progress.radius = 0.0  # type: ignore[attr-defined]
        run.train_step()
        radii.append(run.radius > 0)
    assert radii == [False, False, False, True, False, True]


def test_clipping_bounds_the_gradient_that_the_base_gets() -> None:
    config = small("sgd", momentum=0.0, weight_decay=0.0, clip_norm=1e-3, schedule="constant", lr=1.0)
    run = trainer(config)
    before = weights(run)
    run.train_step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(run), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_decay_of_matrices_only() -> None:
    run = trainer(small("adamw", decay="matrices", weight_decay=0.1))
    decayed = {p.ndim: group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    assert decayed == {1: 0.0, 2: 0.1}


def test_muon_leaves_the_head_to_adamw() -> None:
    run = trainer(configured("digits-resnet", "muon").replace(**QUIET))
    rules = {name: g["rule"] for g in run.optimizer.param_groups for name in g["param_names"]}
    assert rules["conv.weight"] == rules["stages.0.0.conv1.weight"] == "muon"
    assert rules["head.weight"] == rules["head.bias"] == rules["norm.weight"] == "adamw"


def test_smoothing_enters_training_and_not_the_test() -> None:
    smooth, plain = (trainer(small("sgd", label_smoothing=s)) for s in (0.5, 0.0))
    assert smooth.evaluate() == plain.evaluate()
    for run in (smooth, plain):
        run.train_step()
    assert float(smooth.meters[0]) != float(plain.meters[0])


def test_meters_add_up_training_loss_and_accuracy() -> None:
    run = trainer(small("sgd", accumulate=3, augment=()))
    order = run.data.batches(32, seeds.generator(0, "order", 0))
    x, y = run.data.train_batch(order[0], torch.empty(32, 6))
    with torch.no_grad():
        outputs = run.model(x)
        expected = [
            float(nn.functional.cross_entropy(outputs, y, reduction="sum")),
            float((outputs.argmax(1) == y).sum()),
        ]
    run.train_step()
    assert run.totals().tolist() == pytest.approx([*expected, 32], rel=1e-12)


# Precisions, layouts, compilation.


@pytest.mark.parametrize("precision", ["bf16", "fp16", "float32"])
@pytest.mark.parametrize("method", ["sgd", "sam", "m-sam", "llqr-sam"])
def test_precisions_stay_near_the_widest(method: str, precision: str) -> None:
    settings = read_by(method, rho=0.01)
    wide = trainer(small(method, **settings))
    narrow = trainer(small(method, precision=precision, **settings))
    for run in (wide, narrow):
        for _ in range(3):
            run.train_step()
    assert all(p.dtype is torch.float32 for p in narrow.model.parameters())
    assert narrow.evaluate()["loss"] == pytest.approx(wide.evaluate()["loss"], rel=0.1)


def test_a_scaler_skips_what_overflows_and_its_scale_is_saved() -> None:
    run = trainer(small("sam", precision="fp16"))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
    before = weights(run)
    run.train_step()
    assert same(before, weights(run))
    assert run.skipped == 1
    assert run.scaler.get_scale() == 2.0**39
    fresh = trainer(small("sam", precision="fp16"))
    fresh.load(run.state())
    assert fresh.scaler.get_scale() == 2.0**39
    assert fresh.skipped == 1


def test_channels_last_changes_nothing_but_the_layout() -> None:
    config = configured("digits-resnet", "sam").replace(**{
        **QUIET,
        "train_examples": 96,
        "batch_size": 32,
        "precision": "float64",
        "channels_last": True,
    })
    run = trainer(config)
    convolutions = [p for p in run.model.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    plain = steps(config.replace(channels_last=False), 2)
    assert same(steps(config, 2), plain, 1e-10)


@pytest.mark.parametrize("method", ["sgd", "llqr-sam"])
def test_compiled_passes_equal_plain_ones(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is compiled; what compiles it further is left out here, it takes a C++ compiler and its time."""
    compile_graph = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_graph(module, backend="aot_eager"))
    compiled = trainer(small(method, compile=True))
    assert compiled.forward is not compiled.model
    for _ in range(4):
        compiled.train_step()
    assert same(weights(compiled), steps(small(method), 4), 1e-12)


# Looking on.


class Witness(Observer):
    """Keeps what it sees, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def note(self, when: str, run: Trainer) -> None:
        parameters = list(run.model.parameters())
        self.seen.append((
            when,
            [p.detach().clone() for p in parameters],
            [p.grad.clone() for p in parameters if p.grad is not None],
        ))

    def first_pass(self, trainer: Trainer) -> None:
        self.note("first pass", trainer)

    def perturbed(self, trainer: Trainer) -> None:
        self.note("perturbed", trainer)

    def second_pass(self, trainer: Trainer) -> None:
        self.note("second pass", trainer)

    def stepped(self, trainer: Trainer) -> None:
        self.note("stepped", trainer)


def test_an_observer_sees_a_step_of_sam_from_inside() -> None:
    """The gradients at w and at w + epsilon, the weights in between, and the step that follows; nothing changes."""
    config = small("sam", rho=0.3, momentum=0.0, weight_decay=0.0, schedule="constant", lr=0.5, clip_norm=1e3)
    run = trainer(config, observer=(witness := Witness()))
    run.train_step()
    names, weights, gradients = zip(*witness.seen, strict=True)
    assert names == ("first pass", "perturbed", "second pass", "stepped")
    length = torch.cat([g.flatten() for g in gradients[0]]).norm()
    for i, w in enumerate(weights[0]):
        torch.testing.assert_close(weights[1][i], w + 0.3 * gradients[0][i] / length, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights[3][i], w - 0.5 * gradients[2][i], rtol=0, atol=1e-12)
    assert same(list(weights[2]), list(weights[0]))
    assert same(list(gradients[1]), list(gradients[0]))
    assert same(list(gradients[3]), list(gradients[2]))
    assert same(list(weights[3]), steps(config, 1))


@pytest.mark.parametrize(("method", "moments"), [("sgd", 2), ("sam", 4), ("llqr", 2), ("llqr-sam", 4)])
def test_every_method_is_seen(method: str, moments: int) -> None:
    run = trainer(small(method), observer=(witness := Witness()))
    run.train_step()
    assert len(witness.seen) == moments
    assert same(weights(run), steps(small(method), 1))


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(small("sgd", epochs=3))
    draw, drawn = run.data.batches, 0

    def counted(size: int, generator: torch.Generator) -> list[Tensor]:
        nonlocal drawn
        drawn += 1
        return draw(size, generator)

    monkeypatch.setattr(run.data, "batches", counted)
    for _ in range(run.steps):
        run.train_step()
        assert (run.steps_per_epoch, run.examples_per_epoch) == (3, 96)
    assert drawn == 2  # of the epochs after the first, whose order tells how many steps there are


# Sequences.


def test_parts_of_different_length_count_by_their_targets(tmp_path: Path) -> None:
    files.parallel(tmp_path)
    config = configured("transformer-iwslt14", "sgd").replace(**{
        **QUIET,
        **{"data_path": str(tmp_path), "data_args": ("buckets=2",), "batch_size": 60, "precision": "float64"},
        **{
            "model_args": ("width=8", "depth=1", "heads=2", "hidden=8", "dropout=0"),
            "epochs": 1,
            "warmup": "0",
        },
    })
    whole, parts = (steps(config.replace(accumulate=a), 3) for a in (1, 3))
    assert same(whole, parts, 1e-12)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("digits-pairs", {"model_args": ("hidden=8", "width=4", "words=4")}),
        (
            "grokking-small",
            {"model_args": ("width=8", "depth=1", "heads=2", "hidden=8"), "data_args": ("p=11",)},
        ),
        ("digits-resnet", {"model_args": ("width=4", "norm=batch", "depths=1,1")}),
    ],
)
@pytest.mark.parametrize("method", ["sam", "llqr-sam"])
def test_other_tasks_train(preset: str, settings: dict[str, Any], method: str) -> None:
    base = {**QUIET, "train_examples": 40, "batch_size": 32, "epochs": 1, "warmup": "0"}
    base |= read_by(method, probe_size=32)
    run = trainer(configured(preset, method).replace(**{**base, **settings}))
    before = weights(run)
    run.train_step()
    assert run.finite()
    assert not same(before, weights(run))
    assert 0 <= run.evaluate()["accuracy"] <= 1


# Batch statistics and random numbers.


def test_batch_statistics_see_every_batch_once() -> None:
    base = {**QUIET, "model_args": ("width=4", "norm=batch", "depths=1"), "batch_size": 32}
    run = trainer(configured("digits-resnet", "llqr-sam").replace(**base))
    for _ in range(3):
        run.train_step()
    seen = [b for name, b in run.model.named_buffers() if name.endswith("num_batches_tracked")]
    assert [int(b) for b in seen] == [3] * len(seen)


def test_both_passes_drop_the_same_units() -> None:
    """With rho = 0 the second pass repeats the first, so SAM over dropout is its base."""
    settings = {
        **QUIET,
        "model_args": ("width=8", "depth=1", "heads=2", "dropout=0.5"),
        "data_args": ("p=11",),
    }
    base = {"batch_size": 32, "epochs": 1, "precision": "float64"}
    config = configured("grokking-small", "sam").replace(**{**settings, **base, "rho": 0.0})
    plain = configured("grokking-small", "adamw").replace(**{**settings, **base})
    assert same(steps(config, 1), steps(plain, 1))


def test_seeds_decide_everything() -> None:
    assert same(steps(small("llqr-sam")), steps(small("llqr-sam")))
    assert not same(steps(small("llqr-sam")), steps(small("llqr-sam", seed=1)))


# What does not go together.


def test_bad_combinations_are_refused() -> None:
    for settings, word in (
        ({"batch_size": 3, "accumulate": 5}, "accumulate=5"),
        ({"batch_size": 97}, "batch_size=97"),
        ({"own_perturbation": True, "parallel": "fsdp"}, "own_perturbation"),
        ({"optimizer": "llqr-sampled", "probe_size": 30}, "probes=8"),
        ({"optimizer": "llqr", "llqr": ("structure=kron",)}, "'kronecker'"),
        ({"norm": "l1"}, "'dual'"),
    ):
        with pytest.raises(ValueError, match=word):
            run: Trainer = trainer(small("llqr-sam").replace(**settings))
            run.train_step()


def test_a_weight_that_is_not_finite_is_found() -> None:
    run = trainer(small("sgd"))
    assert run.finite()
    with torch.no_grad():
        next(run.model.parameters())[0, 0] = math.nan
    assert not run.finite()
