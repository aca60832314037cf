"""All experiments with one command: every record can be made again, and by what."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

from book.experiments.__main__ import SUPERSEDED, Options, command, main, records
from book.experiments.store import RESULTS

SOME = Options(data_path=Path("fashion"), out=Path("here"))


def test_every_record_names_a_program_that_is_there() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} == {*records(), *SUPERSEDED}
    for name, origin in records().items():
        words = command(name, origin, SOME)
        assert words[1] == "-m"
        assert importlib.util.find_spec(words[2]) is not None
        assert not {"DATA", "RUNS", "CAPTIONS", "python"} & set(words)
        assert origin["commit"]
        assert origin.get("versions") or origin.get("packages")
        assert float(str(origin["wall_seconds"])) > 0


def test_it_asks_for_data_before_it_begins() -> None:
    with pytest.raises(SystemExit, match="alignment needs Fashion-MNIST's four files; pass --data-path"):
        command("alignment", records()["alignment"], Options())


def test_it_shows_and_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(subprocess, "run", lambda arguments, check: ran.append(arguments))
    main(Options())
    assert "book.experiments.stress" in capsys.readouterr().out
    assert not ran
    main(Options(run=("stress", "sequences"), out=Path("here")))
    assert [words[2] for words in ran] == ["book.experiments.stress", "book.experiments.sequences"]
    assert str(Path("here") / "sequences") in ran[1]
    with pytest.raises(SystemExit, match="there is no record 'nothing'"):
        main(Options(run=("nothing",)))
    ran.clear()
    main(Options(run=("all",), data_path=Path("fashion")))
    assert len(ran) == len(records())
