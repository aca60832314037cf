"""What every Transformer here is made of: attention, a two-layer network, residual blocks of both."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.errors import UserError, check_choice, check_count, check_number

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in several heads, from one sequence to itself or to another.

    Args:
        width: features of a token.
        heads: how many; it divides the width.
        dropout: probability on the attention weights.

    Raises:
        UserError: the width is not a multiple of the heads, or a number is out of range.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if check_count("width", width) % check_count("heads", heads):
            raise UserError(f"heads={heads} does not divide width={width}; pass a divisor of the width.")
        self.heads, self.dropout = heads, check_number("dropout", dropout, low=0.0, high=1.0, open_high=True)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Tokens (n, l, width) attend to themselves or to ``memory`` (n, m, width).

        Args:
            x: the tokens that ask.
            memory: the tokens that answer; None for x.
            mask: (n, m), true where a token of the memory may be seen; None for all.
            causal: a token sees itself and those before it.

        Returns:
            (n, l, width).
        """
        memory = x if memory is None else memory
        q, k, v = (self._split(part) for part in (self.query(x), self.key(memory), self.value(memory)))
        mixed = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """(n, l, width) to (n, heads, l, width/heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, attention to a memory if there is one, a two-layer network, each with a residual.

    Args:
        width: features of a token.
        heads: of every attention.
        hidden: units between the two layers.
        dropout: probability on what each part adds.
        attention_dropout: probability on the attention weights.
        activation: "relu" or "gelu".
        norm_first: whether the norm comes before each part, or after the residual is added.
        memory: whether the block attends to a memory, as a decoder's does.
        causal: whether tokens see only what came before.

    Raises:
        UserError: an unknown activation or a number out of range.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        *,
        attention_dropout: float = 0.0,
        activation: str = "gelu",
        norm_first: bool = True,
        memory: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_number("dropout", dropout, low=0.0, high=1.0, open_high=True)
        self.norm_first, self.causal = norm_first, causal
        self.attention = Attention(width, heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.cross = Attention(width, heads, attention_dropout) if memory else None
        self.cross_norm = nn.LayerNorm(width) if memory else None
        self.mlp = nn.Sequential(
            nn.Linear(width, check_count("hidden", hidden)),
            ACTIVATIONS[activation](),
            nn.Linear(hidden, width),
        )
        self.mlp_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(n, l, width) to (n, l, width); masks (n, l) and (n, m) are true where a token may be seen."""

        def attend(y: Tensor) -> Tensor:
            return self.attention(y, mask=mask, causal=self.causal)  # type: ignore[no-any-return]

        x = self._residual(x, attend, self.attention_norm)
        if self.cross is not None and self.cross_norm is not None:
            cross = self.cross
            x = self._residual(x, lambda y: cross(y, memory, memory_mask), self.cross_norm)
        return self._residual(x, self.mlp, self.mlp_norm)

    def _residual(self, x: Tensor, part: nn.Module | Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        if self.norm_first:
            return x + self.dropout(part(norm(x)))  # type: ignore[no-any-return]
        return norm(x + self.dropout(part(x)))  # type: ignore[no-any-return]


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed position codes: sines and cosines of geometrically spaced frequencies.

    sin(t / 10000^(2i/width)) in the even columns, the cosine in the odd ones

    Args:
        length: positions.
        width: features, even.

    Returns:
        (length, width), float32.

    Raises:
        UserError: the width is odd.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    if check_count("width", width) % 2:
        raise UserError(f"width={width} is odd; sines and cosines come in pairs, pass an even width.")
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(check_count("length", length)).unsqueeze(1) * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)
