"""Whatever a batch is made of, a refit learns what it learns from plain tensors: containers in, containers out."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from operator import attrgetter, itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR
from llqr_sam_ref.optim.likelihood import Categorical

CONFIGS: dict[str, LLQRConfig] = {
    "two probes": LLQRConfig.sampled(structure="diagonal", probes=2, curvature_memory=1.0),
    "true labels": LLQRConfig(structure="diagonal", probes=2, probe_vector="gradient"),
    "fisher": LLQRConfig.published(
        steps=3, lr=0.05, ema=0.0, divergence="fisher", probe_vector="sampled", probes=2
    ),
    "gauss-newton": LLQRConfig.published(steps=3, lr=0.05, ema=0.0, divergence="gauss-newton"),
    "newton": LLQRConfig.published(steps=3, lr=0.05, ema=0.0, divergence="newton"),
}
N = 6


class Core(nn.Module):
    """Logits (n, 3) of features (n, 4), a mask (n,) and a matrix (4, 4) that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor, mask: Tensor, shared: Tensor) -> Tensor:
        z: Tensor = self.head((self.first(x @ shared) * mask.unsqueeze(1)).tanh())
        return z


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x, shared = torch.randn(N, 4).double(), torch.randn(4, 4).double()
    return x, torch.rand(N).double(), shared, torch.arange(N) % 3


def learned(module: nn.Module, opt: LLQR, inputs: Any, targets: Any) -> dict[str, Tensor]:
    """What a refit learns, by parameter and array; ``None`` for uniforms leaves them to the seed, the same for all."""
    names: dict[Tensor, str] = {p: n.removeprefix("core.") for n, p in module.named_parameters()}
    opt.refit(inputs, targets)
    return {
        f"{names[p]} {n}": t.clone()
        for p in opt.own
        for n, t in opt.own[p].items()
        if isinstance(t, Tensor) and t.is_floating_point()
    }


def optimizer(module: nn.Module, loss_fn: Callable[..., Tensor], config: str, **options: Any) -> LLQR:
    return LLQR(torch.optim.SGD(module.parameters(), lr=0.1), module, loss_fn, CONFIGS[config], **options)


def plain(config: str) -> dict[str, Tensor]:
    module, (x, mask, shared, y) = Core(), data()
    return learned(module, optimizer(module, nn.CrossEntropyLoss(), config), (x, mask, shared), y)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=1e-11, atol=1e-14), name
    assert max(float((tensor - tensor.round()).abs().max()) for tensor in theirs.values()) > 1e-3  # not I


class Wrapped(nn.Module):
    """The same function of another kind of batch, with outputs of another kind."""

    def __init__(
        self, read: Callable[..., tuple[Tensor, Tensor, Tensor]], give: Callable[[Tensor], Any]
    ) -> None:
        super().__init__()
        self.core, self.read, self.give = Core(), read, give

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.give(self.core(*self.read(*args, **kwargs)))


@dataclasses.dataclass
class Graph:
    x: Tensor
    mask: Tensor
    shared: Tensor
    name: str = "graph"
    edges: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor
    rest: tuple[Tensor, Tensor]


class Encoding(Mapping[str, Any]):
    """A mapping that is no dict and takes no items."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Kept(MutableMapping[str, Any]):
    """A mapping that keeps its items in a dict of its own."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._items[key] = value

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Pair(NamedTuple):
    x: Tensor
    mask: Tensor


