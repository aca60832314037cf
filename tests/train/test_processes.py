"""Several processes train like one on the same whole batch; what they cannot do they say."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llqr_sam_ref.train import checkpoint, cli, record
from llqr_sam_ref.train.config import MachineConfig
from llqr_sam_ref.train.loop import Trainer
from llqr_sam_ref.train.presets import configured
from llqr_sam_ref.train.ranks import RunRanks, device_of, started
from llqr_sam_ref.train.run import train
from tests.optim._ranks import run_on_ranks
from tests.train import files
from tests.train.runs import QUIET, saved_tensors, small, trainer, weights

ROOT = Path(__file__).resolve().parents[2]


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# The real thing: the same command line, plainly and under torchrun.

COMMAND = (
    *("--preset", "digits-mlp", "--precision", "float64", "--epochs", "4", "--train-examples", "640"),
    *("--no-progress", "--no-tensorboard", "--checkpoint-every", "7"),
)


@pytest.mark.parametrize("method", ["sam", "llqr-sam"])
def test_torchrun_equals_one_process(tmp_path: Path, method: str) -> None:
    """40 steps on two processes and on one, with the same global batches: weights, momentum and figures.

    Some pixels are dark in every image, so the Gram matrices of LLQR have an eigenvalue that occurs many times.
    """
    arguments = ["train", *COMMAND, "--optimizer", method, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = (*torchrun, "-m", "llqr_sam_ref", *arguments, str(tmp_path / "two"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("accuracy=")
    assert done.stdout.count("accuracy=") == 1
    assert cli.main([*arguments, str(tmp_path / "one")]) == 0
    one, two = (
        {where: tensor for where, tensor in saved_tensors(tmp_path / name).items() if "llqr_" not in where}
        for name in ("one", "two")
    )
    assert any("momentum" in where for where in one)
    assert gap(one, two) < 1e-10
    records = [record.read(tmp_path / name) for name in ("one", "two")]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "radius"):
        assert [row[name] for row in records[0]["metrics"]] == pytest.approx(
            [row[name] for row in records[1]["metrics"]], rel=1e-5
        )
    assert records[1]["processes"] == 2


# The same with less around it.


def ranks_of(rank: int, count: int) -> RunRanks:
    return RunRanks(rank=rank, world_size=count)


def several_steps(
    rank: int, count: int, method: str, settings: dict[str, Any], steps: int
) -> tuple[Any, ...]:
    run = trainer(small(method, **settings), ranks_of(rank, count))
    for _ in range(steps):
        run.train_step()
    return weights(run), run.totals().tolist(), run.evaluate()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sgd", {"accumulate": 3}),
        ("m-sam", {}),
        ("friendly-sam", {"accumulate": 2}),
        ("llqr", {"weight_decay": 1e-3}),
        ("llqr-published-sam", {}),
    ],
)
def test_two_processes_equal_one(method: str, settings: dict[str, Any]) -> None:
    alone = several_steps(0, 1, method, settings, 4)
    together = run_on_ranks(several_steps, 2, method, settings, 4)
    for found, totals, tested in together:
        assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(found, alone[0], strict=True))
        assert totals == pytest.approx(alone[1], rel=1e-10)
        assert tested == pytest.approx(alone[2], rel=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(together[0][0], together[1][0], strict=True))


def shares_of_translation(rank: int, count: int, folder: str) -> list[Tensor]:
    settings: dict[str, Any] = {
        **QUIET,
        "data_path": folder,
        "data_args": ("buckets=2",),
        "model_args": ("width=8", "depth=1", "heads=2", "hidden=8", "dropout=0"),
        "batch_size": 60,
        "precision": "float64",
        "epochs": 1,
        "warmup": "0",
    }
    run = trainer(configured("transformer-iwslt14", "sgd").replace(**settings), ranks_of(rank, count))
    for _ in range(3):
        run.train_step()
    return weights(run)


def test_shares_of_different_length_count_by_their_targets(tmp_path: Path) -> None:
    files.parallel(tmp_path)
    alone = shares_of_translation(0, 1, str(tmp_path))
    for found in run_on_ranks(shares_of_translation, 2, str(tmp_path)):
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, alone, strict=True))


def test_own_perturbations_differ_from_a_common_one_and_agree_on_the_weights() -> None:
    common, own = (
        run_on_ranks(several_steps, 2, "sam", {"own_perturbation": flag, "rho": 0.5}, 3)
        for flag in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(own[0][0], own[1][0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(own[0][0], common[0][0], strict=True))


# Sharded, and on machines that do not see each other's disks.


class Enough(Exception):  # noqa: N818
    """The machine went down."""


def sharded_run(
    rank: int, folder: str, method: str, settings: dict[str, Any], stop: int
) -> tuple[str, list[dict[str, Any]]]:
    """What was said, and the records: of a run that went down before step ``stop``, went on, and was shown again."""
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    config = small(method, parallel="fsdp", checkpoint_every=1, weight_decay=1e-3, **settings)
    own = Path(folder) / f"disk{rank}"
    take = Trainer.train_step

    def step(self: Trainer) -> None:
        if self.step == stop:
            raise Enough
        take(self)

    try:
        with pytest.MonkeyPatch.context() as patch, suppress(Enough):
            patch.setattr(Trainer, "train_step", step)
            train(config, own)
        return "", [train(config, own) for _ in range(2)]
    except ValueError as error:
        return str(error), []


@pytest.mark.parametrize(
    ("method", "settings"),
    # One probe, because the micro-batches of several would be other ones: the j-th of both processes together.
    [
        ("sam", {}),
        ("llqr-sam", {"llqr": ("structure=diagonal", "every=2", "probes=1")}),
        ("llqr-sam", {"llqr": ("max_side=5", "basis_every=2")}),  # blocks that no cut goes through
    ],
)
def test_shards_equal_wholes_and_go_on(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    """FSDP2 on two processes, stopped after step 3 and gone on with, against one process."""
    said, records = zip(*run_on_ranks(sharded_run, str(tmp_path), method, settings, 3), strict=True)
    assert said == ("", "")
    train(small(method, weight_decay=1e-3, **settings), tmp_path / "whole")
    shards, whole = (
        dict(checkpoint.read(tmp_path / name / checkpoint.NAME)["model"]) for name in ("disk0", "whole")
    )
    assert gap(shards, whole) < 1e-10
    kept = record.read(tmp_path / "disk0")
    assert kept["result"]["loss"] == pytest.approx(
        record.read(tmp_path / "whole")["result"]["loss"], rel=1e-5
    )
    assert not (tmp_path / "disk1").exists()
    assert all(shown == kept for _, shown in records)


def test_what_cannot_be_sharded_says_so(tmp_path: Path) -> None:
    for said, _ in run_on_ranks(sharded_run, str(tmp_path), "llqr-sam", {"llqr": ("structure=dense",)}, 0):
        assert "structure='diagonal' or 'ekfac'" in said


# All ranks know whether there is something to do, and none waits for one that has given up.


def in_turn(rank: int, folder: str, runs: list[tuple[dict[str, Any], str]]) -> list[str]:
    """What every run of the same folder on the first rank's disk comes to, on this rank: its loss, or what was said."""
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    own, outcomes = Path(folder) / f"disk{rank}", []
    for settings, first_deletes in runs:
        if rank == 0:
            for path in own.glob(first_deletes):
                path.unlink()
        try:
            outcomes.append(
                f"loss {train(small('sam', checkpoint_every=3, **settings), own)['result']['loss']:.6f}"
            )
        except (ValueError, RuntimeError) as error:
            outcomes.append(str(error))
    return outcomes


