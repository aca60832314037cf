"""Which bases may be asked for their update: found out by trying, held to the base's own steps.

With U = I and no step rule LLQR must be its base, or say at construction what to do instead.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.optim._models import batch, network
from tests.optim._training import backward, same, weights

loss_fn = nn.CrossEntropyLoss()
Make = Callable[[nn.Module], Optimizer]


def as_itself(base: Optimizer, model: nn.Module, **config: Any) -> LLQR:
    """LLQR with U = I and no step rule."""
    for group in base.param_groups:
        group["structure"] = "identity"
    return LLQR(base, model, loss_fn, LLQRConfig(step_rule="none", **config))


def walk(opt: Any, model: nn.Module, steps: int = 10) -> Tensor:
    """The weights after some steps, end to end."""
    if callable(switch := getattr(opt, "train", None)):
        switch()  # schedule-free optimizers have modes
    for t in range(steps):
        torch.manual_seed(t)  # some bases are random
        opt.zero_grad()
        x, y = batch(t)
        backward(loss_fn(model(x), y))
        opt.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def distance(a: Tensor, b: Tensor) -> float:
    """Between two walks, relative to the way walked."""
    way = (b - torch.cat([p.detach().flatten() for p in network().parameters()])).norm()
    return float((a - b).norm() / way) if way > 0 else float((a - b).norm())


# Every optimizer of torch and of pytorch_optimizer.


def two_kinds(kind: Any) -> Make:
    """Muon and its kin want to be told which parameters are matrices."""

    def make(model: nn.Module) -> Optimizer:
        groups = [
            {"params": [p for p in model.parameters() if (p.ndim > 1) is matrix], "use_muon": matrix}
            for matrix in (True, False)
        ]
        return kind(groups, lr=0.01)

    return make


def matrices(kind: Any) -> Make:
    return lambda model: kind([p for p in model.parameters() if p.ndim > 1], lr=0.01)


def common(kind: Any, **options: Any) -> Make:
    return lambda model: kind(model.parameters(), lr=0.01, **options)


MUON = ("adago", "adamuon", "muon", "muonclip", "normuon")
PACKAGED: dict[str, Any] = {
    name: pytorch_optimizer.load_optimizer(name) for name in pytorch_optimizer.get_supported_optimizers()
}
TORCH = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}
MAKERS: dict[str, Make] = {
    **{f"torch {name}": common(kind) for name, kind in TORCH.items()},
    **{name: common(kind) for name, kind in PACKAGED.items()},
    **{name: two_kinds(PACKAGED[name]) for name in MUON},
    "torch Muon": matrices(torch.optim.Muon),
    "spectralsphere": matrices(PACKAGED["spectralsphere"]),
    "adammini": lambda model: PACKAGED["adammini"](model, lr=0.01),
    "bsam": common(PACKAGED["bsam"], num_data=16),
    "ranger21": common(PACKAGED["ranger21"], num_iterations=10),
    "Lookahead": lambda model: pytorch_optimizer.Lookahead(SGD(model.parameters(), lr=0.1), k=5),
    "OrthoGrad": lambda model: pytorch_optimizer.OrthoGrad(SGD(model.parameters(), lr=0.1)),
    "ScheduleFreeWrapper": lambda model: pytorch_optimizer.ScheduleFreeWrapper(
        SGD(model.parameters(), lr=0.1)
    ),
}
# Not to be built here: two update inside backward and hold no gradients, one needs ranks, one another package.
for elsewhere in ("lomo", "adalomo", "distributedmuon", "demo"):
    del MAKERS[elsewhere]
# Not to be stepped by a plain loop in float64: they need a closure, sparse gradients, a graph, or float32.
UNWALKABLE = {
    "torch LBFGS", "torch SparseAdam", "lbfgs", "alig", "bsam", "adahessian", "sophiah", "fadam",
}  # fmt: skip
WELCOME = {
    "torch SGD", "torch Adam", "torch AdamW", "torch RMSprop", "torch NAdam", "torch Muon", "lion", "adan", "muon",
    "shampoo", "soap", "tiger", "adabelief", "novograd", "qhadam", "spam",
}  # fmt: skip
UNWELCOME = {
    "torch Adafactor", "torch ASGD", "torch Rprop", "lars", "lamb", "madgrad", "prodigy", "dadaptadam", "ranger",
    "schedulefreesgd", "nero", "Lookahead", "OrthoGrad", "adamp", "a2grad", *UNWALKABLE,
}  # fmt: skip


def made(name: str, model: nn.Module) -> Optimizer:
    base = MAKERS[name](model)
    for group in base.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0  # LLQR's is decoupled, whatever the base's is
    return base


def refused(name: str) -> str:
    """In which words; none if it is not."""
    model = network()
    base = made(name, model)
    try:
        as_itself(base, model)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MAKERS)
def test_U_equal_to_I_is_the_base_or_the_remedy_is_named_and_works(name: str) -> None:
    model, plain = network(), network()
    config, refusal = {}, refused(name)
    if refusal:
        assert "acts_on='gradient'" in refusal
        assert name not in WELCOME
        config = {"acts_on": "gradient"}
    else:
        assert name not in UNWELCOME
    if name not in UNWALKABLE:
        opt = as_itself(made(name, model), model, **config)
        assert distance(walk(opt, model), walk(made(name, plain), plain)) < (1e-12 if refusal else 1e-6)


# Bases of one's own.


class Own(Optimizer):
    """Signs of gradients, and what a subclass does beside."""

    def __init__(self, params: Any, lr: float = 0.01, **options: Any) -> None:
        super().__init__(params, {"lr": lr, "steps": 0, **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, group)

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        p.add_(g.sign(), alpha=-group["lr"])


class WarmingUp(Own):
    """A schedule of its own in steps, of which the weights know nothing."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        p.add_(g.sign(), alpha=-group["lr"] * min(1.0, group["steps"] / 5))


