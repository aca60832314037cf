"""A refit leaves no trace: one hostile model, and everything that it does while it is evaluated."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, LLQRConfig
from llqr_sam_ref.optim.curvature import Linearization


class Merging(nn.Module):
    """An adapter that merges into a frozen weight in evaluation mode, through .data, and unmerges not quite exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6), requires_grad=False)
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down).data
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight if self.merged else self.weight + self.up @ self.down)


class Switching(nn.Module):
    """Keeps its mode in an attribute that only train() sets, and is random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.5

    def train(self, mode: bool = True) -> Switching:
        self.rate = 0.5 if mode else 0.0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.rate) if self.rate else x


class Hostile(nn.Module):
    """Writes, rebinds and remembers whatever it can while it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.merging, self.switching = nn.Linear(6, 6), Merging(), Switching()
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.written: Tensor
        self.register_buffer("written", torch.zeros(2))
        self.rebound: Tensor
        self.register_buffer("rebound", torch.zeros(2))
        self.kept: Tensor | None = torch.ones(3)
        self.plain = torch.zeros(4)
        self.calls, self.seen = 0, {"rows": 0}
        self.history: list[int] = []
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).div_(0.5)
        self.written += 1
        self.rebound = torch.ones(2)
        self.plain += 1
        self.calls += 1
        self.history.append(len(x))
        self.seen["rows"] = len(x)
        h = torch.tanh(self.switching(self.merging(self.first(x))))
        self.kept = h
        self.last.register_forward_hook(lambda module, args, output: None)
        random.random()
        np.random.rand()  # noqa: NPY002
        return self.last(self.norm(h))


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets)


