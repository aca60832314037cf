"""The instrument that compares optimizers, part after part (hence the length): the same for all, kept, found again."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch import Tensor, nn

from book.experiments.peers import __main__ as command
from book.experiments.peers import data, run, sources, study, summary
from book.experiments.peers.data import Data
from book.experiments.peers.ledger import Ledger
from book.experiments.peers.methods import METHODS
from book.experiments.peers.run import PRODUCT, Setting, Training, blocks, rate
from book.experiments.peers.study import FRESH, Options
from book.experiments.peers.tasks import TASKS, Problem, problem
from tests.train import files

SHIPPED = [name for name, task in TASKS.items() if not task.external]
TINY: dict[str, Any] = {
    **{"tasks": ("mlp", "autoencoder"), "methods": ("sgd", "adamw", "llqr-sam"), "reference": "sgd"},
    **{"steps": 3, "tune_seeds": 2, "report_seeds": 2, "trials": 4, "most_trials": 6, "rounds": 2},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(method: str) -> Setting:
    return Setting(METHODS[method].lr, 0.0, METHODS[method].start)


def weights(training: Training) -> list[Tensor]:
    return [p.detach().clone() for p in training.model.parameters()]


# Tasks and methods.


def test_there_are_tasks_of_at_least_four_kinds_that_need_no_files() -> None:
    assert len(SHIPPED) >= 6
    assert len({TASKS[name].kind for name in SHIPPED}) >= 4


@pytest.mark.parametrize("task", SHIPPED)
def test_every_method_trains_on_every_task(task: str) -> None:
    place = replace(problem(task), batch=8)
    for name, method in METHODS.items():
        training = Training(place, method, replace(start(name), decay=0.125), seed=0, steps=3)
        before = weights(training)
        losses = [training.step() for _ in range(3)]
        assert all(map(math.isfinite, losses)), name
        assert not training.broken(), name
        moved = [not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True)]
        # The output of a new ViT is zero, so nothing below it has a gradient at first; a key's bias never has one.
        assert sum(moved) > len(moved) / 2, name


@pytest.mark.parametrize("task", SHIPPED)
def test_held_out_examples_are_fixed_and_batches_are_the_seeds(task: str) -> None:
    def flat(batch: data.Batch) -> Tensor:
        inputs = batch[0] if isinstance(batch[0], tuple) else (batch[0],)
        return torch.cat([part.flatten().double() for part in (*inputs, batch[1])])

    place = problem(task)
    first, again, other = (
        flat(place.data.draw(torch.Generator().manual_seed(seed), 16)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    validation, test = flat(place.data.validation), flat(place.data.test)
    assert validation.shape != test.shape or not torch.equal(validation, test)
    anew = TASKS[task].make(None)
    assert torch.equal(flat(anew.data.validation), validation)


def test_no_window_of_the_text_is_in_two_sets() -> None:
    place = problem("decoder")
    validation, test = (
        {tuple(row) for row in part[0].tolist()} for part in (place.data.validation, place.data.test)
    )
    assert len(validation) > 500
    assert not validation & test
    drawn, _ = place.data.draw(torch.Generator().manual_seed(0), 2000)
    assert not {tuple(row) for row in drawn.tolist()} & (validation | test)
    assert torch.equal(drawn[:, 1:], place.data.draw(torch.Generator().manual_seed(0), 2000)[1][:, :-1])


def test_the_made_up_language_can_be_learned_without_error() -> None:
    """A translator who knows the dictionary makes none; the target so far is the target one word later."""
    (source, so_far), target = data.translation().validation
    partner = torch.randperm(data.WORDS, generator=torch.Generator().manual_seed(2))
    assert torch.equal(so_far[:, 1:], target[:, :-1])
    for sentence, answer in zip(source.tolist(), target.tolist(), strict=True):
        words = [word - data.FIRST_WORD for word in sentence if word != data.PADDING]
        said = [
            int(partner[(w + i % 2) % data.WORDS]) + data.FIRST_WORD for i, w in enumerate(reversed(words))
        ]
        padding = [data.PADDING] * (len(answer) - len(said) - 1)
        assert answer == [*said, data.END, *padding]
        assert data.LONGEST // 2 <= len(words) <= data.LONGEST


def test_fashion_mnist_is_held_out_from_its_training_images(tmp_path: Path) -> None:
    files.fashion(tmp_path, 60, 20)
    place = problem("fashion", str(tmp_path))
    assert [len(part[1]) for part in (place.data.validation, place.data.test)] == [10, 20]
    images, labels = place.data.draw(torch.Generator().manual_seed(0), 500)
    assert images.shape == (500, 1, 28, 28)
    assert len({tuple(i.flatten().tolist()) for i in images}) <= 50
    held_out = {tuple(i.flatten().tolist()) for i in place.data.validation[0]}
    assert not held_out & {tuple(i.flatten().tolist()) for i in images}
    with pytest.raises(ValueError, match="data_path"):
        problem("fashion")


def nothing() -> Problem:
    """A problem without a gradient: its outputs do not depend on the weights."""

    class Flat(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * super().forward(x)

    def draw(generator: torch.Generator, size: int) -> data.Batch:
        return torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator)

    held_out = draw(torch.Generator().manual_seed(0), 8)
    return Problem(lambda: Flat(4, 3), nn.CrossEntropyLoss(), Data(draw, held_out, held_out), batch=8)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_decay_shrinks_the_weights_of_every_method_alike(method: str) -> None:
    training = Training(nothing(), METHODS[method], replace(start(method), decay=0.5), seed=0, steps=400)
    before, _ = weights(training)
    for _ in range(400):
        training.step()
    after, _ = weights(training)
    assert torch.allclose(after / before, torch.tensor(math.exp(-0.5)), rtol=0.01)


# A run.


def test_the_learning_rate_rises_shortly_and_comes_straight_down() -> None:
    rates = [rate(step, 400) for step in range(400)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == pytest.approx([(400 - i) / 390 for i in range(10, 400)])
    assert min(rates) > 0
    training = Training(problem("mlp"), METHODS["adamw"], Setting(0.5, 0.0, 0.01), 0, steps=40)
    seen = []
    for _ in range(40):
        seen.append(training.optimizer.param_groups[0]["lr"])
        training.step()
    assert seen == pytest.approx([0.5 * rate(step, 40) for step in range(40)])


def test_a_seed_means_the_same_weights_and_batches_for_every_method() -> None:
    place = problem("mlp")
    trainings = [Training(place, row, start(name), 7, 3) for name, row in METHODS.items()]
    for training in trainings[1:]:
        assert all(map(torch.equal, weights(training), weights(trainings[0])))
    losses = {training.step() for training in trainings}
    assert len(losses) == 1
    batches = [place.data.draw(training.batches, 4) for training in trainings]
    assert all(torch.equal(batch[0], batches[0][0]) for batch in batches)


def test_a_run_is_repeated_exactly_and_another_seed_differs() -> None:
    place, row, setting = problem("mlp"), METHODS["llqr-sam"], start("llqr-sam")
    torch.manual_seed(1)
    first = run.run(place, row, setting, 0, 12)
    torch.manual_seed(2)
    again, other = (run.run(place, row, setting, seed, 12) for seed in (0, 1))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert first["curve"] != other["curve"]
    assert "test" not in first


def test_gradient_evaluations_are_counted() -> None:
    def evaluations(method: str, steps: int) -> float:
        return float(run.run(problem("mlp"), METHODS[method], start(method), 0, steps)["evaluations"])

    assert evaluations("sgd", 11) == 11
    assert evaluations("sam", 11) == 22
    assert evaluations("llqr", 11) == 11
    assert evaluations("llqr-sampled", 11) == 11 + 2  # refits before steps 0 and 10
    assert evaluations("llqr-sam", 11) == 22
    assert evaluations("llqr-published", 11) == pytest.approx(11 + 1 + 50 * PRODUCT)


def test_the_perturbation_and_u_are_watched() -> None:
    def watched(method: str) -> list[dict[str, float]]:
        rows = run.run(problem("mlp"), METHODS[method], start(method), 0, 16)["watched"]
        assert [row.pop("step") for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16]
        return list(rows)

    assert all(row == {} for row in watched("adamw"))
    assert all(row == {"radius": pytest.approx(0.05)} for row in watched("sam"))
    assert all(row == {"distance": 0.0, "cosine": pytest.approx(1.0)} for row in watched("identity"))
    assert all(0.0 < row["distance"] < 0.1 for row in watched("llqr-published"))
    for row in watched("llqr-sam"):
        assert row["radius"] == pytest.approx(0.05)
        assert 0.0 < row["cosine"] < 0.99
        assert row["distance"] > 1.0


def test_the_curve_is_the_mean_of_blocks() -> None:
    assert blocks([float(i) for i in range(160)]) == [2 * i + 0.5 for i in range(80)]
    assert blocks([3.0, 1.0]) == [3.0, 1.0]
    uneven = blocks([1.0] * 399 + [5.0])
    assert len(uneven) == 80
    assert uneven[-1] == pytest.approx((4 * 1.0 + 5.0) / 5)


def test_what_is_held_out_is_measured_whole_and_without_padding() -> None:
    training = Training(problem("translation"), METHODS["sgd"], start("sgd"), 0, 3)
    inputs, targets = training.problem.data.validation
    outputs = training.model(*inputs)
    measured = training.measured((inputs, targets))
    assert measured["loss"] == pytest.approx(
        float(training.problem.loss(outputs, targets).detach()), rel=1e-5
    )
    there = targets != data.PADDING
    assert measured["error"] == pytest.approx(
        float((outputs.argmax(1) != targets)[there].float().mean()), rel=1e-5
    )
    assert training.model.training


def test_a_run_that_diverges_says_so_and_stops() -> None:
    result = run.run(problem("autoencoder"), METHODS["sgd"], Setting(1e8, 0.0, 0.1), 0, 40, test=True)
    assert result["diverged"]
    assert result["evaluations"] < 40
    assert result["final"] == result["validation"]["loss"] == result["test"]["loss"] == math.inf


def test_an_error_that_is_not_divergence_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Training) -> float:
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(Training, "step", broken)
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        run.run(problem("mlp"), METHODS["sgd"], start("sgd"), 0, 3)


# What is kept.


def test_an_entry_is_computed_once_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    ledger, calls = Ledger(tmp_path, lambda: {"commit": "abc"}), []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"loss": math.inf}

    key = {"task": "mlp", "method": "sgd", "seed": 0}
    first = ledger.entry(key, compute)
    assert first == ledger.entry(key, compute)
    assert first["provenance"] == {"commit": "abc"}
    ledger.entry({**key, "seed": 1}, compute)
    assert len(calls) == 2
    path = ledger.path(key)
    assert path.parent == tmp_path / "mlp" / "sgd"
    for text in ("", "{}", path.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 5')):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="delete it"):
            ledger.entry(key, compute)


def test_runs_of_other_code_do_not_count_and_words_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.py", "train/muon.py", "train/optimizers.py", "train/methods.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    for folder in ("nets", "optim"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.py").write_text(
            'def f():\n    """Words."""\n    return 1\n', encoding="utf-8"
        )
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)

    def numbers() -> list[str]:
        return [sources.fingerprint.__wrapped__("mlp", name) for name in ("sgd", "muon", "llqr")]

    before = numbers()
    assert len(set(before)) == 3
    (tmp_path / "optim" / "part.py").write_text("def f():\n    # Others.\n    return (1)\n", encoding="utf-8")
    assert numbers() == before
    (tmp_path / "optim" / "part.py").write_text("def f():\n    return 2\n", encoding="utf-8")
    after = numbers()
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False]
    (tmp_path / "nets" / "part.py").write_text("def f():\n    return 3\n", encoding="utf-8")
    assert not set(numbers()) & set(after)


# A study.


def without_seconds(result: study.Study) -> tuple[Any, Any]:
    """What does not depend on the clock."""
    found = {pair: replace(one, seconds=0.0) for pair, one in result.found.items()}
    reports = {pair: [{**each, "seconds": 0.0} for each in runs] for pair, runs in result.reports.items()}
    return found, reports


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Options, study.Study]:
    """A tiny study that nobody interrupted."""
    options = Options(out=tmp_path_factory.mktemp("whole"), **TINY)
    return options, study.study(options, lambda line: None)


def test_every_method_tries_as_many_settings_as_the_others(whole: tuple[Options, study.Study]) -> None:
    options, result = whole
    assert set(result.found) == set(result.reports) == set(result.seconds) == set(options.pairs)
    for task in options.tasks:
        trials = {result.found[task, method].trials for method in options.methods}
        assert len(trials) == 1
        assert options.trials <= trials.pop() <= options.most_trials
    for runs in result.reports.values():
        assert len(runs) == options.report_seeds
        assert all("test" in each for each in runs)
    for path in (options.out / "runs").rglob("*.json"):
        entry = json.loads(path.read_text(encoding="utf-8"))
        assert ("test" in entry["result"]) == (entry["key"]["seed"] >= FRESH)
        assert {"commit", "versions", "device", "threads"} <= entry["provenance"].keys()
        assert entry["provenance"]["versions"]["pytorch_optimizer"]


def test_the_setting_is_chosen_by_what_was_asked_for(whole: tuple[Options, study.Study]) -> None:
    options, result = whole
    pair = ("mlp", "adamw")
    found = result.found[pair]
    seeds = range(options.tune_seeds)
    runs = [study.trained(options, *pair, found.setting, seed) for seed in seeds]
    assert found.score == max(each["validation"]["loss"] for each in runs)
    by_training = study.searched(replace(options, judged="training"), options.trials, pair)
    runs = [study.trained(options, *pair, by_training.setting, seed) for seed in seeds]
    assert by_training.score == max(each["final"] for each in runs)


def test_a_study_that_is_killed_goes_on_in_several_processes_to_the_same_end(
    whole: tuple[Options, study.Study], tmp_path: Path
) -> None:
    _, expected = whole
    options = Options(out=tmp_path / "out", **TINY)
    flags = [sys.executable, "-W", "error", "-m", *summary.command(options).split()[2:]]
    flags[flags.index("RUNS")] = str(options.out)
    process = subprocess.Popen(flags, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (
        len(list(options.out.rglob("*.json"))) < 5 and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in (options.out / "runs").rglob("[!.]*.json")}
    assert 5 <= len(kept) < len(list((whole[0].out / "runs").rglob("*.json")))
    rest = study.study(replace(options, jobs=2), lambda line: None)
    assert without_seconds(rest) == without_seconds(expected)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_a_finished_study_trains_nothing_again(
    whole: tuple[Options, study.Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, expected = whole
    monkeypatch.setattr(Training, "step", lambda self: pytest.fail("it trained again"))
    assert study.study(options, lambda line: None) == expected


def test_the_tables_the_file_and_the_figures(
    whole: tuple[Options, study.Study],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:

    def keep(options: Options, result: study.Study, results: dict[str, Any], seconds: float) -> Path:
        return summary.keep(options, result, results, seconds, tmp_path)

    monkeypatch.setattr(command, "keep", keep)
    command.main(replace(whole[0], store=True, figures=tmp_path / "figures"))
    printed = capsys.readouterr().out
    assert all(TASKS[task].about in printed for task in TINY["tasks"])
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "peers-autoencoder.svg",
        "peers-mlp.svg",
    ]
    content = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(content)
    assert str(whole[0].out) not in json.dumps(content)
    assert "NaN" not in json.dumps(content)
    assert "Infinity" not in json.dumps(content)
    provenance = content["provenance"]
    assert provenance["command"].startswith(
        "python -m book.experiments.peers --out RUNS --tasks mlp autoencoder"
    )
    assert provenance["fresh_seeds"] == [FRESH, FRESH + 1]
    assert provenance["training_seconds"] > 0
    for task in content["results"]["tasks"].values():
        ranks = sorted(row["rank"] for row in task["methods"].values())
        assert ranks == [1, 2, 3]
        assert task["target"] == task["methods"]["adamw"]["training_loss"]
        assert "against_reference" not in task["methods"]["sgd"]
        assert task["methods"]["adamw"]["against_reference"]["training"]["ratio"] > 0
        assert task["methods"]["sgd"]["evaluations_per_step"] == 1.0
        assert all(row["seconds_per_step"] > 0 for row in task["methods"].values())


def invented(final: float, curve: list[float]) -> dict[str, Any]:
    return {
        **{
            "diverged": "",
            "final": final,
            "curve": curve,
            "evaluations": 2.0 * 8,
            "watched": [],
            "seconds": 1.0,
        },
        "test": {"loss": 2 * final, "error": 0.25},
    }


def test_costs_to_the_target_follow_from_curve_and_price() -> None:
    runs = [invented(0.1, [1.0, 0.5, 0.2, 0.1]), invented(0.3, [1.0, 0.9, 0.3, 0.3])]
    outcome = summary.outcome(runs, target=0.3, steps=8, seconds=0.5)
    assert outcome["training_loss"] == pytest.approx(0.2)
    assert outcome["test_loss"] == pytest.approx(0.4)
    assert outcome["training_spread"] == pytest.approx(math.sqrt(0.02))
    assert outcome["to_target"] == {"steps": 6.0, "evaluations": 12.0, "seconds": 3.0}
    assert outcome["curve"] == pytest.approx([1.0, 0.7, 0.25, 0.2])
    lost = {**invented(0.1, []), "diverged": "loss nan"}
    worse = summary.outcome([*runs, lost], target=0.05, steps=8, seconds=0.5)
    assert worse["report_diverged"] == 1
    assert worse["training_loss"] == worse["to_target"]["steps"] == math.inf
    assert summary.outcome([lost], 0.1, 8, 0.5)["curve"] == []


def test_the_command_line_says_what_is_asked_for() -> None:
    flags = [
        "--tasks",
        "vit",
        "decoder",
        "--methods",
        "muon",
        "llqr",
        "--steps",
        "50",
        "--judged",
        "training",
    ]
    options = tyro.cli(
        Options, args=[*flags, "--tune-seeds", "2", "--report-seeds", "3", "--jobs", "2", "--store"]
    )
    said: dict[str, Any] = {"tasks": ("vit", "decoder"), "methods": ("muon", "llqr"), "judged": "training"}
    assert options == Options(steps=50, tune_seeds=2, report_seeds=3, jobs=2, store=True, **said)
    again = summary.command(options).removeprefix("python -m book.experiments.peers ").split()
    assert replace(tyro.cli(Options, args=again), out=options.out, jobs=2) == options


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ("decode",)}, r"tasks='decode' is unknown; did you mean 'decoder'"),
        ({"methods": ("adam",)}, r"methods='adam' is unknown; did you mean 'adamw'"),
        ({"tasks": ("fashion",)}, r"fashion needs data_path"),
        ({"judged": "test"}, r"judged='test' is unknown"),
        ({"reference": "sgd", "methods": ("llqr",)}, r"reference='sgd' is unknown"),
        ({"most_trials": 3}, r"most_trials=3 is not allowed; pass an integer of at least 12"),
        ({"tune_seeds": 0}, r"tune_seeds=0 is not allowed"),
        ({"rounds": 1}, r"rounds=1 is not allowed"),
        ({"steps": 0}, r"steps=0 is not allowed"),
    ],
)
def test_bad_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**wrong)
