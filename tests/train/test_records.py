"""Records are small, complete and tell nothing of paths; comparisons add up seeds and nothing else."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from llqr_sam_ref.train import provenance, record
from llqr_sam_ref.train.compare import grouped, table, text, time_to
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.plots import draw
from llqr_sam_ref.train.run import train
from tests.train.runs import small


def test_a_record_says_what_when_and_with_what(tmp_path: Path) -> None:
    config = small("sam", sharpness_examples=16)
    arguments = ["train", "--preset", "digits-mlp", "--out", str(tmp_path / "private")]
    made = train(config, tmp_path / "private", arguments=arguments)
    found = record.read(tmp_path / "private")
    assert found["command"] == "python -m llqr_sam_ref train --preset digits-mlp --out OUT"
    assert found["config"]["rho"] == config.optimizer.rho
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {
        "commit",
        "device",
        "processes",
        "threads",
        "system",
        "parameters",
        "wall_seconds",
        "seed",
    } <= set(found)
    assert [row["epoch"] for row in found["metrics"]] == [1, 2]
    assert [row["step"] for row in found["metrics"]] == [3, 6]
    assert found["metrics"][-1]["radius"] == pytest.approx(config.optimizer.rho, rel=1e-5)
    assert found["sharpness"]["top_eigenvalue"] == pytest.approx(
        made["sharpness"]["top_eigenvalue"], rel=1e-5
    )
    assert found["result"]["best_accuracy"] >= found["result"]["accuracy"]
    assert "private" not in json.dumps(found)
    assert (tmp_path / "private" / record.NAME).stat().st_size < 8000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--out", "/a/b", "--lr", "1"], "train --out OUT --lr 1"),
        (["train", "--out=/a/b", "--data-path", "/c"], "train --out=OUT --data-path DATA"),
        (["train", "--data_path=/c"], "train --data-path=DATA"),
    ],
)
def test_commands_keep_no_paths(arguments: list[str], expected: str) -> None:
    assert provenance.command(arguments) == f"python -m llqr_sam_ref {expected}"


def test_a_run_from_python_says_how_it_is_repeated(tmp_path: Path) -> None:
    made = train(small("sgd"), tmp_path / "first")
    again = {"train": train, "TrainConfig": TrainConfig, "config": made["config"], "OUT": tmp_path / "again"}
    repeated = eval(made["command"].removeprefix("llqr_sam_ref.train."), again)
    assert repeated["result"]["loss"] == made["result"]["loss"]


def test_numbers_survive_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    rows = [{"x": 1.23456789, "y": math.nan}, {"x": 1e-20, "y": math.inf}]
    record.write(tmp_path, {"config": {}, "metrics": rows, "result": {"n": 12345678}})
    found = record.read(tmp_path)
    assert found["metrics"] == [{"x": 1.23457, "y": None}, {"x": 1e-20, "y": None}]
    assert found["result"]["n"] == 12345678


@pytest.mark.parametrize("content", ["", "[1]", '{"config": {}}', "{"])
def test_other_files_are_no_records(tmp_path: Path, content: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not the record of a run"):
        record.read(path)


def fake(optimizer: str, seed: int, accuracies: list[float], **settings: Any) -> dict[str, Any]:
    config = {"optimizer": optimizer, "seed": seed, "lr": 0.1, "rho": 0.05, "progress": True, **settings}
    rows = [
        {
            "epoch": i + 1,
            "step": 10 * (i + 1),
            "seconds": 2.0 * (i + 1),
            "test_accuracy": a,
            "train_loss": 1.0 - a,
        }
        for i, a in enumerate(accuracies)
    ]
    return {
        "config": config,
        "metrics": rows,
        "result": {"accuracy": accuracies[-1], "loss": 1 - accuracies[-1], "per_second": 100.0 + seed},
        "sharpness": {"top_eigenvalue": 5.0 + seed},
    }


RECORDS = {
    "a": fake("sgd", 0, [0.5, 0.8, 0.9]),
    "b": fake("sgd", 1, [0.6, 0.7, 0.8], progress=False),
    "c": fake("sam", 0, [0.7, 0.86, 0.94]),
    "d": fake("sam", 0, [0.7, 0.86, 0.92], rho=0.2),
}


def test_seeds_of_a_setting_are_one_line() -> None:
    assert {name: len(group) for name, group in grouped(RECORDS).items()} == {
        "sgd": 2,
        "sam rho=0.05": 1,
        "sam rho=0.2": 1,
    }


def test_the_table_has_means_spreads_and_times() -> None:
    rows = table(RECORDS)
    first = rows[0]
    assert first["accuracy"] == f"0.8500 +- {statistics.stdev([0.9, 0.8]):.4f}"
    assert first["per second"] == "100 +- 1"  # 100.5, half to even
    assert first["seconds to 0.8500"] == "6.0 (1 of 2)"
    assert rows[1]["seconds to 0.8500"] == "4.0"
    assert rows[1]["top eigenvalue"] == "5.00"
    lines = text(rows).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("run")
    assert table(RECORDS, 0.93)[0]["seconds to 0.9300"] == "- (0 of 2)"


def test_time_to_an_accuracy() -> None:
    assert time_to(RECORDS["a"], 0.8) == 4.0
    assert time_to(RECORDS["a"], 0.8, "epoch") == 2
    assert time_to(RECORDS["a"], 0.95) is None


def test_pictures_of_runs(tmp_path: Path) -> None:
    assert draw(RECORDS, tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
