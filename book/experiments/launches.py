"""What a step says to a card: kernels launched, moments at which the host waits, and seconds, of ``step`` alone.

    python -m book.experiments.launches                counts on a CPU, where a launch is a call of an operator
    python -m book.experiments.launches --device cuda --store        on a card, by torch's profiler

The gradients stand still; the steps of a cycle are profiled one after the other, so that what happens now and then is
counted as often as it happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from book.experiments.bench import Options as Machine
from book.experiments.bench import environment
from book.experiments.peers.methods import METHODS, Place
from book.experiments.store import store
from book.experiments.timing import Stopwatch
from llqr_sam_ref import SAM, nets
from llqr_sam_ref.tables import Table

NAMES = ("sgd", "adamw", "muon", "sam", "llqr-diagonal", "llqr", "llqr-sam")
CYCLE = 20  # steps; whatever a method does now and then, it does within as many
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Options:
    """Command line.

    Args:
        device: cpu, cuda and the like.
        rounds: repeats of the timing.
        store: write book/results/launches.json.
        quick: small networks: does it run?
    """

    device: str = "cpu"
    rounds: int = 5
    store: bool = False
    quick: bool = False


def networks(options: Options) -> Mapping[str, tuple[Callable[[], nn.Module], torch.Tensor]]:
    """What is trained: how it is made, and a batch of inputs."""
    tokens = torch.randint(96, (2 if options.quick else 16, 64))
    if options.quick:
        return {"Decoder": (partial(nets.Decoder, 96, 16, 1, 2, 64), tokens)}
    return {
        "ResNet-18": (nets.resnet18, torch.randn(128, 3, 32, 32)),
        "Decoder": (partial(nets.Decoder, 96, 256, 6, 8, 64), tokens),
    }


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a card would have to be told: operators that compute, and numbers that are read into Python."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches, self.waits = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.waits += name == "_local_scalar_dense"
        self.launches += name != "_local_scalar_dense" and not func.is_view
        return func(*args, **(kwargs or {}))


def counted(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Launches and waits of a piece of work, per step of a cycle."""
    if device == "cpu":
        with Operators() as operators:
            for _ in range(CYCLE):
                work()
        return operators.launches / CYCLE, operators.waits / CYCLE
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(CYCLE):
            work()
    events = {event.key: event.count for event in seen.key_averages()}
    launches, waits = (sum(events.get(name, 0) for name in names) for names in (LAUNCHES, WAITS))
    return launches / CYCLE, (waits - 1) / CYCLE  # the profiler itself waits once, at its end


def measured(options: Options, make: Callable[[], nn.Module], inputs: torch.Tensor) -> dict[str, Any]:
    """Every method on a network."""
    watch = Stopwatch("cpu" if options.device == "cpu" else "accelerator")
    works: dict[str, Callable[[], None]] = {}
    for name in NAMES:
        torch.manual_seed(0)
        model = make().to(options.device)
        row = METHODS[name]
        place = Place(model, nn.CrossEntropyLoss(), lambda: None, 1e-5, 0.0)  # type: ignore[arg-type,return-value]
        opt = row.build(place, row.start)
        x = inputs.to(options.device)
        logits = model(x)
        cross_entropy(logits, torch.zeros_like(logits.select(1, 0), dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
        works[name] = partial(_step, opt)
        for _ in range(2):  # memory is made, kernels are loaded
            works[name]()
    counts = {name: counted(work, options.device) for name, work in works.items()}
    watch.run({name: partial(_cycle, work) for name, work in works.items()}, options.rounds)
    tensors = sum(1 for _ in make().parameters())
    return {
        "tensors": tensors,
        "methods": {
            name: {
                "launches": counts[name][0],
                "waits": counts[name][1],
                "milliseconds": 1000 * watch.undisturbed(watch.clock)[name] / CYCLE,
            }
            for name in NAMES
        },
    }


def _step(opt: torch.optim.Optimizer) -> None:
    if isinstance(opt, SAM):
        with opt.perturbed():
            pass  # the second gradient is not the optimizer's
    opt.step()


def _cycle(step: Callable[[], None]) -> None:
    for _ in range(CYCLE):
        step()


def main(options: Options) -> None:
    """Count, measure, print, and store if asked for."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    results = {name: measured(options, *row) for name, row in networks(options).items()}
    for name, found in results.items():
        rows = [
            (method, *(f"{row[column]:.2f}" for column in ("launches", "waits", "milliseconds")))
            for method, row in found["methods"].items()
        ]
        print(f"{name}: {found['tensors']} tensors\n{Table(('step of', 'launches', 'waits', 'ms'), rows)!r}")
    if options.store:
        command = f"python -m book.experiments.launches --device {options.device} --store"
        protocol = {"command": command, "environment": environment(Machine(device=options.device))}
        print(store("launches", protocol, results, time.perf_counter() - start))


if __name__ == "__main__":
    main(tyro.cli(Options))
