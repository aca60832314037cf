"""Curvature products against brute-force matrices, one after the other (hence the length); no trace is left."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call, jacrev
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llqr_sam_ref import LLQR, LLQRConfig
from llqr_sam_ref.nets import mlp
from llqr_sam_ref.optim.curvature import Linearization, observed
from tests.optim._models import CASES, Case, case, flat, random_vector, relative_error

BACKENDS = ("traced", "kept")
_jacobian: Callable[..., Tensor] = jacobian
_hessian: Callable[..., Tensor] = hessian


class Dense:
    """Jacobian, Hessian and gradient of one case as matrices over the flat vector of trainable weights.

    Row by row where there is a layer or group norm: torch's batched second derivatives in the scale of layer norm
    are wrong (2.13).
    """

    def __init__(self, module: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor) -> None:
        trainable = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in trainable.values()]

        def outputs(w: Tensor) -> Tensor:
            parts = zip(trainable.items(), torch.split(w, sizes), strict=True)
            return functional_call(module, {name: part.view_as(p) for (name, p), part in parts}, (x,))

        def loss(w: Tensor) -> Tensor:
            return loss_fn(outputs(w), y)

        w = flat(trainable)
        batched = not any(isinstance(part, (nn.LayerNorm, nn.GroupNorm)) for part in module.modules())
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            z = outputs(w)
            self.J = _jacobian(outputs, w, vectorize=batched).reshape(z.numel(), -1)
            self.Q = _hessian(lambda z: loss_fn(z, y), z, vectorize=batched).reshape(z.numel(), -1)
            self.H = _hessian(loss, w, vectorize=batched)
            self.g = _jacobian(loss, w, vectorize=batched)
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.fixture(scope="module", params=CASES)
def truth(request: pytest.FixtureRequest) -> tuple[Case, Dense]:
    found = case(request.param)
    return found, Dense(*found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_equal_dense_matrices(truth: tuple[Case, Dense], backend: str) -> None:
    (module, loss_fn, x, y), dense = truth
    lin = Linearization(module, loss_fn, x, y, backend=backend)
    for seed in range(2):
        v = random_vector(module, seed)
        Jv = dense.J @ flat(v)
        assert relative_error(lin.jvp(v).reshape(-1), Jv) < 1e-10
        assert relative_error(flat(lin.vjp(lin.jvp(v))), dense.J.T @ Jv) < 1e-10
        assert relative_error(flat(lin.ggn(v)), dense.J.T @ (dense.Q @ Jv)) < 1e-10
        assert relative_error(flat(lin.fisher(v)), dense.J.T @ (dense.Q @ Jv)) < 1e-10
        assert relative_error(flat(lin.hessian(v)), dense.H @ flat(v)) < 1e-10
    assert relative_error(flat(lin.gradient()), dense.g) < 1e-10
    assert lin.traces == (2 if backend == "traced" else 0)
    assert set(lin.names) == {n for n, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("backend", BACKENDS)
def test_moving_to_new_weights_equals_a_fresh_set_up_and_traces_nothing(backend: str) -> None:
    module, loss_fn, x, y = case("residual block, batch norm")
    lin = Linearization(module, loss_fn, x, y, backend=backend)
    v = random_vector(module)
    lin.hessian(v)
    before, traces = flat(lin.ggn(v)), lin.traces
    with torch.no_grad():
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            tensor.mul_(1.1).add_(0.01)
    flipped = x.flip(0), y.flip(0)
    lin.relinearize(*flipped)
    fresh = Linearization(module, loss_fn, *flipped, backend=backend)
    for product in ("ggn", "fisher", "hessian"):
        assert torch.equal(flat(getattr(lin, product)(v)), flat(getattr(fresh, product)(v)))
    assert torch.equal(flat(lin.gradient()), flat(fresh.gradient()))
    assert torch.equal(lin.outputs, fresh.outputs)
    assert torch.equal(lin.loss, fresh.loss)
    assert lin.traces == traces
    assert relative_error(flat(lin.ggn(v)), before) > 1e-3


def test_other_shapes_are_traced_once_each() -> None:
    module, loss_fn, x, y = case("mlp")
    lin = Linearization(module, loss_fn, x, y)
    counts = []
    for rows in (5, 3, 5, 3, 4, 5):
        lin.relinearize(x[:rows], y[:rows])
        counts.append(lin.traces)
    assert counts == [1, 2, 2, 2, 3, 3]
    for rows in (1, 2):  # more shapes than are remembered: the oldest goes
        lin.relinearize(x[:rows], y[:rows])
    lin.relinearize(x[:3], y[:3])
    assert lin.traces == 6


def test_fisher_reductions_count_terms() -> None:
    module, loss_fn, x, y = case("tied, ignored labels")
    v = random_vector(module)
    lin = Linearization(module, loss_fn, x, y)
    terms = int((y != -1).sum())
    assert relative_error(flat(lin.fisher(v, "sum")), terms * flat(lin.ggn(v))) < 1e-12
    assert relative_error(flat(lin.fisher(v, "mean")), flat(lin.ggn(v))) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_costs_on_states_add_their_sandwiches(backend: str, reduction: str) -> None:
    module, loss_fn, x, y = case("mlp")
    root = torch.randn(4, 4, dtype=torch.float64)
    costs: dict[str, Any] = {"2": 0.7, "3": root @ root.T}
    lin = Linearization(module, loss_fn, x, y, states=costs, state_reduction=reduction, backend=backend)
    trainable = {n: p.detach() for n, p in module.named_parameters()}
    expected = torch.zeros((), dtype=torch.float64)
    for name, S in (("2", 0.7 * torch.eye(5).double()), ("3", root @ root.T)):
        head = module[: int(name) + 1]  # type: ignore[index]
        reached = {n: p for n, p in trainable.items() if n in dict(head.named_parameters())}
        jacobians = jacrev(lambda w, head=head: functional_call(head, w, (x,)))(reached)
        J = torch.zeros(5 * len(S), sum(p.numel() for p in trainable.values())).double()
        start = 0
        for n, p in trainable.items():
            if n in reached:
                J[:, start : start + p.numel()] = jacobians[n].reshape(len(J), -1)
            start += p.numel()
        expected = expected + J.T @ torch.kron(torch.eye(5).double(), S) @ J
    v = random_vector(module)
    extra = expected @ flat(v) / (5 if reduction == "mean" else 1)
    plain = Linearization(module, loss_fn, x, y)
    for product in ("ggn", "fisher", "hessian"):
        found = flat(getattr(lin, product)(v))
        assert relative_error(found, flat(getattr(plain, product)(v)) + extra) < 1e-10


def test_nothing_of_the_module_changes() -> None:
    module, loss_fn, x, y = case("residual block, batch norm")
    module.get_submodule("head").train()
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    gradients = [p.grad for p in module.parameters()]
    copies = [g.clone() for g in gradients if g is not None]
    flags = [m.training for m in module.modules()]
    random = torch.get_rng_state()
    v = random_vector(module)
    with torch.no_grad():
        lin = Linearization(module, loss_fn, x, y, states={"block": 0.1})
        for product in (lin.ggn, lin.fisher, lin.hessian):
            assert not any(t.requires_grad for t in product(v).values())
        lin.relinearize().gradient()
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in module.modules()] == flags
    assert all(p.grad is g for p, g in zip(module.parameters(), gradients, strict=True))
    assert all(
        torch.equal(g, c) for g, c in zip((g for g in gradients if g is not None), copies, strict=True)
    )
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert not any(m._forward_hooks for m in module.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_autocast_outside_changes_nothing() -> None:
    module, loss_fn, x, y = mlp((4, 5, 3)), nn.CrossEntropyLoss(), torch.randn(5, 4), torch.arange(5) % 3
    v = random_vector(module)
    plain = Linearization(module, loss_fn, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        cast = Linearization(module, loss_fn, x, y)
        for product in ("ggn", "fisher", "hessian"):
            assert torch.equal(flat(getattr(cast, product)(v)), flat(getattr(plain, product)(v)))
        assert torch.equal(flat(cast.gradient()), flat(plain.gradient()))


def test_half_precision_is_computed_in_float32() -> None:
    module, loss_fn, x, y = mlp((4, 5, 3)), nn.CrossEntropyLoss(), torch.randn(5, 4), torch.arange(5) % 3
    half = copy.deepcopy(module).bfloat16()
    module.load_state_dict({n: t.float() for n, t in half.state_dict().items()})
    v = random_vector(module)
    found = Linearization(half, loss_fn, x.bfloat16(), y).ggn(v)
    assert torch.equal(flat(found), flat(Linearization(module, loss_fn, x.bfloat16().float(), y).ggn(v)))


class Branching(nn.Module):
    """Chooses by the value of its input: there is no graph that holds everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) if x.sum() > 0 else self.second(x)
        return torch.tanh(y)


