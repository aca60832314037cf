"""Runs that earlier versions left behind go on; what a newer one wrote is refused in words."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest

from llqr_sam_ref.train import checkpoint, cli, record
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.earlier import as_now
from llqr_sam_ref.train.evaluation import evaluate
from llqr_sam_ref.train.methods import llqr_config
from llqr_sam_ref.train.run import train
from tests.train.runs import small

STORED = Path(__file__).parent / "stored"

# Written at commit d4df6ba, after 4 of 6 steps, with one flat name space for both solvers of LLQR and with rho=0.1 for
# every method; what that version had after the last step: training loss, test loss, length of the first kernel.
ENDS = {
    "sgd": (2.202595027732001, 2.2364940643310547, 0.8454405348097945),
    "llqr-published-sam": (2.2208601289822347, 2.257683753967285, 0.8516592838994693),
    "llqr-sam": (2.30101073255095, 2.348510503768921, 0.8199385976221087),
}


def unpacked(name: str, folder: Path) -> Path:
    folder.mkdir()
    with gzip.open(STORED / f"{name}.pt.gz") as packed, (folder / checkpoint.NAME).open("wb") as file:
        shutil.copyfileobj(packed, file)
    return folder


@pytest.mark.parametrize("method", ENDS)
def test_a_run_of_an_earlier_version_goes_on_as_it_would_have(tmp_path: Path, method: str) -> None:
    folder = unpacked(method, tmp_path / "run")
    saved = checkpoint.read(folder / checkpoint.NAME)
    assert saved["step"] == 4
    config = as_now(saved["config"], folder, saved["version"])
    result = train(config, folder, resume=True)
    assert [row["step"] for row in result["metrics"]] == [3, 6]
    end = checkpoint.read(folder / checkpoint.NAME)
    last = end["history"][-1]
    found = (last["train_loss"], last["test_loss"], float(end["model"]["1.weight"].norm()))
    assert found == pytest.approx(ENDS[method], rel=1e-9)
    assert evaluate(folder)["loss"] == pytest.approx(ENDS[method][1], rel=1e-6)


def test_the_command_line_goes_on_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a preset the settings are the checkpoint's, by their present names."""
    folder = unpacked("llqr-published-sam", tmp_path / "run")
    assert checkpoint.read(folder / checkpoint.NAME)["config"]["llqr"] == [
        "every=2",
        "inner_steps=3",
        "inner_lr=0.01",
    ]
    assert cli.main(["train", "--resume", "--out", str(folder)]) == 0
    assert "going on from step 4 of 6" in capsys.readouterr().out
    assert record.read(folder)["config"]["llqr"] == ["every=2", "steps=3", "lr=0.01"]


def test_the_same_line_with_todays_names_goes_on_with_it(tmp_path: Path) -> None:
    folder = unpacked("llqr-published-sam", tmp_path / "run")
    now = small(
        "llqr-published-sam",
        llqr=("every=2", "steps=3", "lr=0.01"),
        model_args=("hidden=2", "activation=tanh"),
        augment=(),
        rho=0.1,
        weight_decay=1e-3,
    )
    train(now, folder, resume=True)
    with pytest.raises(ValueError, match=r"another run: rho=0.2 \(there 0.1\)\. Pass"):
        train(now.replace(rho=0.2), folder)


def test_what_an_earlier_version_did_not_have_takes_its_default() -> None:
    """Any one setting may be missing."""
    flat = small("llqr-sam", rho=0.2, schedule="step", milestones=[1.0]).flat()
    for name, usual in TrainConfig().flat().items():
        older = as_now({key: value for key, value in flat.items() if key != name}, "x")
        assert older.flat()[name] == usual
    assert as_now({}, "x") == TrainConfig()


def test_what_an_earlier_version_kept_unread_is_left_out() -> None:
    older = {
        "optimizer": "sgd",
        "rho": 0.1,
        "llqr": ["every=3"],
        "betas": [0.8, 0.9],
        "milestones": [3.0],
        "lr": 0.2,
    }
    assert as_now(older, "x") == TrainConfig().replace(lr=0.2)


@pytest.mark.parametrize(
    ("method", "pairs", "now"),
    [
        (
            "llqr-published",
            ["inner_steps=3", "inner_lr=0.1", "inner-momentum=0.5"],
            ("steps=3", "lr=0.1", "momentum=0.5"),
        ),
        ("llqr", ["every=3", "ema=0.5", "inner_steps=3"], ("every=3",)),
        ("llqr-published", ["every=3", "curvature_memory=9"], ("every=3",)),
        (
            "llqr",  # both solvers had one damping, 0.03 unless said otherwise
            ["solver=inner-loop", "damping_kind=absolute", "positive=False"],
            ("solver=inner-loop", "positive=False", "damping=0.03"),
        ),
        ("llqr", ["solver=inner-loop", "steps=3"], ("solver=inner-loop", "steps=3")),
        ("llqr-sam", ["evry=3"], None),
    ],
)
def test_settings_of_llqr_by_their_present_names(
    method: str, pairs: list[str], now: tuple[str, ...] | None
) -> None:
    older = {"optimizer": method, "llqr": pairs}
    if now is None:
        with pytest.raises(
            ValueError, match="x was written by an earlier version.*'evry'.*start anew in another"
        ):
            as_now(older, "x")
        return
    config = as_now(older, "x")
    assert config.optimizer.llqr == now
    assert as_now(config.flat(), "x") == config
    assert llqr_config(config.optimizer.optimizer, config.optimizer.llqr) is not None


def test_what_a_newer_version_wrote_is_refused(tmp_path: Path) -> None:
    config = small("sgd")
    train(config, tmp_path)
    saved = checkpoint.read(tmp_path / checkpoint.NAME)

    def rewritten(**changes: Any) -> None:
        checkpoint.save(tmp_path, {**saved, **changes})

    rewritten(config={**saved["config"], "lookahead": 3})
    with pytest.raises(
        ValueError, match=r"settings that this version does not know: \['lookahead'\]; update"
    ):
        train(config, tmp_path)
    (tmp_path / checkpoint.PREVIOUS).unlink()
    rewritten(version=99)
    (tmp_path / checkpoint.PREVIOUS).unlink()
    with pytest.raises(checkpoint.CheckpointError, match="has version 99, and this package reads up to"):
        train(config, tmp_path)


def test_a_value_that_is_no_longer_allowed_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"x was written by an earlier version.*rho=-1 is not allowed.*Go on with"
    ):
        as_now({"optimizer": "sam", "rho": -1}, "x")
