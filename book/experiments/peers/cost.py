"""Seconds of a step: all methods of a task in one process, a block of steps of each in turn, several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from book.experiments.peers.methods import PUBLISHED_EVERY, Method
from book.experiments.peers.run import Setting, Training
from book.experiments.peers.tasks import Problem
from book.experiments.timing import Stopwatch

LONG = 1000  # runs: the learning rate hardly begins to rise while time is taken


def seconds_per_step(
    problem: Problem,
    rows: Mapping[str, tuple[Method, Setting]],
    steps: int,
    rounds: int,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Time a task's methods.

    Args:
        problem: the task.
        rows: methods and settings.
        steps: of a run; a block has as many, and no more than it takes for whatever a method does now and then.
        rounds: repeats; the first, in which memory is made, does not count.
        device: where.

    Returns:
        For each method the seconds per step of each repeat that counts: the process's own on a CPU, the wall's on an
        accelerator.
    """
    block = min(steps, PUBLISHED_EVERY)
    watch = Stopwatch("cpu" if device == "cpu" else "accelerator")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def work(training: Training) -> Callable[[], None]:
        def some_steps() -> None:
            for _ in range(block):
                training.step()

        return some_steps

    works = {
        name: work(Training(problem, method, setting, 0, LONG * steps, device))
        for name, (method, setting) in rows.items()
    }
    try:
        watch.run(works, rounds)
    finally:
        torch.set_num_threads(threads)
    return {name: [s / block for s in seconds[watch.clock][1:]] for name, seconds in watch.seconds.items()}
