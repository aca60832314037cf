"""``python -m book.experiments.peers``: run a study, or go on with it, and print its tables."""

from __future__ import annotations

import time
from functools import partial

import tyro

from book.experiments.peers.figures import draw
from book.experiments.peers.study import Options, study
from book.experiments.peers.summary import keep, summarize, text


def main(options: Options) -> None:
    """All stages, the tables, and what else was asked for."""
    start = time.perf_counter()
    result = study(options, partial(print, flush=True))
    results = summarize(options, result)
    print(f"\n{text(results)}")
    if options.figures is not None:
        draw(results, options.figures)
    if options.store:
        print(keep(options, result, results, time.perf_counter() - start))


if __name__ == "__main__":
    main(tyro.cli(Options))