def test_all_ranks_agree_on_what_there_is_to_do(tmp_path: Path) -> None:
    """Trained, shown, refused for other settings with and without its checkpoints, shown without, written again."""
    nothing, all_of_them = "nothing", "*.pt"
    runs = [
        ({}, nothing),
        ({}, nothing),
        ({"seed": 1}, nothing),
        ({"seed": 1}, all_of_them),
        ({}, nothing),
        ({}, record.NAME),
        ({"seed": 1}, record.NAME),
    ]
    first, second = run_on_ranks(in_turn, str(tmp_path), [({**settings}, gone) for settings, gone in runs])
    assert first == second
    trained, shown, other, other_again, shown_again, anew, refused = first
    assert trained.startswith("loss ")
    assert shown == shown_again == anew == trained
    for said in (other, other_again, refused):
        assert "another run: seed=1 (there 0)" in said
    assert not (tmp_path / "disk1").exists()


def unwritable(rank: int, folder: str, what: str) -> str:
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    own = Path(folder) / f"disk{rank}"
    config = small("sgd", checkpoint_every=3)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0 and what == "folder":
            own.write_text("a file")
        elif rank == 0 and what == "picture":
            patch.setattr("llqr_sam_ref.train.run._draw", lambda *arguments: 1 / 0)
        elif rank == 0:
            disk = os.open("/dev/full", os.O_WRONLY)
            patch.setattr(os, "fsync", lambda descriptor: os.write(disk, b"x"))
        elif what == "data":
            config = config.replace(
                data="text", model="decoder", model_args=(), data_path=str(own / "nowhere")
            )
        if rank == 0 and what == "data":
            text = Path(folder) / "text"
            text.write_text("abcdefgh" * 100)
            arguments = {"data_args": ("context=4",), "train_examples": None, "test_examples": None}
            config = config.replace(
                data="text", model="decoder", model_args=(), data_path=str(text), **arguments
            )
        try:
            train(config, own)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("folder", "cannot be made a folder"),
        ("disk", "the record is printed above"),
        ("picture", "division by zero"),
        ("data", "nowhere does not exist"),
    ],
)
def test_what_fails_on_one_rank_ends_all(tmp_path: Path, what: str, word: str) -> None:
    said = run_on_ranks(unwritable, str(tmp_path), what)
    assert said[0] == said[1]
    assert word in said[0]


