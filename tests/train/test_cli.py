"""The command line: what it prints, where things lie, and what it answers to mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llqr_sam_ref.train import cli, record
from llqr_sam_ref.train.presets import PRESETS
from tests.train import files

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--epochs", "2", "--train-examples", "128", "--no-progress", "--no-tensorboard"),
    *("--sharpness-examples", "16", "--model-args", "hidden=8"),
)


def code_of(arguments: list[str]) -> int:
    """What the process would end with; tyro leaves by itself."""
    try:
        return cli.main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.strip().splitlines()


def test_the_first_command_of_the_book(tmp_path: Path) -> None:
    """In a process of its own, as a reader runs it: less than a minute, 96 % and more, the last line tells."""
    out = tmp_path / "first"
    command = (
        sys.executable,
        "-m",
        "llqr_sam_ref",
        "train",
        "--preset",
        "digits-mlp",
        "--optimizer",
        "llqr-sam",
    )
    start = time.monotonic()
    done = subprocess.run(
        (*command, "--out", str(out)),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    match = re.fullmatch(rf"accuracy=(0\.9\d\d\d) record={re.escape(str(out))}/record\.json", last)
    assert match
    assert float(match[1]) >= 0.96
    assert "images/s" in done.stderr  # the progress bar
    assert "|eps| 0.05" in done.stderr
    assert done.stdout.count("epoch ") == 20
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").glob("events.*"))
    content = record.read(out)
    assert content["result"]["accuracy"] == pytest.approx(float(match[1]), abs=5e-5)
    assert content["command"] == (
        "python -m llqr_sam_ref train --preset digits-mlp --optimizer llqr-sam --out OUT"
    )
    assert content["wall_seconds"] < seconds < 300


def test_train_evaluate_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for method, seed in (("sam", 0), ("sam", 1), ("llqr-sam", 0)):
        runs.append(str(tmp_path / f"{method}{seed}"))
        settings = ("--preset", "digits-mlp", "--optimizer", method, "--seed", str(seed))
        assert cli.main(["train", *settings, *TINY, "--out", runs[-1]]) == 0
        trained = lines(capsys)[-1]
        assert trained.endswith(f"record={runs[-1]}/record.json")
    assert cli.main(["evaluate", runs[-1]]) == 0
    tested = lines(capsys)[-1]
    assert tested.split()[0] == trained.split()[0]
    assert tested.endswith("step=4")
    picture = tmp_path / "compared.png"
    assert cli.main(["compare", *runs, "--out", str(picture)]) == 0
    table = lines(capsys)
    assert table[0].split()[:2] == ["run", "seeds"]
    assert [line.split()[:2] for line in table[1:3]] == [["sam", "2"], ["llqr-sam", "1"]]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_same_command_goes_on_and_resume_needs_no_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--preset", "digits-mlp", *TINY, "--out", str(tmp_path)]
    assert cli.main(command) == 0
    first = lines(capsys)[-1]
    for again in (command, ["train", "--resume", "--out", str(tmp_path)]):
        assert cli.main(again) == 0
        said = capsys.readouterr()
        assert said.out.splitlines() == [first]
        assert "was finished before" in said.err


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    assert [line.split()[0] for line in lines(capsys)] == list(PRESETS)
    assert cli.main(["presets", "resnet18-cifar10", "--optimizer", "llqr-published-sam"]) == 0
    shown = "\n".join(lines(capsys))
    assert re.search(r"--lr +0\.05", shown)
    assert "reported from the paper" in shown
    assert cli.main(["presets", "--optimizers"]) == 0
    assert "llqr-published-sam" in "\n".join(lines(capsys))
    assert cli.main(["presets", "--models"]) == 0
    assert "package:function" in lines(capsys)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    for word in ("train", "evaluate", "presets", "compare", "torchrun", "digits-mlp"):
        assert word in overview
    assert code_of(["train", "--preset", "digits-resnet", "--help"]) == 0
    settings = capsys.readouterr().out
    for word in (
        "--optimizer",
        "--rho",
        "radius of the perturbation",
        "norm=group",
        "--accumulate",
        "bit for bit",
    ):
        assert word in settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ("command='trian'", "'train'")),
        (["train"], ("no preset", "digits-mlp")),
        (["train", "--out", "x"], ("no preset", "digits-mlp")),
        (["train", "--preset", "digits-mlp"], ("--out",)),
        (["train", "--preset", "digts-mlp", "--out", "x"], ("preset='digts-mlp'", "'digits-mlp'")),
        (["train", "--preset=digits-mlp", "--optimizer=lqr-sam", "--out=x"], ("'llqr-sam'",)),
        (["train", "--preset", "digits-mlp", "--model", "resnet81", "--out", "x"], ("'resnet18'",)),
        (
            ["train", "--preset", "digits-mlp", "--device", "cuda:77", "--out", "x"],
            ("device='cuda:77'", "auto"),
        ),
        (["train", "--preset", "digits-mlp", "--rho", "-1", "--out", "x"], ("rho=-1.0",)),
        (["train", "--preset", "digits-mlp", "--epoch", "3", "--out", "x"], ("--epochs",)),
        (["train", "--preset", "resnet18-cifar10", "--out", "x"], ("--data-path",)),
        (
            ["train", "--preset", "fashion-resnet18", "--data-path", "nowhere", "--out", "x"],
            ("nowhere does not exist", "IDX"),
        ),
        (["train", "--resume", "--out", "x"], ("no checkpoint",)),
        (["presets", "digits"], ("'digits-mlp'",)),
        (["evaluate", "x"], ("no checkpoint",)),
        (["compare", "x"], ("does not exist",)),
        (["compare"], ("no runs",)),
    ],
)
def test_mistakes_are_answered(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(arguments) == 2
    said = capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    for word in words:
        assert word in said


def test_failures_have_a_code_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "train",
        "--preset",
        "digits-mlp",
        *TINY,
        "--lr",
        "1e30",
        "--epochs",
        "9",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(command) == 1
    assert "not finite" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert cli.main(["presets"]) == 1
    assert not capsys.readouterr().err


def test_without_tyro_the_command_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "llqr_sam_ref.train.commands", raising=False)
    monkeypatch.delattr("llqr_sam_ref.train.commands", raising=False)
    assert cli.main(["presets"]) == 2
    assert "llqr-sam-ref[train]" in capsys.readouterr().err


def test_importing_the_package_needs_nothing_of_the_command_line() -> None:
    """The loop imports without tyro, tqdm, tensorboard, matplotlib, scikit-learn and Pillow."""
    code = (
        "import sys\n"
        "for name in ('tyro', 'tqdm', 'tensorboard', 'matplotlib', 'sklearn', 'PIL'): sys.modules[name] = None\n"
        "import llqr_sam_ref.train.run, llqr_sam_ref.train.presets, llqr_sam_ref.train.cli\n"
        "from llqr_sam_ref.train import configured, train\n"
        "settings = dict(data_args=('p=7',), batch_size=16, probe_size=16, epochs=1, sharpness_examples=0)\n"
        "train(configured('grokking-small', 'llqr-sam').replace(**settings), sys.argv[1])\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            (sys.executable, "-c", code, folder),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((Path(folder) / "record.json").read_text())["result"]["accuracy"] >= 0
    for name in ("tqdm", "TensorBoard", "matplotlib"):
        assert name in done.stderr


def test_fashion_mnist_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole ResNet-18 for a few steps, from files in Fashion-MNIST's format."""
    files.fashion(tmp_path / "data", 32, 10)
    settings = (
        "--preset",
        "fashion-resnet18-smoke",
        "--optimizer",
        "sam",
        "--data-path",
        str(tmp_path / "data"),
    )
    small = (
        "--batch-size",
        "16",
        "--epochs",
        "1",
        "--sharpness-examples",
        "0",
        "--no-progress",
        "--no-tensorboard",
    )
    assert cli.main(["train", *settings, *small, "--out", str(tmp_path / "run")]) == 0
    assert lines(capsys)[-1].startswith("accuracy=")
    content = record.read(tmp_path / "run")
    assert content["parameters"] == 11_172_810
    assert content["command"].count("DATA") == content["command"].count("OUT") == 1
    assert str(tmp_path) not in json.dumps(content)
