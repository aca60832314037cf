"""Choose a setting: walk by factors of two until the best has worse neighbors on all sides, within a budget.

A point is a tuple of levels, one per axis. Its score is the worst of its tuning seeds. Seeds are tried one after the
other, and a point is given up as soon as one of them is no better than the best point's worst: it cannot win any
more, so the choice is the one that trying all seeds of all points would make.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Point = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """What is searched in one direction.

    Args:
        start: the value at level 0; every level above doubles it.
        low: the lowest level; None for no end.
        below: values stay below this one.
        off: whether level 0 is the value 0, so that ``start`` is that of level 1.
    """

    start: float
    low: int | None = None
    below: float = math.inf
    off: bool = False

    def value(self, level: int) -> float:
        """The value at a level."""
        if self.off:
            return 0.0 if level == 0 else self.start * 2.0 ** (level - 1)
        return self.start * 2.0**level

    def allows(self, level: int) -> bool:
        """Whether there is such a level; an end of an axis is no neighbor that is missing."""
        return (self.low is None or level >= self.low) and self.value(level) < self.below


@dataclass(frozen=True)
class Score:
    """What is known of a point.

    Attributes:
        worst: the largest loss of the seeds that were tried; infinite where one diverged.
        complete: whether all seeds were tried; if not, the largest loss is at least this.
        diverged: how many of the seeds that were tried diverged.
    """

    worst: float
    complete: bool
    diverged: int


@dataclass
class Search:
    """The search of one method on one task.

    Args:
        axes: what is searched.
        loss: the loss of a point with a tuning seed; infinite if it diverged.
        seeds: the tuning seeds.
        least: points to try at least.
        most: points to try at most.
    """

    axes: Sequence[Axis]
    loss: Callable[[Point, int], float]
    seeds: Sequence[int]
    least: int
    most: int
    scores: dict[Point, Score] = field(default_factory=dict)
    best: Point = ()

    def run(self) -> Search:
        """Search; ``best``, ``inner`` and ``scores`` are the outcome."""
        self.best = (0,) * len(self.axes)
        self._try(self.best)
        while len(self.scores) < self.most:
            point = next(self._missing(), None)
            if point is None and len(self.scores) < self.least:
                point = next(self._around())
            if point is None:
                break
            self._try(point)
        return self

    @property
    def inner(self) -> bool:
        """Whether the best point has a finite score, and worse neighbors wherever an axis goes on."""
        return next(self._missing(), None) is None and math.isfinite(self.scores[self.best].worst)

    def _try(self, point: Point) -> None:
        bound = self.scores[self.best].worst if self.scores else math.inf
        worst, diverged, tried = -math.inf, 0, 0
        for seed in self.seeds:
            loss = self.loss(point, seed)
            worst, tried, diverged = max(worst, loss), tried + 1, diverged + (loss == math.inf)
            if worst >= bound or loss == math.inf:
                break
        self.scores[point] = Score(worst, tried == len(self.seeds), diverged)
        if worst < bound:
            self.best = point

    def _missing(self) -> Iterator[Point]:
        """Neighbors of the best point that were not tried; where it diverged, only a smaller learning rate."""
        if self.scores[self.best].worst == math.inf:
            lowest = min(self.scores)
            yield (lowest[0] - 1, *self.best[1:])
            return
        for axis in range(len(self.axes)):
            for move in (1, -1):
                yield from self._new(self.best, (0,) * axis + (move,))

    def _around(self) -> Iterator[Point]:
        """Points that were not tried, the nearest to the best ones first."""
        for reach in itertools.count(1):
            moves = itertools.product(range(-reach, reach + 1), repeat=len(self.axes))
            for move in sorted(moves, key=lambda m: (sum(map(abs, m)), m)):
                yield from self._new(self.best, move)

    def _new(self, point: Point, move: Sequence[int]) -> Iterator[Point]:
        levels = tuple(a + b for a, b in itertools.zip_longest(point, move, fillvalue=0))
        if levels not in self.scores and all(
            axis.allows(level) for axis, level in zip(self.axes, levels, strict=True)
        ):
            yield levels
