"""The study on Fashion-MNIST runs at tiny size, goes on where it stopped, and stores what the book shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from book.experiments import fashion_resnet18 as study
from llqr_sam_ref.train.loop import Trainer
from tests.train import files

METHODS = ("sgd", "llqr-sam")


def test_a_tiny_study_goes_on_and_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.fashion(tmp_path / "data", 96, 32)
    options = study.Options(
        *(str(tmp_path / "data"), tmp_path / "runs"),
        small=True,
        epochs=1,
        tune_epochs=1,
        seeds=2,
        methods=METHODS,
        rounds=1,
        jobs=2,
        device="cpu",
        results=tmp_path / "results",
        smoke=True,
    )
    path = study.main(options)
    assert path == tmp_path / "results" / "fashion_resnet8.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(content)
    results = content["results"]
    assert set(results["methods"]) == set(METHODS)
    for method in METHODS:
        assert len(results["tuning"][method]["tried"]) == 4
        assert len(results["methods"][method]["accuracies"]) == 2
    assert [row["measured"] > 0 for row in results["throughput"]] == [True] * 7
    assert content["provenance"]["environment"]["device"] == "cpu"

    # Again: every run is there, so nothing but the throughput is done anew.
    monkeypatch.setattr(study, "throughputs", lambda options, watch: [])
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("it trained again"))
    again = json.loads(study.main(replace(options, jobs=1)).read_text(encoding="utf-8"))["results"]
    assert again["tuning"] == results["tuning"]
    assert again["methods"] == results["methods"]


def test_every_method_has_the_same_number_of_settings() -> None:
    options = study.Options("nowhere", Path("nowhere"))
    assert {len(study.candidates(options, method)) for method in study.METHODS} == {4}
