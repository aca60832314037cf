"""A run that was stopped goes on as if it had not been: bit for bit, after any kind of stop."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llqr_sam_ref.train import checkpoint, record
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.loop import Trainer
from llqr_sam_ref.train.methods import METHODS
from llqr_sam_ref.train.presets import configured
from llqr_sam_ref.train.run import Stopped, train
from tests.train.runs import QUIET, saved_tensors, small, trainer, weights
from tests.train.test_checkpoint import disk_of


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def through_a_file(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a checkpoint of it gives back."""
    checkpoint.save(folder, {**state, "config": {}, "history": [], "seconds": 0.0})
    return checkpoint.read(folder / checkpoint.NAME)


@pytest.mark.parametrize("stop", [1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_bit_for_bit(tmp_path: Path, method: str, stop: int) -> None:
    config = small(method, accumulate=2, weight_decay=1e-3)
    whole, first = trainer(config), trainer(config)
    for _ in range(6):
        whole.train_step()
    for _ in range(stop):
        first.train_step()
    second = trainer(config)
    second.load(through_a_file(first.state(), tmp_path))
    for _ in range(6 - stop):
        second.train_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(second), weights(whole), strict=True))
    assert second.totals().tolist() == whole.totals().tolist()
    a, b = (run.state()["optimizer"] for run in (second, whole))
    assert str(a["param_groups"]) == str(b["param_groups"])


@pytest.mark.parametrize(("preset", "base"), [("digits-resnet", "muon"), ("grokking-small", "adamw")])
def test_dropout_batch_statistics_and_half_precision_go_on(tmp_path: Path, preset: str, base: str) -> None:
    arguments = {
        "digits-resnet": ("width=4", "depths=1,1", "norm=batch"),
        "grokking-small": ("width=8", "depth=1", "heads=2", "dropout=0.3"),
    }[preset]
    settings = {**QUIET, "model_args": arguments, "batch_size": 32, "precision": "fp16", "epochs": 1}
    config = configured(preset, "friendly-sam", base).replace(**settings)
    whole, first, second = (trainer(config) for _ in range(3))
    for run, count in ((whole, 5), (first, 2)):
        for _ in range(count):
            run.train_step()
    second.load(through_a_file(first.state(), tmp_path))
    for _ in range(3):
        second.train_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(second), weights(whole), strict=True))


# Killed.

LONG: dict[str, Any] = {"epochs": 40, "checkpoint_every": 1, "eval_every": 40, "rho": 0.05}
KILLS = 10


def child(config: TrainConfig, folder: str) -> None:
    train(config, folder)