def by_name(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    return batch.x, batch.mask, batch.shared


def named(x: Tensor, mask: Tensor, shared: Tensor, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x, mask, shared


BATCHES: dict[str, tuple[Callable[..., Any], Callable[..., tuple[Tensor, Tensor, Tensor]]]] = {
    "dict": (lambda x, m, s: {"shared": s, "x": x, "mask": m}, named),
    "ordered dict": (lambda x, m, s: OrderedDict(shared=s, x=x, mask=m), named),
    "user dict": (lambda x, m, s: UserDict(x=x, mask=m, shared=s, note="text", none=None), named),
    "mapping proxy": (lambda x, m, s: MappingProxyType({"x": x, "mask": m, "shared": s}), named),
    "mapping of one's own": (lambda x, m, s: Encoding(x=x, mask=m, shared=s, ids=torch.arange(5)), named),
    "mapping that keeps a dict": (lambda x, m, s: [Kept(x=x, mask=m, shared=s)], lambda b: tuple(b[0].values())),
    "dataclass": (Graph, by_name),
    "dataclass with a shared index": (lambda x, m, s: Graph(x, m, s, edges=torch.zeros(2, 9)), by_name),
    "frozen dataclass with slots": (lambda x, m, s: Frozen(x, (m, s)), lambda b: (b.x, *b.rest)),
    "list": (lambda x, m, s: [x, m, s], lambda b: tuple(b)),
    "nested": (
        lambda x, m, s: ({"features": [Graph(x, m, s), "text"]}, 3),
        lambda b, _: by_name(b["features"][0]),
    ),
    "mapping in a mapping": (
        lambda x, m, s: {"batch": UserDict(inner=Encoding(x=x, mask=m, shared=s))},
        lambda batch: tuple(batch["inner"].values()),
    ),
    "named tuple among others": (lambda x, m, s: (Pair(x, m), s), lambda pair, s: (pair.x, pair.mask, s)),
    "a number in a tensor": (
        lambda x, m, s: (x, m, s, torch.tensor(2.0)),
        lambda x, m, s, two: (x * two / 2, m, s),
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", BATCHES)
def test_any_batch_is_the_plain_one(name: str, config: str) -> None:
    make, read = BATCHES[name]
    x, mask, shared, y = data()
    module = Wrapped(read, lambda z: z)
    opt = optimizer(module, nn.CrossEntropyLoss(), config)
    assert_same(learned(module, opt, make(x, mask, shared), y), plain(config))


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    loss: Tensor | None = None


class OrderedOutput(OrderedDict[str, Any]):
    """As outputs objects of language models are: keys and attributes at once, arguments that must be given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (Output, attrgetter("logits")),
    "dataclass that keeps more": (lambda z: Output(z, (z.tanh(), z.exp())), attrgetter("logits")),
    "ordered dict with attributes": (OrderedOutput, attrgetter("logits")),
    "dict": (lambda z: {"logits": z, "text": "none"}, itemgetter("logits")),
    "tuple": (lambda z: (z, z.detach().argmax(1)), itemgetter(0)),
    "logits made of the outputs": (lambda z: {"half": z / 2}, lambda out: 2 * out["half"]),
    "parts to be joined": (lambda z: [z[:, :1], z[:, 1:]], lambda out: torch.cat(out, 1)),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", OUTPUTS)
def test_any_outputs_are_the_plain_ones(name: str, config: str) -> None:
    give, logits = OUTPUTS[name]
    x, mask, shared, y = data()
    module = Wrapped(named, give)
    opt = optimizer(
        module,
        lambda out, targets: functional.cross_entropy(logits(out), targets["labels"]),
        config,
        likelihood=Categorical(outputs=logits, labels=itemgetter("labels")),
    )
    inputs = {"x": x, "mask": mask, "shared": shared}
    assert_same(learned(module, opt, inputs, {"labels": y, "task": "classes"}), plain(config))


class WithLoss(nn.Module):
    """Labels come in, the loss comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core()

    def forward(self, labels: Tensor, **inputs: Tensor) -> Output:
        z = self.core(**inputs)
        return Output(z, loss=functional.cross_entropy(z, labels))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_loss_may_be_computed_inside_the_model(config: str) -> None:
    x, mask, shared, y = data()
    module = WithLoss()
    opt = optimizer(module, attrgetter("loss"), config, likelihood=Categorical(outputs=attrgetter("logits")))
    inputs = {"labels": y, "x": x, "mask": mask, "shared": shared}
    if config == "gauss-newton":  # of the outputs the loss takes itself
        with pytest.raises(RuntimeError, match="linear in the outputs .* no Gauss-Newton matrix"):
            opt.refit(inputs)
        return
    assert_same(learned(module, opt, inputs, None), plain(config))


class Tokens(nn.Module):
    def __init__(self, *, flatten: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.flatten = nn.Embedding(5, 3), nn.Linear(3, 5), flatten
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        z: Tensor = self.head(self.embedding(tokens).cumsum(1))
        return z.flatten(0, 1) if self.flatten else z.mT


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("flat_labels", [True, False])
def test_flattened_logits_are_the_plain_ones(flat_labels: bool, config: str) -> None:
    """The labels' first axis is then a multiple of the batch's."""
    x, y = torch.arange(8).view(4, 2) % 5, torch.arange(8).view(4, 2).flip(0) % 5
    found = []
    for flatten in (False, True):
        module = Tokens(flatten=flatten)
        loss_fn: Any = nn.CrossEntropyLoss()
        if flatten and not flat_labels:
            loss_fn = lambda z, y: functional.cross_entropy(z, y.flatten())
        opt = optimizer(module, loss_fn, config, likelihood=Categorical())
        found.append(learned(module, opt, x, y.flatten() if flatten and flat_labels else y))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("config", ["two probes", "true labels", "fisher", "newton"])
def test_one_probe_needs_no_splitting(config: str) -> None:
    """A whole graph: every tensor has the nodes' axis, and some are no tensors that torch can open."""
    torch.manual_seed(3)
    adjacency, y = torch.rand(5, 5).double(), torch.arange(5) % 3
    features = torch.randn(5, 4).double()

    class Opaque:
        graph = adjacency

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(4, 3).double()

        def forward(self, graph: Any, x: Tensor) -> Tensor:
            z: Tensor = self.head((graph.graph if isinstance(graph, Opaque) else graph) @ x)
            return z

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.head(x)
            return z

    found = []
    for module, inputs in (
        (Row(), adjacency @ features),
        (Convolution(), (adjacency, features)),
        (Convolution(), (Opaque(), features)),
    ):
        opt = LLQR(
            torch.optim.SGD(module.parameters(), lr=0.1),
            module,
            nn.CrossEntropyLoss(),
            CONFIGS[config].replace(probes=1),
        )
        found.append(learned(module, opt, inputs, y))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("config", ["two probes", "true labels", "fisher"])
def test_what_cannot_be_split_says_so_and_learns_nothing(config: str) -> None:
    x, mask, shared, y = data()
    module = Wrapped(by_name, lambda z: z)

    class Opaque:
        def __init__(self) -> None:
            self.x, self.mask, self.shared = x, mask, shared

    opt = optimizer(module, nn.CrossEntropyLoss(), config)
    with pytest.raises(ValueError, match="6 examples; pass probes=1"):
        opt.refit(Opaque(), y)
    with pytest.raises(ValueError, match=r"\[5, 6, 4, 6\] examples"):
        opt.refit(Graph(x[:5], mask, shared), y)
    assert opt.refit_due


def test_inputs_in_any_container_stay_what_they_are() -> None:
    """A model that writes into its inputs and into the container writes into copies."""
    x, mask, shared, y = data()

    class Rude(Wrapped):
        def forward(self, batch: Any) -> Any:
            batch["kept"]["more"] = batch["kept"]["x"].mul_(2)
            batch["batch"].x.mul_(2)
            batch["batch"].name = "changed"
            batch["more"] = 1
            return super().forward(batch["batch"])

    module = Rude(by_name, lambda z: z)
    graph = Graph(x, mask, shared)
    kept = Kept(x=x)
    outer = UserDict(batch=graph, kept=kept)
    before = x.clone()
    for config in CONFIGS:
        optimizer(module, nn.CrossEntropyLoss(), config).refit((outer,), y)
    assert torch.equal(x, before)
    assert graph.name == "graph"
    assert graph.x is x
    assert kept["x"] is x
    assert (list(outer), list(kept)) == (["batch", "kept"], ["x"])
