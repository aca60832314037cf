"""Measure ratios of times: everything in one process, interleaved, lower quartiles, on two clocks.

Whatever else a machine does makes a piece of work slower and never faster, so the fast repeats say most about the work
itself. The minimum would rest on one repeat; the lower quartile rests on several.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from llqr_sam_ref.tables import Table

CLOCKS = ("cpu", "wall")
Work = Callable[[], object]
Seconds = Mapping[str, float]


@dataclass
class Stopwatch:
    """Seconds of named pieces of work, as often as each was run.

    On a CPU the clock that counts is the process's own time: whoever else keeps the cores busy does not enter it.
    On an accelerator it is the wall's, read when the device has finished.
    """

    device: str = "cpu"
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def clock(self) -> str:
        """The clock that counts."""
        return "cpu" if self.device == "cpu" else "wall"

    def now(self) -> tuple[float, float]:
        """Process CPU time and wall time, all work that was handed to the device done."""
        if self.device != "cpu":
            torch.accelerator.synchronize()
        return time.process_time(), time.perf_counter()

    def add(self, name: str, *seconds: float) -> None:
        """Book one run: its seconds of process CPU time and of wall time."""
        kept = self.seconds.setdefault(name, {clock: [] for clock in CLOCKS})
        for clock, value in zip(CLOCKS, seconds, strict=True):
            kept[clock].append(value)

    def run(self, works: Mapping[str, Work], rounds: int) -> None:
        """One piece after the other, and all over again: a machine that slows down slows all of them."""
        for _ in range(rounds):
            for name, work in works.items():
                before = self.now()
                work()
                self.add(name, *(b - a for a, b in zip(before, self.now(), strict=True)))

    def undisturbed(self, clock: str) -> dict[str, float]:
        """The lower quartile of the seconds of every piece of work."""
        return {name: float(np.quantile(kept[clock], 0.25)) for name, kept in self.seconds.items()}


@dataclass
class Share:
    """The part of a piece of work that is spent inside some function."""

    watch: Stopwatch
    seconds: tuple[float, float] = (0.0, 0.0)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count what happens in the block."""
        before = self.watch.now()
        yield
        after = self.watch.now()
        self.seconds = (self.seconds[0] + after[0] - before[0], self.seconds[1] + after[1] - before[1])

    def around(self, _: str) -> AbstractContextManager[None]:
        """The same as an observer of products: see ``llqr_sam_ref.optim.curvature.observed``."""
        return self.inside()


@dataclass(frozen=True)
class Claim:
    """One line of a table of speeds.

    Args:
        what: in words.
        value: the number, of the seconds by name.
        at_most: what it must not exceed.
        at_least: what it must reach.
        limit: what arithmetic allows.
    """

    what: str
    value: Callable[[Seconds], float]
    at_most: float | None = None
    at_least: float | None = None
    limit: str = ""

    def row(self, watch: Stopwatch) -> dict[str, Any]:
        """The line, measured."""
        values = {clock: self.value(watch.undisturbed(clock)) for clock in CLOCKS}
        return row(self.what, values[watch.clock], values["wall"], self.at_most, self.at_least, self.limit)


def row(
    what: str,
    measured: float,
    wall: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    limit: str = "",
) -> dict[str, Any]:
    """One line of the table; ``ok`` is None where nothing is demanded."""
    demands = [f"<= {at_most:.2f}"] if at_most is not None else []
    demands += [f">= {at_least:g}"] if at_least is not None else []
    met = (at_most is None or measured <= at_most) and (at_least is None or measured >= at_least)
    return {
        "what": what,
        "measured": measured,
        "wall": wall,
        "must_reach": " ".join(demands),
        "limit": limit,
        "ok": met if demands else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text."""
    head = ("what", "measured", "wall", "must reach", "limit", "ok")
    lines = [
        (
            line["what"],
            _number(line["measured"]),
            _number(line["wall"]),
            line["must_reach"],
            line["limit"],
            {True: "yes", False: "NO", None: ""}[line["ok"]],
        )
        for line in rows
    ]
    return repr(Table(head, lines))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value >= 100 or 0 < value < 0.1 else f"{value:.2f}"