def start(config: TrainConfig, folder: Path) -> Any:
    """A run in a process of its own; the server of these processes has imported torch before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([
        "llqr_sam_ref.train.run",
        "sklearn.datasets",
        "torch._dynamo",
        "matplotlib.figure",
    ])
    process = context.Process(target=child, args=(config, str(folder)))
    process.start()
    return process


def stamp(folder: Path) -> int:
    path = folder / checkpoint.NAME
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_until(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the run did not get on"
        time.sleep(0.002)


def test_killed_ten_times_at_random_moments(tmp_path: Path) -> None:
    """After each SIGKILL the newest checkpoint is whole; the last weights are those of a run left in peace."""
    config = small("llqr-sam", **LONG)
    train(config, tmp_path / "in peace")
    folder, moment = tmp_path / "killed", random.Random(0)
    killed = 0
    while killed < KILLS:
        before = stamp(folder)
        process = start(config, folder)
        wait_until(lambda before=before, process=process: stamp(folder) != before or not process.is_alive())
        time.sleep(moment.uniform(0.0, 0.05))
        assert process.is_alive(), f"the run was over after {killed} kills; make it longer"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        saved_tensors(folder)  # complains if the newest is damaged
    process = start(config, folder)
    process.join()
    assert process.exitcode == 0
    assert same(saved_tensors(folder), saved_tensors(tmp_path / "in peace"))
    rows = [
        [
            {k: v for k, v in row.items() if "second" not in k}
            for row in record.read(tmp_path / name)["metrics"]
        ]
        for name in ("killed", "in peace")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = small("llqr-sam", epochs=4)
    train(config, tmp_path / "whole")
    take = Trainer.train_step

    def step(self: Trainer) -> None:
        take(self)
        if self.step == 5:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", step)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="after step 5 of 12; the same command goes on"):
        train(config, tmp_path / "part")
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "part" / checkpoint.NAME)["step"] == 5
    assert not (tmp_path / "part" / record.NAME).exists()
    train(config, tmp_path / "part")
    assert same(saved_tensors(tmp_path / "part"), saved_tensors(tmp_path / "whole"))


def test_a_second_interrupt_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(small("sgd"), tmp_path)


def test_a_finished_run_only_shows_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("sam")
    first = train(config, tmp_path)
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("it trained again"))
    again = train(config, tmp_path)
    assert again["result"]["accuracy"] == pytest.approx(first["result"]["accuracy"], rel=1e-5)


def test_a_record_that_was_lost_is_written_again(tmp_path: Path) -> None:
    config = small("sam")
    first = train(config, tmp_path)
    (tmp_path / record.NAME).unlink()
    assert train(config, tmp_path)["metrics"] == first["metrics"]
    assert (tmp_path / record.NAME).exists()


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in result["metrics"]]


@pytest.mark.parametrize("others", [{"seed": 1}, {"lr": 0.2}, {"epochs": 3}, {"momentum": 0.5}])
@pytest.mark.parametrize("left", ["everything", "no checkpoints", "the record alone, of an earlier version"])
def test_a_record_of_other_settings_is_not_this_runs_result(
    tmp_path: Path, others: dict[str, Any], left: str
) -> None:
    """Also where checkpoints fall on the last step, and whether or not they were deleted since."""
    made = train(small("sam", checkpoint_every=3), tmp_path)
    if left != "everything":
        for name in (checkpoint.NAME, checkpoint.PREVIOUS):
            (tmp_path / name).unlink()
    if "earlier" in left:
        made["config"] = {
            k: v for k, v in made["config"].items() if k not in {"holdout", "decay", "nesterov"}
        }
        record.write(tmp_path, made)
    name, value = next(iter(others.items()))
    there = made["config"][name]
    with pytest.raises(
        ValueError, match=rf"another run: {name}={value} \(there {there}\)\. Pass another --out"
    ):
        train(small("sam", checkpoint_every=3, **others), tmp_path)
    assert record.read(tmp_path) == made


def test_the_record_of_the_same_settings_is_shown_without_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that a record rounds is still the same; what only shows may differ."""
    config = small("sam", lr=1 / 30, checkpoint_every=4)
    made = train(config, tmp_path)
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        (tmp_path / name).unlink()
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("it trained again"))
    assert train(config.replace(log_every=2), tmp_path) == record.read(tmp_path) == made
    assert "was finished before" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"lr=0\.0333334 \(there 0\.0333333\)"):
        train(config.replace(lr=0.0333334), tmp_path)


def test_a_record_without_the_last_checkpoint_gets_it(tmp_path: Path) -> None:
    """It was stopped between the two: the last steps are taken again."""
    config = small("sam", checkpoint_every=4)
    made = train(config, tmp_path)
    weights = saved_tensors(tmp_path)
    (tmp_path / checkpoint.PREVIOUS).replace(tmp_path / checkpoint.NAME)
    assert checkpoint.read(tmp_path / checkpoint.NAME)["step"] == 4
    assert rows(train(config, tmp_path)) == rows(made)
    assert checkpoint.read(tmp_path / checkpoint.NAME)["step"] == 6
    assert same(saved_tensors(tmp_path), weights)


