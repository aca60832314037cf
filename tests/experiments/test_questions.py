"""The study of radii: its runs are those of the batched experiment, and its variants ask as often as they say."""

from __future__ import annotations

import pytest

from book.experiments import digits_noise, questions
from book.experiments.questions import Setting, train, variants


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_a_run_over_sgd_is_the_one_of_the_batched_experiment(rho: float) -> None:
    found = train(Setting("sgd", 0.1, 2e-3, rho), seed=7)
    batched = digits_noise.train(
        [(digits_noise.Setting(0.1, 2e-3, rho), 7)], checkpoints=(digits_noise.STEPS,)
    )
    assert found["validation"] == batched.validation.item()
    assert found["test"] == batched.test.item()
    assert found["loss"] == pytest.approx(batched.loss.item(), rel=1e-8)


def test_variants_ask_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digits_noise.batches
    monkeypatch.setattr(questions, "batches", lambda seed: whole(seed)[:40])
    monkeypatch.setattr(questions, "STEPS", 40)
    monkeypatch.setattr(questions, "QUARTER", 10)
    best = Setting("adamw", 0.004, 1e-2, 0.2, stop=40)
    asked = {name: train(setting, 0)["gradients"] - 40 for name, setting in variants(best).items()}
    assert asked == {"always": 40, "first quarter": 10, "last quarter": 10, "every fifth step": 8}


@pytest.mark.parametrize("base", questions.BASES)
def test_every_base_learns(base: str) -> None:
    rate, decay = questions.RATES[base][1], questions.DECAYS[base][-2]
    assert train(Setting(base, rate, decay), 0)["validation"] > 0.8
