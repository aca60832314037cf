"""The study of clocks: the fast map forgets at once, U = I is the step without a map, and gains are paired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from book.experiments import timescales as study
from book.experiments.timescales import Setting
from llqr_sam_ref import LLQR, SAM


def layer(setting: Setting, seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer, LLQR]:
    """The network, the optimizer, and the LLQR in it."""
    model = study.nets(seed)
    opt = study.optimizer(setting, model)
    inner = opt.base if isinstance(opt, SAM) else opt
    assert isinstance(inner, LLQR)
    return model, opt, inner


def step(model: torch.nn.Module, opt: torch.optim.Optimizer, part: slice) -> None:
    inputs, labels = study.splits()[0]
    opt.zero_grad()
    cross_entropy(model(inputs[part]), labels[part]).backward()
    opt.step()


def test_the_fastest_map_is_made_of_the_last_gradient_alone() -> None:
    """Two histories and then the same batch at the same weights: the curvatures agree; with a memory they do not."""
    for memory, same in ((1.0, True), (20.0, False)):
        kept = []
        for part in (slice(0, 64), slice(64, 128)):
            model, opt, inner = layer(Setting(1, memory, 0.0, 1e-9, 0.0))
            step(model, opt, part)
            with torch.no_grad():
                for p, q in zip(model.parameters(), study.nets(0).parameters(), strict=True):
                    p.copy_(q)
            step(model, opt, slice(128, 192))
            states = inner.state_dict()["state"].values()
            kept.append(
                torch.cat([v.flatten() for s in states for n, v in sorted(s.items()) if n == "llqr_c"])
            )
        assert kept[0].numel() > 0
        assert torch.allclose(kept[0], kept[1], rtol=1e-4) == same


def test_without_a_period_the_map_stays_the_identity() -> None:
    model, opt, inner = layer(Setting(0, 0.0, 0.1, 0.004, 0.3))
    assert isinstance(opt, SAM)
    inputs, labels = study.splits()[0]
    for _ in range(3):
        opt.zero_grad()
        cross_entropy(model(inputs[:64]), labels[:64]).backward()
        with opt.perturbed():
            opt.zero_grad()
            cross_entropy(model(inputs[:64]), labels[:64]).backward()
        opt.step()
    assert all(block.distance == 0 for block in inner.report())


def row(period: int, memory: float, rho: float, tuning: float, test: list[float]) -> dict[str, Any]:
    return {"period": period, "memory": memory, "rho": rho, "tuning": [[tuning, tuning]], "test": test}


def test_gains_are_those_of_the_radius_that_validation_chose() -> None:
    rows = [
        row(1, 1.0, 0.0, 0.5, [0.50, 0.52]),
        row(1, 1.0, 0.05, 0.6, [0.60, 0.58]),
        row(1, 1.0, 0.2, 0.4, [0.90, 0.90]),
        row(1, 20.0, 0.0, 0.8, [0.80, 0.82]),
        row(1, 20.0, 0.05, 0.7, [0.10, 0.10]),
        row(1, 20.0, 0.2, 0.9, [0.85, 0.84]),
    ]
    fast, slow = study.gains(rows)
    assert (fast["rho"], slow["rho"]) == (0.05, 0.2)
    assert fast["gain"] == pytest.approx(0.08)
    assert slow["gain"] == pytest.approx(0.035)
    assert slow["over_fastest"] == pytest.approx(0.035 - 0.08)
    assert fast["over_fastest"] == 0.0


def test_the_study_runs_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "RADII", (0.0, 0.1))
    monkeypatch.setattr(study, "RATES", (0.004,))
    monkeypatch.setattr(study, "FRESH_SEEDS", (400, 401))
    options = study.Options(tmp_path, quick=True)

    def here(works: Any) -> Any:
        return (work() for work in works)

    said: list[str] = []
    first = study.study(options, here, said.append)
    assert [r["what"] for r in first] == [
        "U = I, rho 0",
        "U = I, rho 0.1",
        "K 1, tau 1, rho 0",
        "K 1, tau 1, rho 0.1",
    ]
    assert all(len(r["test"]) == 2 for r in first)
    monkeypatch.setattr(study, "run", None)  # nothing is trained again
    assert study.study(options, here, said.append) == first
