"""One table of methods: a new one is a row, and needs nothing else from the command line to the picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llqr_sam_ref.optim import SAM, Metric
from llqr_sam_ref.train import checkpoint, cli, compare, methods, record
from llqr_sam_ref.train.config import OptimizerConfig
from llqr_sam_ref.train.methods import METHODS, Made, Method
from llqr_sam_ref.train.plots import draw
from llqr_sam_ref.train.presets import configured
from llqr_sam_ref.train.run import train
from tests.train.runs import SMALL, saved_tensors, small, steps, trainer

ROOT = Path(__file__).resolve().parents[2]

# A new method: its row. The metric's power comes from a setting that other methods read too.
ROW = Method(
    "SAM in the metric diag(|g| + floor)^alpha",
    methods.RED.kin("Power SAM", (2, 1, 5, 1), "*"),
    sam=METHODS["sam"].sam,
    metric=Made("tests.train.new_metric:Power", power="alpha"),
    kin=("sam",),
    settings={"rho": 0.02},
)


@pytest.fixture
def power_sam(monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name, while the table has it."""
    monkeypatch.setitem(METHODS, "power-sam", ROW)
    return "power-sam"


def test_a_new_method_trains_from_the_command_line(
    power_sam: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, recorded, tested again, listed, compared with another and drawn beside it."""
    words = ["--preset", "digits-mlp", "--epochs", "2", "--train-examples", "96", "--no-progress"]
    words += ["--no-tensorboard", "--sharpness-examples", "0"]
    runs = {name: str(tmp_path / name) for name in (power_sam, "sam")}
    for name, out in runs.items():
        assert cli.main(["train", *words, "--optimizer", name, "--out", out]) == 0
    made = record.read(runs[power_sam])
    assert (made["config"]["optimizer"], made["config"]["rho"]) == (power_sam, 0.02)
    assert made["metrics"][-1]["radius"] == pytest.approx(0.02, rel=1e-3)
    assert cli.main(["evaluate", runs[power_sam]]) == 0
    assert cli.main(["presets", "--optimizers"]) == 0
    assert ROW.about in capsys.readouterr().out
    assert cli.main(["compare", *runs.values(), "--out", str(tmp_path / "both.png")]) == 0
    assert re.search(rf"^{power_sam}\b", capsys.readouterr().out, re.MULTILINE)
    assert set(compare.grouped({out: record.read(out) for out in runs.values()})) == set(runs)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert draw({"alone": made}, tmp_path / "one.png").exists()
    assert (
        cli.main(["train", *words, "--optimizer", power_sam, "--momentum", "0.8", "--out", runs["sam"]]) == 2
    )
    assert "another run: optimizer='power-sam' (there 'sam')" in capsys.readouterr().err


def test_a_new_method_is_what_its_row_says(power_sam: str) -> None:
    """Its metric gets the setting that the row names, and with power 0 it is SAM."""
    run = trainer(small(power_sam, alpha=0.25))
    assert isinstance(run.optimizer, SAM)
    metric = run.optimizer.metric
    assert isinstance(metric, Metric)
    assert vars(metric) == {"power": 0.25, "floor": 1e-3}
    plain = steps(small("sam", rho=0.1))
    same, other = (steps(small(power_sam, rho=0.1, alpha=alpha)) for alpha in (0.0, 0.5))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(plain, same, strict=True))
    assert not all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(plain, other, strict=True))


def test_a_new_method_goes_on_bit_for_bit(power_sam: str, tmp_path: Path) -> None:
    config = small(power_sam, alpha=0.5, checkpoint_every=4)
    train(config, tmp_path / "whole")
    last = saved_tensors(tmp_path / "whole")
    (tmp_path / "whole" / record.NAME).unlink()
    (tmp_path / "whole" / checkpoint.PREVIOUS).replace(tmp_path / "whole" / checkpoint.NAME)
    assert checkpoint.read(tmp_path / "whole" / checkpoint.NAME)["step"] == 4
    train(config, tmp_path / "whole")
    again = saved_tensors(tmp_path / "whole")
    assert all(torch.equal(again[name], value) for name, value in last.items())


def test_a_new_method_reads_what_its_row_names(power_sam: str) -> None:
    assert configured("digits-mlp", power_sam).replace(alpha=2.0).optimizer.alpha == 2.0
    with pytest.raises(
        ValueError, match=r"alpha=2.0 is not read by optimizer='sam'.*'m-sam' or 'power-sam'\."
    ):
        small("sam", alpha=2.0)
    with pytest.raises(ValueError, match="asam_eta=0.5 is not read by optimizer='power-sam'"):
        small(power_sam, asam_eta=0.5)


def test_every_setting_of_the_optimizer_is_read_by_some_method() -> None:
    settings = set(vars(OptimizerConfig()))
    assert set().union(*(method.reads for method in METHODS.values())) == settings
    assert all(method.settings.keys() <= settings for method in METHODS.values())
    assert all(set(method.kin) <= METHODS.keys() for method in METHODS.values())


def test_no_two_methods_look_the_same() -> None:
    looks = [(method.look.light, method.look.dashes, method.look.marker) for method in METHODS.values()]
    assert len(set(looks)) == len(METHODS)
    assert len({method.look.label for method in METHODS.values()}) == len(METHODS)


def test_table_presets_and_palette_need_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from llqr_sam_ref.train.presets import configured\n"
        "from llqr_sam_ref.figures import METHODS\n"
        "assert configured('digits-mlp', 'llqr-sam').optimizer.nesterov\n"
        "assert METHODS['llqr_sam'].label == 'LLQR+SAM'\n"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_small_runs_have_what_their_method_reads() -> None:
    """The tests' own shortcut: it drops no setting that counts."""
    for name, method in METHODS.items():
        config = small(name)
        assert config.optimizer.optimizer == name
        expected = SMALL["probe_size"] if method.probes else 128
        assert config.optimizer.probe_size == expected
