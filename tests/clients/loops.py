"""The loops that a client's run is compared with: SAM written out by hand, and our optimizers in a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from llqr_sam_ref import SAM, frozen_batch_stats

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two linear layers with batch normalization between them: the second pass must not touch its averages."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return net.to(dtype)


def batches(count: int, size: int = 16, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """Batches of points and classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 4, generator=generator, dtype=torch.float64)
    y = (x[:, :3] + 0.3 * x[:, 1:]).argmax(1)
    return list(zip(x.to(dtype).split(size), y.split(size), strict=True))


def loader(parts: Sequence[Batch]) -> DataLoader[Any]:
    """These batches, in this order."""
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=len(parts[0][0]))


def mean_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of a pair of inputs and classes."""
    return cross_entropy(net(batch[0]), batch[1])


def grouped(parts: Sequence[Any], size: int) -> list[list[Any]]:
    """The micro-batches of each step."""
    return [list(parts[i : i + size]) for i in range(0, len(parts), size)]


def state(net: nn.Module) -> dict[str, Tensor]:
    """A copy of weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in b)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def sam_by_hand(
    net: nn.Module,
    steps: Sequence[Sequence[Any]],
    *,
    loss: Loss = mean_loss,
    lr: float | Sequence[float],
    momentum: float | Sequence[float] = 0.9,
    rho: float = 0.05,
    clip: float | None = None,
    divisor: int | None = None,
) -> dict[str, Tensor]:
    """SAM over SGD with momentum, without our package: for each step its micro-batches; returns the final state.

    The losses of a step are averaged, or added and divided by ``divisor``.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in parameters]

    def gradient(step: Sequence[Any]) -> list[Tensor]:
        total = torch.stack([loss(net, batch) for batch in step]).sum() / (divisor or len(step))
        return list(torch.autograd.grad(total, parameters))

    for t, step in enumerate(steps):
        ascent = gradient(step)
        length = torch.cat([g.flatten() for g in ascent]).norm()
        buffers = {name: b.clone() for name, b in net.named_buffers()}
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, ascent, strict=True):
                p.add_(rho * g / length)
        descent = gradient(step)
        if clip is not None:
            total = torch.cat([g.flatten() for g in descent]).norm()
            descent = [g * min(1.0, clip / (float(total) + 1e-6)) for g in descent]
        with torch.no_grad():
            for name, b in net.named_buffers():
                b.copy_(buffers[name])
            rate = lr if isinstance(lr, float) else lr[t]
            inertia = momentum if isinstance(momentum, float) else momentum[t]
            for p, w, v, g in zip(parameters, before, velocity, descent, strict=True):
                v.mul_(inertia).add_(g)
                p.copy_(w - rate * v)
    return state(net)


def plain_loop(
    net: nn.Module,
    opt: Any,
    steps: Sequence[Sequence[Any]],
    *,
    loss: Loss = mean_loss,
    clip: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
    scheduler: Any = None,
    probe: Callable[[Any], tuple[Any, Any]] = lambda batch: batch,
) -> dict[str, Tensor]:
    """Our optimizer as its documentation writes it; a refit takes the last micro-batch, in the form of ``probe``."""

    def gradient(step: Sequence[Any]) -> None:
        opt.zero_grad()
        for batch in step:
            with nullcontext() if autocast is None else torch.autocast("cpu", autocast, cache_enabled=False):
                part = loss(net, batch) / len(step)
            torch.autograd.backward(part if scaler is None else scaler.scale(part))

    for step in steps:
        gradient(step)
        if getattr(opt, "refit_due", False):
            opt.refit(*probe(step[-1]))
        if isinstance(opt, SAM):
            with ExitStack() as second:
                second.enter_context(opt.perturbed(scaler))
                second.enter_context(frozen_batch_stats(net))
                gradient(step)
        if scaler is not None:
            scaler.unscale_(opt)
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        if scaler is None:
            opt.step()
        else:
            scaler.step(opt)
            scaler.update()
        if scheduler is not None:
            scheduler.step()
    return state(net)