def test_a_module_that_branches_on_values_is_differentiated_by_autograd() -> None:
    module = Branching().double()
    y, loss_fn = torch.arange(5) % 3, nn.CrossEntropyLoss()
    positive = torch.rand(5, 4).double()
    v = random_vector(module)
    lin = Linearization(module, loss_fn, positive, y)
    for x in (positive, -positive):
        dense = Dense(module, loss_fn, x, y)
        lin.relinearize(x, y)
        assert relative_error(flat(lin.ggn(v)), dense.J.T @ dense.Q @ dense.J @ flat(v)) < 1e-10
        assert relative_error(flat(lin.hessian(v)), dense.H @ flat(v)) < 1e-10
    assert lin.traces == 0
    with pytest.raises(RuntimeError, match="backend='kept'"):
        Linearization(module, loss_fn, positive, y, backend="traced")


class Forced(nn.Module):
    """Insists on a fused attention kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).unflatten(-1, (3, 1, 8)).unbind(2)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).mean((
                1,
                2,
            ))


def test_fused_attention_is_named_with_its_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"fused attention .* softmax\(Q K\^T\) V"):
        Linearization(Forced(), nn.CrossEntropyLoss(), torch.randn(4, 16, 8), torch.arange(4))


def test_modules_in_training_mode_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    arguments = (nn.CrossEntropyLoss(), torch.randn(5, 4), torch.arange(5) % 3)
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\), 2 \(Dropout\); call module.eval\(\)"):
        Linearization(net, *arguments)
    net[1].eval()
    net[2].p = 0.0  # type: ignore[assignment]
    lin = Linearization(net, *arguments)
    net[1].train()
    with pytest.raises(ValueError, match="BatchNorm1d"):
        lin.relinearize()


class Noisy(nn.Module):
    """Random, and not by a module that could be recognized."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(self.linear(x), 0.5)


