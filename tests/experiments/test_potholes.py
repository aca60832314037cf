"""The experiments on potholes: the quick version runs, its roads are the landscapes, the record keeps its claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from book.experiments import potholes as study
from book.experiments.store import load
from llqr_sam_ref.exact import dynamics, landscapes


def test_the_quick_version_answers_all_five_questions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "RATES", (0.01, 0.3))
    monkeypatch.setattr(study, "store", lambda *_: pytest.fail("the quick version writes nothing"))
    result = study.main(["--quick"])
    assert set(result) == {"hole", "road", "thresholds", "thermal", "learned"}
    assert "LLQR+SAM" in capsys.readouterr().out
    for row in result["thresholds"].values():
        assert abs(row["exit"] / row["exit_predicted"] - 1) < 0.25
    for name in ("GD", "LLQR", "SAM"):
        assert np.max(result["road"][name]["ever"]) == 0
    assert np.min(result["road"]["LLQR+SAM"]["ever"]) == 1


def test_the_module_is_the_road() -> None:
    """Loss and gradient of the torch module are those of the landscape, tilted by the noise."""
    road, _, _ = study.road_of(study.BASE)
    model = study.Road(study.BASE)
    rng = np.random.default_rng(0)
    w, xi = rng.standard_normal(25), rng.standard_normal(25)
    with torch.no_grad():
        model.w.copy_(torch.from_numpy(w))
    loss = model(torch.from_numpy(xi))
    loss.backward()
    value = loss.item()
    assert abs(value - road.loss(w) - xi @ w) < 1e-12 * abs(value)
    assert model.w.grad is not None
    np.testing.assert_allclose(model.w.grad.numpy(), road.slope(w) + xi, rtol=1e-12)


def test_many_holes_at_once_are_the_holes_of_the_landscape() -> None:
    holes = study.smooth_holes(np.array([2.8, 30.0]))
    y = np.array([[[0.02], [-0.07]]] * 2)
    for row, hole in enumerate((2.8, 30.0)):
        one = landscapes.pothole(np.array([study.BASIN]), hole=hole, width=study.WIDTH)
        for name in ("loss", "slope"):
            np.testing.assert_allclose(getattr(holes, name)(y)[row], getattr(one, name)(y[row]), rtol=1e-12)


def test_a_shipped_step_without_a_map_is_sam() -> None:
    """SGD under the package's SAM walks with the exact SAM, at the rates of its schedule."""
    steps, lr, rho = 5, 0.005, 0.3
    mine = study.shipped(study.BASE, None, lr, rho, seed=3, steps=steps)
    road, _, w = study.road_of(study.BASE)
    rng = np.random.default_rng(3)
    for t in range(steps):
        rate = lr * (1 + np.cos(np.pi * t / steps)) / 2
        w = dynamics.step(dynamics.sam(rate, rho), road, w, rng.standard_normal(25))
    assert abs(mine["flat"] - 0.1 * (w[5:] ** 2).sum() / 2) < 1e-9
    assert abs(mine["stiff"] - 100 * (w[:5] ** 2).sum() / 2) < 1e-9


def test_the_record_has_eleven_settings_within_a_quarter_of_the_theory() -> None:
    rows = load("potholes")["results"]["thresholds"]
    assert len(rows) == len(study.SETTINGS) == 11
    assert all(abs(row["exit"] / row["exit_predicted"] - 1) < 0.25 for row in rows.values())
