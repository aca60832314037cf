"""The study of strain: each strain does to a problem what it says, and what diverges is counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from book.experiments import stress
from book.experiments.peers.tasks import Problem, problem
from book.experiments.stress import STRAINS, Options, counts, ratio, strained, study


def under(strain: str, task: str) -> Problem:
    found = strained(task, STRAINS[strain])
    assert found is not None
    return found


def batch(of: Problem) -> tuple[Tensor, Tensor]:
    return of.data.draw(torch.Generator().manual_seed(0), 64)


def first_weight(of: Problem) -> Tensor:
    torch.manual_seed(0)
    return next(p for p in of.model().parameters() if p.ndim > 1).detach()


def test_sizes_of_weights_inputs_and_losses() -> None:
    plain, (x, y) = problem("mlp"), batch(problem("mlp"))
    assert torch.equal(first_weight(under("weights x 3", "mlp")), 3 * first_weight(plain))
    assert torch.equal(batch(under("inputs x 10", "mlp"))[0], 10 * x)
    z = torch.randn(64, 10)
    assert under("loss x 1000", "mlp").loss(z, y) == pytest.approx(1000 * float(plain.loss(z, y)), rel=1e-6)
    assert strained("decoder", STRAINS["inputs x 10"]) is None


def test_dead_inputs_and_unseen_rows_have_no_gradient() -> None:
    dead = under("dead inputs", "mlp")
    x, y = batch(dead)
    model = dead.model()
    dead.loss(model(x), y).backward()
    weight = next(model.parameters())
    assert weight.grad is not None
    assert not weight.grad[:, :16].any()
    assert weight.grad[:, 16:].any()

    more = under("unseen rows", "decoder")
    tokens, following = more.data.draw(torch.Generator().manual_seed(0), 4)
    model = more.model()
    more.loss(model(tokens), following).backward()
    grown = [
        m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings > stress.FRESH_WORDS
    ]
    assert grown
    assert all(m.weight.grad is not None and not m.weight.grad[-stress.FRESH_WORDS :].any() for m in grown)


def test_gradients_of_key_biases_are_rounding() -> None:
    keyed = under("key biases", "vit")
    x, y = batch(keyed)
    torch.manual_seed(0)
    model = keyed.model()
    keyed.loss(model(x), y).backward()
    named = dict(model.named_parameters())
    keys = [p for name, p in named.items() if name.endswith("key.bias")]
    assert all(bool((p == 1).all()) for p in keys)
    largest = max(float(p.grad.abs().max()) for p in named.values() if p.grad is not None)
    assert max(float(p.grad.abs().max()) for p in keys if p.grad is not None) < 1e-5 * largest


def test_wrong_labels_are_two_in_five_of_those_that_hit_another_class() -> None:
    right, wrong = problem("mlp").data, under("wrong labels", "mlp").data
    y = right.draw(torch.Generator().manual_seed(0), 5000)[1]
    changed = float((wrong.draw(torch.Generator().manual_seed(0), 5000)[1] != y).float().mean())
    assert changed == pytest.approx(0.4 * 0.9, abs=0.03)


def test_what_diverges_is_counted() -> None:
    options = Options(tasks=("mlp",), strains=("none", "rate x 4"), methods=("llqr",), seeds=1, steps=4)
    found = study(options)
    assert counts(found) == {"llqr": {"runs": 2, "diverged": 0}}
    found["none"]["mlp"]["llqr"][0]["diverged"] = "loss nan"
    assert counts(found) == {"llqr": {"runs": 2, "diverged": 1}}
    assert ratio(found["none"]["mlp"]["llqr"]) == float("inf")
    assert 0 < ratio(found["rate x 4"]["mlp"]["llqr"]) < 1.5