class Rebinding(Own):
    """Makes new weights instead of writing to the old ones."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        p.data = p.data - group["lr"] * g.sign()


class Counting(Own):
    """Keeps numbers of the whole optimizer in ``state``, from the beginning on."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.state["all"] = {"steps": 1}  # type: ignore[index]

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.state["all"]["steps"] += 1  # type: ignore[index]
        p.add_(g.sign(), alpha=-group["lr"] / self.state["all"]["steps"])  # type: ignore[index]


class OtherDecay(Own):
    """Decay under another name, which LLQR does not know of."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        p.mul_(1 - 0.1 * group["lr"]).add_(g.sign(), alpha=-group["lr"])


class LookingUp(Own):
    """Goes back to an average every 20 steps."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        slow = self.state[p].setdefault("slow", p.clone())
        super().move(p, g, group)
        if group["steps"] % 20 == 0:
            p.copy_(slow.lerp_(p, 0.5))


class OnTheBall(Own):
    """Weights that have grown too long are cut."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, group)
        p.mul_(min(1.0, 1.0 / float(p.norm() + 1e-12)))


class SquareRate(Own):
    """Not linear in its learning rate."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        p.add_(g.sign(), alpha=-(group["lr"] ** 2))


@pytest.mark.parametrize("kind", [Own, WarmingUp, Rebinding, Counting])
def test_bases_of_one_s_own_that_do_not_look_at_the_weights(kind: Any) -> None:
    model, plain = network(), network()
    addresses = [p.data_ptr() for p in model.parameters()]
    opt = as_itself(kind(model.parameters()), model)
    assert distance(walk(opt, model), walk(kind(plain.parameters()), plain)) < 1e-12
    assert [p.data_ptr() for p in model.parameters()] == addresses