class Counting(nn.Module):
    """Writes into a buffer in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(len(x))
        return self.linear(x)


def test_random_forwards_are_refused() -> None:
    arguments = (nn.CrossEntropyLoss(), torch.randn(5, 4), torch.arange(5) % 3)
    with pytest.raises(ValueError, match="two evaluations"):
        Linearization(Noisy(), *arguments)


def test_a_forward_that_writes_into_its_buffers_writes_into_copies() -> None:
    arguments = (nn.CrossEntropyLoss(), torch.randn(5, 4), torch.arange(5) % 3)
    counting = Counting()
    lin, plain = Linearization(counting, *arguments), Linearization(counting.linear, *arguments)
    v = {name: torch.randn_like(p) for name, p in counting.named_parameters()}
    product = lin.ggn(v)
    expected = plain.ggn({name.removeprefix("linear."): t for name, t in v.items()})
    for name, tensor in expected.items():
        torch.testing.assert_close(product[f"linear.{name}"], tensor)
    assert float(counting.seen) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.randn(5, 3)}, r"shapes \[\(5, 3\), \(5,\)\]"),
        ({"inputs": torch.full((5, 4), torch.nan)}, "NaN"),
        ({"targets": None}, "loss_fn fails"),
        ({"targets": torch.arange(4) % 3}, "loss_fn fails"),
        ({"loss_fn": nn.CrossEntropyLoss(reduction="none")}, "scalar"),
        ({"loss_fn": lambda z, y: (z / 0).sum()}, "not finite"),
        ({"backend": "trace"}, "'traced'"),
        ({"states": {"9": 1.0}}, "states='9' is unknown"),
        ({"states": {"1": -1.0}}, "states"),
        ({"states": {"1": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}}, "semidefinite"),
        ({"states": {"1": torch.ones(3)}}, "square"),
        ({"state_reduction": "median"}, "'mean'"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "module": mlp((4, 5, 3)),
        "loss_fn": nn.CrossEntropyLoss(),
        "inputs": torch.randn(5, 4),
        "targets": torch.arange(5) % 3,
    }
    with pytest.raises(ValueError, match=message):
        Linearization(**(arguments | change))


def test_weights_that_cannot_be_handled_are_refused() -> None:
    arguments = (lambda z: z.abs().sum(), torch.randn(5, 4))
    with pytest.raises(ValueError, match="'weight' is complex"):
        Linearization(nn.Linear(4, 3, bias=False, dtype=torch.complex64), *arguments)
    frozen = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        Linearization(frozen, *arguments)
    sparse = nn.Linear(4, 3, bias=False)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    with pytest.raises(ValueError, match="'weight' is sparse"):
        Linearization(sparse, *arguments)


def test_a_loss_without_curvature_says_so() -> None:
    module = mlp((4, 5, 3)).double()
    lin = Linearization(
        module, lambda z, y: (z * y).sum(), torch.randn(5, 4).double(), torch.randn(5, 3).double()
    )
    v = random_vector(module)
    with pytest.raises(RuntimeError, match="linear in the outputs"):
        lin.ggn(v)
    with pytest.raises(ValueError, match="not a likelihood"):
        lin.fisher(v)
    lin.hessian(v)


def test_products_need_a_fresh_set_up() -> None:
    module, loss_fn, x, y = case("mlp")
    v = random_vector(module)
    lin = Linearization(module, loss_fn, x, y)
    expected = flat(lin.ggn(v))
    with torch.no_grad():
        next(module.parameters()).add_(0.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        lin.ggn(v)
    assert torch.equal(flat(lin.relinearize().ggn(v)), expected)
    lin.release()
    with pytest.raises(RuntimeError, match="released"):
        lin.ggn(v)
    for twin in (copy.deepcopy(lin.relinearize()), pickle.loads(pickle.dumps(lin))):
        with pytest.raises(RuntimeError, match="copied"):
            twin.ggn(v)
        assert torch.equal(flat(twin.relinearize().ggn(v)), expected)
    with pytest.raises(ValueError, match=r"missing \['1.bias'\], unknown \['typo'\]"):
        lin.ggn({("typo" if n == "1.bias" else n): t for n, t in v.items()})
    next(module.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match="trainable parameters have changed"):
        lin.relinearize()


def test_inputs_may_be_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor, shift: Tensor, *, power: int = 1) -> Tensor:
            return torch.tanh(self.linear(x) + shift) ** power

    module = Two().double()
    x, shift, y = torch.randn(5, 4).double(), torch.randn(5, 3).double(), torch.arange(5) % 3
    v = random_vector(module)
    by_position = Linearization(module, nn.CrossEntropyLoss(), (x, shift), y)
    by_name = Linearization(module, nn.CrossEntropyLoss(), {"x": x, "shift": shift}, y)
    assert torch.equal(flat(by_position.ggn(v)), flat(by_name.ggn(v)))
    by_name.relinearize({"x": x, "shift": shift, "power": 3}, y)
    assert by_name.traces == 2
    assert relative_error(flat(by_name.ggn(v)), flat(by_position.ggn(v))) > 0.01


def test_products_are_seen_where_they_are_taken() -> None:
    """Those of a refit too: one per inner step; outside of the block nobody looks."""
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.arange(6) % 3
    seen: list[str] = []

    @contextmanager
    def around(name: str) -> Iterator[None]:
        seen.append(name)
        yield
        seen.append("done")

    here = Linearization(model, nn.CrossEntropyLoss(), x, y)
    v = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    opt = LLQR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        nn.CrossEntropyLoss(),
        LLQRConfig.published(steps=2),
    )
    with observed(around):
        here.ggn(v)
        here.hessian(v)
        opt.refit(x, y)
    here.fisher(v)
    assert seen == [*("ggn", "done", "hessian", "done"), *("fisher", "done") * 2]