def test_stopped_between_the_last_step_and_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("sam", checkpoint_every=3)
    made = train(config, tmp_path / "whole")
    monkeypatch.setattr(record, "write", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "part")
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("it trained again"))
    assert rows(train(config, tmp_path / "part")) == rows(made)
    assert record.read(tmp_path / "part")["result"]["accuracy"] == made["result"]["accuracy"]


# What goes wrong.


def test_another_run_in_the_folder_is_not_touched(tmp_path: Path) -> None:
    train(small("sam"), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=r"another run: lr=0.3 \(there 0.05\)"):
        train(small("sam", lr=0.3), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    train(small("sam", log_every=3, eval_batch_size=7), tmp_path)  # what only shows may differ


def test_resume_insists_on_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint"):
        train(small("sgd"), tmp_path, resume=True)


def test_a_truncated_checkpoint_costs_one_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small("sam", epochs=3)
    train(config, tmp_path)
    whole = saved_tensors(tmp_path)
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / record.NAME).unlink()
    train(config, tmp_path)
    assert "Going on from checkpoint.previous.pt, step 6" in capsys.readouterr().err
    assert same(saved_tensors(tmp_path), whole)


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    """The settings are the same, the data are not: ten classes were saved, and now there are seven."""
    from tests.train import files

    files.fashion(tmp_path / "data")
    settings = {
        **QUIET,
        "data": "fashion-mnist",
        "data_path": str(tmp_path / "data"),
        "batch_size": 20,
        "epochs": 1,
    }
    config = configured("digits-mlp", "sgd").replace(**settings)
    train(config, tmp_path / "run")
    path = tmp_path / "run" / checkpoint.NAME
    content = checkpoint.read(path)
    content["model"]["1.weight"] = torch.zeros(64, 64)
    content["step"] = 1
    checkpoint.save(tmp_path / "run", content)
    with pytest.raises(ValueError, match=r"size mismatch for 1\.weight"):
        train(config, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Trainer.train_step

    def step(self: Trainer) -> None:
        if self.step == 5:
            with torch.no_grad():
                next(self.model.parameters()).mul_(float("inf"))
        take(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(RuntimeError, match=r"not finite after step 6; the checkpoint of step 4 .* lower lr"):
        train(small("sgd", epochs=4, checkpoint_every=2), tmp_path)
    assert checkpoint.read(tmp_path / checkpoint.NAME)["step"] == 4
    assert all(bool(t.isfinite().all()) for t in saved_tensors(tmp_path).values())


def test_a_learning_rate_that_is_too_high_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        train(small("sgd", lr=1e200, epochs=8, momentum=0.99), tmp_path)


def test_training_goes_on_when_the_disk_is_full_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small("sam", epochs=3)
    train(config, tmp_path / "whole")
    save = checkpoint.save

    def failing(folder: Path, content: dict[str, Any]) -> Path:
        with disk_of(2000 if content["step"] == 3 else 10**9):
            return save(folder, content)

    monkeypatch.setattr(checkpoint, "save", failing)
    train(config, tmp_path / "full")
    assert "no checkpoint of step 3" in capsys.readouterr().err
    assert same(saved_tensors(tmp_path / "full"), saved_tensors(tmp_path / "whole"))


def test_a_disk_that_stays_full_is_an_error_with_the_result_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk_of(10), pytest.raises(RuntimeError, match="the record is printed above"):
        train(small("sgd"), tmp_path)
    shown = capsys.readouterr().err
    assert json.loads(shown[shown.index("{") :])["result"]["accuracy"] > 0
    assert not (tmp_path / record.NAME).exists()


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match="out='.*run' cannot be made a folder.*pass another --out"):
        train(small("sgd"), tmp_path / "run")


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / record.NAME).write_text("{}")
    with pytest.raises(ValueError, match="record.json is not the record of a run; remove it"):
        train(small("sgd"), tmp_path)