@pytest.mark.parametrize("kind", [OtherDecay, LookingUp, OnTheBall, SquareRate])
def test_bases_of_one_s_own_that_do(kind: Any) -> None:
    model, plain = network(), network()
    before = weights(model)
    with pytest.raises(ValueError, match="from the weights or from its own schedule.*acts_on='gradient'"):
        as_itself(kind(model.parameters()), model)
    assert same(weights(model), before)
    opt = as_itself(kind(model.parameters()), model, acts_on="gradient")
    assert distance(walk(opt, model, 25), walk(kind(plain.parameters()), plain, 25)) < 1e-12


# Trying leaves no trace, and finds the base wherever it is in its life.


TRAINED: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "AdamW, fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.0, fused=True),
    "AdamW, rate in a tensor": lambda p: AdamW(p, lr=torch.tensor(0.01).double(), foreach=False),
    "steps counted in the group": lambda p: PACKAGED["lion"](p, lr=0.01),
    "average in the state": lambda p: PACKAGED["adan"](p, lr=0.01),
    "entries of the whole": lambda p: PACKAGED["spam"](p, lr=0.01),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", TRAINED.values(), ids=TRAINED)
def test_a_base_that_has_trained_is_tried_as_new_and_goes_on(make: Callable[[Any], Optimizer]) -> None:
    model, plain = network(), network()
    base, other = make(model.parameters()), make(plain.parameters())
    fired: list[int] = []
    base.register_step_post_hook(lambda *_: fired.append(1))
    for each, net in ((base, model), (other, plain)):
        torch.optim.lr_scheduler.ExponentialLR(each, 0.5)  # patches step
        walk(each, net, 3)
    before, groups = copy.deepcopy(base.state_dict()), copy.deepcopy(base.param_groups[0])
    torch.manual_seed(3)
    stream = torch.get_rng_state()
    opt = as_itself(base, model)
    assert torch.equal(torch.get_rng_state(), stream)
    assert len(fired) == 3
    after = base.state_dict()
    assert str(after["state"]) == str(before["state"])
    assert all(str(base.param_groups[0][name]) == str(value) for name, value in groups.items())
    assert distance(walk(opt, model), walk(other, plain)) < 1e-12


def test_a_base_may_be_asked_later() -> None:
    """The configuration may be assigned while the base is in the middle of its life."""
    model, plain = network(), network()
    opt = as_itself(PACKAGED["lion"](model.parameters(), lr=0.01), model, acts_on="gradient")
    other = PACKAGED["lion"](plain.parameters(), lr=0.01)
    walk(opt, model, 3)
    walk(other, plain, 3)
    opt.config = LLQRConfig(step_rule="none", acts_on="update")
    assert distance(walk(opt, model), walk(other, plain)) < 1e-12


class Odd(nn.Module):
    """Parameters of no axis, of no element, of an axis of one, and frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.none = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(0, 3))
        self.row, self.frozen = (
            nn.Parameter(torch.ones(1, 4)),
            nn.Parameter(torch.ones(4), requires_grad=False),
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale * x * self.row + self.frozen) + self.none.sum()


@pytest.mark.parametrize("kind", [SGD, AdamW, torch.optim.Adafactor, PACKAGED["lion"]])
def test_parameters_of_any_shape(kind: Any) -> None:
    torch.manual_seed(0)
    model = Odd().double()
    plain = copy.deepcopy(model)
    base = kind(model.parameters(), lr=0.01, weight_decay=0.0)
    if kind is torch.optim.Adafactor:
        with pytest.raises(ValueError, match="acts_on='gradient'"):
            as_itself(base, model)
        return
    opt = as_itself(base, model)
    other = kind(plain.parameters(), lr=0.01, weight_decay=0.0)
    torch.testing.assert_close(walk(opt, model), walk(other, plain), rtol=1e-12, atol=1e-12)


def test_parameters_of_no_element_only() -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(0))])
    assert isinstance(as_itself(SGD(model.parameters(), lr=0.1), model), LLQR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_parameters_of_any_precision(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    assert isinstance(SAM(as_itself(AdamW(model.parameters(), lr=0.01), model)), SAM)
