"""The command line, command after command (hence the length): what it prints, where things lie, mistakes answered."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llqr_sam_ref.errors import MissingPackageError, needs
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


# What is no mistake in the settings keeps its traceback, and what was saved is said.

FOREIGN = """
import torch

class Model(torch.nn.Module):
    def __init__(self, features, num_classes, breaks_at=0, how="type"):
        super().__init__()
        self.layer, self.passes = torch.nn.Linear(features, num_classes), 0
        self.breaks_at, self.how = breaks_at, how

    def forward(self, x):
        self.passes += self.training
        if self.passes > self.breaks_at:
            if self.how == "type":
                return self.layer(x.flatten(1)) + [1]
            if self.how == "value":
                raise ValueError("the model's own words")
            x = x[:, :, 1:]
        return self.layer(x.flatten(1))
"""


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("type", "TypeError", "unsupported operand"),
        ("value", "ValueError", "the model's own words"),
        ("shape", "RuntimeError", "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
@pytest.mark.parametrize("method", ["sgd", "llqr-sam"])
def test_an_error_in_a_users_model_shows_where_it_is(
    method: str,
    how: str,
    kind: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "foreign_network.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    command = [
        "train",
        "--preset",
        "digits-mlp",
        "--optimizer",
        method,
        "--model",
        "foreign_network:Model",
        *TINY,
    ]
    passes = {"sgd": 3, "llqr-sam": 6}[method]
    command += ["--checkpoint-every", "2", "--out", str(run), "--model-args"]
    assert cli.main([*command, "breaks_at=0", f"how={how}"]) == 1
    said = capsys.readouterr().err
    for word in (
        "Traceback",
        "foreign_network.py",
        f"{kind}: ",
        words,
        f"no checkpoint was written to {run} yet",
    ):
        assert word in said
    assert "error:" not in said
    assert cli.main([*command, f"breaks_at={passes}", f"how={how}"]) == 1
    said = capsys.readouterr().err
    for word in (
        "Traceback",
        "foreign_network.py",
        f"{run} has the checkpoint of step 2",
        "the same command goes on",
    ):
        assert word in said


@pytest.mark.parametrize("failing", ["evaluate", "compare"])
def test_other_commands_keep_their_tracebacks(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--preset", "digits-mlp", *TINY, "--out", str(tmp_path)]
    assert cli.main(["train", *command]) == 0
    name = {
        "evaluate": "llqr_sam_ref.train.loop.Trainer.evaluate",
        "compare": "llqr_sam_ref.train.compare.table",
    }
    monkeypatch.setattr(name[failing], lambda *arguments: [][1])
    with pytest.raises(IndexError):
        cli.main([failing, str(tmp_path)])


def test_settings_that_the_optimizer_refuses_have_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found when it is made, or at its first refit."""
    command = [
        "train",
        "--preset",
        "digits-mlp",
        "--optimizer",
        "llqr-sampled",
        *TINY,
        "--out",
        str(tmp_path / "x"),
    ]
    for more, word in (
        (("--probe-size", "30"), "probes=8"),
        (("--base", "adamw", "--llqr", "acts_on=gradient", "reduction=sume"), "reduction='sume'"),
    ):
        assert cli.main([*command, *more]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert said.startswith("error: ")
        assert word in said


# What is not installed.


def without(packages: tuple[str, ...], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program in a process where some packages cannot be found."""
    finder = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {packages}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return subprocess.run(
        (sys.executable, "-c", finder + code, *arguments),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


COMMAND_LINE = "from llqr_sam_ref.train.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (("torch", "tyro"), ("presets",), "tyro is not installed; pip install 'llqr-sam-ref[train]'."),
        (("tyro",), ("presets",), "tyro is not installed; pip install 'llqr-sam-ref[train]'."),
        (("torch",), ("presets", "--models"), "torch is not installed; pip install 'llqr-sam-ref[train]'."),
        (
            ("torch",),
            ("train", "--preset", "digits-mlp", "--out", "x"),
            "torch is not installed; pip install 'llqr-sam-ref[train]'.",
        ),
        (("torch",), ("evaluate", "x"), "torch is not installed; pip install 'llqr-sam-ref[train]'."),
        (("torch",), ("compare", "x"), "torch is not installed; pip install 'llqr-sam-ref[train]'."),
    ],
)
def test_the_command_line_says_which_extra_is_missing(
    missing: tuple[str, ...], arguments: tuple[str, ...], extra: str
) -> None:
    done = without(missing, COMMAND_LINE, *arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {extra}\n")


def test_presets_are_listed_without_torch() -> None:
    done = without(("torch",), COMMAND_LINE, "presets")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(PRESETS)


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("torch", "from llqr_sam_ref import SAM", "torch"),
        ("torch", "import llqr_sam_ref.optim", "torch"),
        ("torch", "from llqr_sam_ref.nets import mlp", "torch"),
        ("torch", "from llqr_sam_ref.optim.curvature import Linearization", "torch"),
        ("torch", "from llqr_sam_ref.train import train", "train"),
        ("matplotlib", "from llqr_sam_ref.figures import METHODS", "figures"),
    ],
)
def test_an_import_says_which_extra_is_missing(missing: str, code: str, extra: str) -> None:
    done = without((missing,), code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        f"MissingPackageError: {missing} is not installed; pip install 'llqr-sam-ref[{extra}]'."
    )


def test_a_package_that_lacks_something_itself_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has") as caught:
        needs("half_there", "train")
    assert not isinstance(caught.value, MissingPackageError)


def test_what_needs_no_torch_works_without() -> None:
    code = "from llqr_sam_ref import LLQRConfig; import llqr_sam_ref.exact.dynamics; print(LLQRConfig.sampled().every)"
    done = without(("torch", "matplotlib", "tyro"), code)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


def test_importing_the_package_needs_nothing_of_the_command_line() -> None:
    """The loop imports without tyro, tqdm, tensorboard, matplotlib, scikit-learn and Pillow."""
    code = (
        "import sys\n"
        "for name in ('tyro', 'tqdm', 'tensorboard', 'matplotlib', 'sklearn', 'PIL'): sys.modules[name] = None\n"
        "import llqr_sam_ref.train.run, llqr_sam_ref.train.presets, llqr_sam_ref.train.cli\n"
        "from llqr_sam_ref.train import configured, train\n"
        "settings = dict(data_args=('p=7',), batch_size=16, epochs=1, sharpness_examples=0)\n"
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
