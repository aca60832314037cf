"""Small modules in float64, one for each kind of layer that curvature products must get right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.nets import mlp
from llqr_sam_ref.nets.resnet import BasicBlock

Case = tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]


class Attention(nn.Module):
    """Layer norm, two heads of self-attention, a residual, a linear head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.mix(self.norm(x)).view(n, length, 3, 2, 2).unbind(2)
        heads = [t.transpose(1, 2) for t in (q, k, v)]
        y = functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(n, length, width)
        return self.head((x + y).mean(1))


class Block(nn.Module):
    """A residual block with batch norm on running statistics, pooled to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.block = BasicBlock(1, 2)
        self.head = nn.Linear(2, 3)
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d):
                    for tensor in (part.running_mean, part.running_var, part.weight, part.bias):
                        assert tensor is not None
                        tensor.copy_(torch.rand_like(tensor) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean((2, 3)))


class Tied(nn.Module):
    """One weight used twice: on the way in and, transposed, on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.middle = nn.Linear(4, 4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.middle(self.embed(x)))).transpose(1, 2)


def case(name: str) -> Case:
    """A module, a loss, inputs and targets."""
    torch.manual_seed(7)
    labels = torch.tensor([0, 2, 1, 1, 0])
    if name == "mlp":
        return mlp((4, 5, 4, 3), "tanh").double(), nn.CrossEntropyLoss(), _normal(5, 4), labels
    if name == "relu, squared loss":
        return mlp((4, 6, 3)).double(), nn.MSELoss(), _normal(5, 4), _normal(5, 3)
    if name == "convolutions, in place":
        net = nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(2, 4, 2, groups=2),
            nn.GroupNorm(2, 4), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip
        return net.double(), nn.BCEWithLogitsLoss(), _normal(5, 2, 4, 4), torch.rand(5, 3).double().round()
    if name == "residual block, batch norm":
        return Block().double().eval(), nn.CrossEntropyLoss(label_smoothing=0.1), _normal(5, 1, 3, 3), labels
    if name == "attention":
        return Attention().double(), nn.CrossEntropyLoss(reduction="sum"), _normal(5, 3, 4), labels
    if name == "encoder layer":
        layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True)
        net = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 3))
        return net.double().eval(), nn.CrossEntropyLoss(), _normal(5, 2, 4), labels
    if name == "tied, ignored labels":
        targets = torch.tensor([[1, 4, -1], [0, 2, 2], [3, -1, -1]])
        return (
            Tied().double(),
            nn.CrossEntropyLoss(ignore_index=-1),
            torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 2]]),
            targets,
        )
    assert name == "frozen"
    net = mlp((4, 5, 4, 3), "gelu").double()
    net[1].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    return net, nn.CrossEntropyLoss(), _normal(5, 4), labels


CASES = (
    "mlp",
    "relu, squared loss",
    "convolutions, in place",
    "residual block, batch norm",
    "attention",
    "encoder layer",
    "tied, ignored labels",
    "frozen",
)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def network() -> nn.Sequential:
    """A small classifier in float64, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(t: int = 0) -> tuple[Tensor, Tensor]:
    """The examples of step ``t``, and labels that it can learn."""
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x, (x[:, :3] + 0.3 * x[:, 1:]).argmax(1)


def random_vector(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A random vector of trainable weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def flat(vector: dict[str, Tensor]) -> Tensor:
    """The vector's entries in one tensor."""
    return torch.cat([tensor.reshape(-1) for tensor in vector.values()])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest entry expected."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())
