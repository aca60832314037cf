"""The stored runs of the chapter on machines, at tiny size: they end, and agree with themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from book.experiments import machines_run, machines_workers
from llqr_sam_ref.train import cli
from tests.train import files

TINY = (
    *("--epochs", "1", "--train-examples", "320", "--test-examples", "32", "--batch-size", "16"),
    *("--probe-size", "16", "--model-args", "width=4", "depths=1", "--sharpness-examples", "8"),
    *("--no-progress", "--no-tensorboard"),
)


def test_the_run_is_told_from_the_first_batch_to_the_last(tmp_path: Path) -> None:
    files.fashion(tmp_path / "data", 320, 32)
    options = machines_run.Options(
        str(tmp_path / "data"), tmp_path / "run", results=tmp_path / "results", extra=TINY
    )
    content = json.loads(machines_run.main(options).read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(content)
    found = content["results"]
    assert [step["refit"] for step in found["first_epoch"]["steps"]] == [n % 10 == 0 for n in range(20)]
    assert all(step["radius"] == pytest.approx(0.05) for step in found["first_epoch"]["steps"])
    assert found["published"]["products"] == 50
    assert found["printed"][-1].endswith("record=OUT/record.json")
    assert set(found["end"]["rises"]) == {"evaluation", "training"}
    assert content["provenance"]["seed"] == found["record"]["seed"] == 0


def test_a_second_epoch_that_differs_from_the_first_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.fashion(tmp_path / "data", 320, 32)
    options = machines_run.Options(str(tmp_path / "data"), tmp_path / "run", results=tmp_path, extra=TINY)
    monkeypatch.setattr(machines_run, "epoch_again", lambda config: {"loss": 0.0, "accuracy": 0.0})
    with pytest.raises(RuntimeError, match="loss of the first epoch"):
        machines_run.main(options)


def test_workers_are_compared_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That several processes equal one is tests/train/test_processes.py's business; here a command is a call."""
    launched: list[list[str]] = []

    def call(command: list[str]) -> None:
        launched.append(command)
        assert cli.main(command[command.index("llqr_sam_ref") + 1 :]) == 0

    monkeypatch.setattr(machines_workers, "launch", call)
    options = machines_workers.Options(
        tmp_path / "runs", epochs=1, train_examples=64, processes=(2,), results=tmp_path
    )
    content = json.loads(machines_workers.main(options).read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(content)
    rows = content["results"]["rows"]
    assert [row["processes"] for row in rows] == [1, 2] * len(machines_workers.CASES)
    assert all(row["largest_difference"] == 0 for row in rows)
    under_torchrun = ["torch.distributed.run" in command for command in launched]
    assert sum(under_torchrun) == len(machines_workers.CASES)
    assert len(launched) == 2 * len(machines_workers.CASES) - 1  # one of them shares its one-process run
