"""The benchmark runs at small size and stores what it printed; its ratios are measured by `make bench` alone."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import tyro

from book.experiments import bench
from book.experiments.timing import CLOCKS, Claim, Stopwatch, row, table


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    path = bench.main(bench.Options(quick=True, folder=folder))
    assert path == folder / "bench.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_the_quick_run_measures_every_line(stored: dict[str, Any]) -> None:
    rows = stored["results"]["rows"]
    assert {key for line in rows for key in line} == {"what", "measured", "wall", "must_reach", "limit", "ok"}
    assert all(math.isfinite(line["measured"]) and line["measured"] > 0 for line in rows)
    assert all((line["ok"] is None) == (line["must_reach"] == "") for line in rows)
    assert len({line["what"] for line in rows}) == len(rows)
    timed = {section.__name__ for section in bench.SECTIONS} - {"memory"}
    for section in timed:
        for seconds in stored["results"]["seconds"][section].values():
            assert set(seconds) == set(CLOCKS)
            assert all(value > 0 for values in seconds.values() for value in values)


def test_the_command_line_says_how_large_and_where() -> None:
    assert tyro.cli(bench.Options, args=["--quick", "--device", "cpu"]) == bench.Options(quick=True)


def test_the_environment_is_stored_with_it(stored: dict[str, Any]) -> None:
    provenance = stored["provenance"]
    assert provenance["command"].endswith("bench --quick")
    environment = provenance["environment"]
    assert environment["threads"] == 1
    assert environment["clock"] == "cpu"
    assert {"device", "device_name", "cores", "load", "pytorch_optimizer"} <= set(environment)


def test_what_is_kept_between_steps_is_counted(stored: dict[str, Any]) -> None:
    rows = {line["what"]: line for line in stored["results"]["rows"]}
    kept = {what.partition(": ")[2]: line for what, line in rows.items() if what.startswith("numbers kept")}
    assert all(line["ok"] is not False for line in kept.values())
    assert kept["SAM"]["measured"] == pytest.approx(1.0, abs=0.005)
    assert kept["LLQR+SAM published"]["measured"] == pytest.approx(2.0, abs=0.005)
    assert kept["U alone, dense"]["measured"] > 100 * kept["U alone, kronecker, both sides full"]["measured"]


def test_a_ratio_is_one_of_lower_quartiles_and_a_missed_limit_shows() -> None:
    watch = Stopwatch()
    for slow, fast in ((4.0, 1.0), (40.0, 2.0), (8.0, 90.0)):  # a disturbed repeat of each does not count
        watch.add("slow", slow, fast)
        watch.add("fast", fast, fast)
    claim = Claim("slow / fast", lambda t: t["slow"] / t["fast"], at_most=3.0)
    assert claim.row(watch) == row("slow / fast", 4.0, 1.0, at_most=3.0)
    assert claim.row(watch)["ok"] is False
    assert row("enough", 21.0, at_least=20.0)["ok"] is True
    assert "NO" in table([claim.row(watch)])