def batch_of_one(rank: int) -> str:
    run = trainer(small("sgd"), ranks_of(rank, 2))
    run._order = [indices[:1] for indices in run._order]
    try:
        run.train_step()
    except ValueError as error:
        return str(error)
    return ""


def test_a_batch_with_fewer_examples_than_ranks_is_refused_by_all() -> None:
    said = run_on_ranks(batch_of_one)
    assert said[0] == said[1]
    assert "the batch of step 0 has 1 examples for 2 processes" in said[0]


def conversation(rank: int) -> dict[str, Any]:
    ranks = ranks_of(rank, 2)
    model = torch.nn.BatchNorm1d(3)
    model.running_mean.fill_(float(rank))  # type: ignore[union-attr]
    ranks.share_buffers(model)
    return {
        "sum": ranks.sum(torch.tensor([1.0, rank])).tolist(),
        "any": [ranks.any(rank == 1), ranks.any(False)],
        "first": ranks.from_first(lambda: f"made by {rank}"),
        "each": ranks.on_all(lambda: rank),
        "buffers": [float(b.sum()) for b in model.buffers()],
    }


def test_what_ranks_send_one_another() -> None:
    for rank, heard in enumerate(run_on_ranks(conversation)):
        assert heard == {
            "sum": [2.0, 1.0],
            "any": [True, False],
            "first": "made by 0",
            "each": rank,
            "buffers": [0.0, 3.0, 0.0],
        }


# What does not work.


def test_sharding_needs_several_processes() -> None:
    with pytest.raises(ValueError, match="torchrun"), started(MachineConfig(parallel="fsdp")):
        pass


def nothing_to_resume(rank: int, folder: str) -> str:
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        train(small("sgd"), Path(folder) / f"disk{rank}", resume=True)
    except ValueError as error:
        return str(error)
    return ""


def test_all_processes_end_when_the_first_finds_no_checkpoint(tmp_path: Path) -> None:
    said = run_on_ranks(nothing_to_resume, str(tmp_path))
    assert said[0] == said[1]
    assert "disk0 has no checkpoint" in said[0]


def too_small_a_batch(rank: int) -> str:
    try:
        trainer(small("sgd", batch_size=3, accumulate=2), ranks_of(rank, 2))
    except ValueError as error:
        return str(error)
    return ""


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    assert all("2 processes" in said for said in run_on_ranks(too_small_a_batch))


def test_devices_that_are_not_there_are_named() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type in {"cpu", "cuda", "mps", "xpu"}
    for name in ("cuda:99", "abacus"):
        with pytest.raises(ValueError, match=f"device='{name}'"):
            device_of(name)


def test_shares_are_fair() -> None:
    for n in range(20):
        shares = [RunRanks(rank=rank, world_size=3).share(n) for rank in range(3)]
        lengths = [s.stop - s.start for s in shares]
        assert sum(lengths) == n
        assert max(lengths) - min(lengths) <= 1
        assert [i for s in shares for i in range(s.start, s.stop)] == list(range(n))