def everything(model: nn.Module) -> dict[Any, Any]:
    """All that can be seen of a model and of the process, bit for bit."""
    attributes: dict[Any, Any] = {
        f"{name}.{key}": copy.deepcopy(value)
        if isinstance(value, (list, dict, set, int, float, str))
        else id(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in {"_parameters", "_buffers", "_modules"}
    }
    for name, module in model.named_modules():
        for key in ("_parameters", "_buffers", "_modules"):
            attributes[f"{name}.{key}"] = {k: id(v) for k, v in getattr(module, key).items()}
    host: Any = np.random.get_state()  # noqa: NPY002
    return {
        "values": {
            name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())
        },
        "plain": {n: m.plain.clone() for n, m in model.named_modules() if isinstance(m, Hostile)},
        "attributes": attributes,
        "gradients": {k: (id(p.grad), p.requires_grad) for k, p in model.named_parameters()},
        "streams": (torch.get_rng_state(), random.getstate(), host[1]),
        "modes": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(torch.equal(a, b)) if isinstance(a, Tensor) else bool(np.all(a == b))


def refit(config: LLQRConfig) -> Callable[[nn.Module, Tensor, Tensor], object]:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> object:
        base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        opt = LLQR(base, model, loss_fn, config, likelihood=None)
        opt.refit(x, y)
        learned = {k: opt.own[p] for k, p in model.named_parameters() if p in opt.own}
        assert any("down" in name for name in learned)
        return opt.quadratic_gain(x, y)

    return run


GRADIENT: dict[str, Any] = {"probe_vector": "gradient"}
RUNS = {
    "closed form": LLQRConfig(probes=4, **GRADIENT),
    "closed form, one probe": LLQRConfig(probes=1, structure="diagonal", **GRADIENT),
    "inner loop": LLQRConfig.published(divergence="gauss-newton", steps=3),
    "inner loop, Hessian": LLQRConfig.published(divergence="newton", structure="kronecker", steps=3),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", RUNS.values(), ids=RUNS)
def test_a_refit_leaves_no_trace_in_a_hostile_model(config: LLQRConfig, training: bool) -> None:
    torch.manual_seed(0)
    model = Hostile()
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    if not training:
        model.eval()
    assert not model.norm.training  # a layer that stays in evaluation mode also where the model trains
    cross_entropy(model(x.clone()), y).backward()
    before, data = everything(model), (x.clone(), y.clone())
    with torch.no_grad():
        refit(config)(model, x, y)
    assert equal(everything(model), before | {"modes": before["modes"]})
    assert torch.equal(x, data[0])
    assert torch.equal(y, data[1])


def test_the_refit_saw_the_adapter_and_the_dropout_off() -> None:
    """What a refit learns on is the model without chance and with its adapters alive."""
    torch.manual_seed(0)
    model = Hostile().double()
    x, y = torch.randn(16, 6).double(), torch.randint(3, (16,))
    opt = LLQR(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        model,
        loss_fn,
        LLQRConfig(structure="diagonal", probes=1, **GRADIENT),
    )
    opt.refit(x, y)
    twin = copy.deepcopy(model)
    twin.switching.rate = 0.0
    twin.norm.eval()
    cross_entropy(twin(x.clone()), y).backward()
    for name in ("merging.down", "merging.up", "first.weight"):
        gradient = twin.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(opt.own[model.get_parameter(name)]["c"], 16 * gradient.square())


class Tempered(nn.Module):
    """Reads settings that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.temperature, self.sharp, self.act = 1.0, False, torch.tanh
        self.options = {"shift": 0.0}
        self.hidden = Options()

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.linear(x)) + self.options["shift"] * self.linear(x)
        return (2 * z if self.sharp else z) / self.temperature * self.hidden.scale


class Options:
    """An object whose inside no key can see."""

    scale = 1.0


CHANGES: dict[str, Callable[[Tempered], object]] = {
    "a number": lambda m: setattr(m, "temperature", 0.1),
    "a flag": lambda m: setattr(m, "sharp", True),
    "a function": lambda m: setattr(m, "act", torch.sin),
    "inside a dict": lambda m: m.options.update(shift=3.0),
    "inside an object": lambda m: setattr(m.hidden, "scale", 5.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("product", ["ggn", "fisher", "hessian"])
def test_products_are_those_of_the_settings_now(change: Callable[[Tempered], object], product: str) -> None:
    torch.manual_seed(1)
    model = Tempered().double()
    x, y = torch.randn(8, 4).double(), torch.randint(3, (8,))
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    here = Linearization(model, nn.CrossEntropyLoss(), x, y)
    stale = getattr(here, product)(v)
    change(model)
    found = getattr(here.relinearize(x, y), product)(v)
    expected = getattr(Linearization(model, nn.CrossEntropyLoss(), x, y), product)(v)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(stale[name], tensor, rtol=1e-3)


class Quantized(nn.Module):
    """A frozen integer weight whose scale is an attribute of the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-8, 8, (6, 6), dtype=torch.int8), requires_grad=False)
        self.weight.scale = 0.05  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.weight.scale)  # type: ignore[attr-defined]


class Tagged(Tensor):
    """A tensor class of somebody else."""


@pytest.mark.parametrize("config", RUNS.values(), ids=RUNS)
def test_frozen_tensors_are_passed_as_they_are(config: LLQRConfig) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 6), Quantized(), nn.Linear(6, 3))
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    opt = LLQR(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), model, loss_fn, config
    )
    opt.refit(x, y)
    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3))
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k != "1.weight"}
        | {"1.weight": model.get_parameter("1.weight").float() * 0.05}
    )
    plain[1].requires_grad_(False)
    other = LLQR(
        torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.1), plain, loss_fn, config
    )
    other.refit(x, y)
    for name in ("0.weight", "2.weight"):
        ours, theirs = (
            opt.own.get(model.get_parameter(name), {}),
            other.own.get(plain.get_parameter(name), {}),
        )
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-6)


def test_a_frozen_tensor_of_another_class_stays_one() -> None:
    torch.manual_seed(3)
    seen: list[type] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.table = torch.randn(4).as_subclass(Tagged)
            self.tag: Tensor
            self.register_buffer("tag", torch.randn(4).as_subclass(Tagged))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(type(self.tag))
            return self.linear(x * self.tag.as_subclass(Tensor))

    model = Model()
    opt = LLQR(torch.optim.SGD(model.parameters(), lr=0.1), model, loss_fn, LLQRConfig(probes=2, **GRADIENT))
    opt.refit(torch.randn(8, 4), torch.randint(3, (8,)))
    assert set(seen) == {Tagged}
