"""Transformers for sequences: a decoder that continues a text, an encoder and decoder that translate one.

Logits carry the classes on axis 1, (n, vocabulary, l), as ``torch.nn.CrossEntropyLoss`` takes them.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from llqr_sam_ref.errors import UserError, check_count
from llqr_sam_ref.nets.attention import Block, sinusoids


class Decoder(nn.Module):
    """Token and learned position embeddings, causal blocks with the norm first, a head tied to the embedding.

    Args:
        vocabulary: number of tokens.
        width: features of a token.
        depth: blocks.
        heads: of every attention.
        context: longest sequence.
        hidden: units of a block's inner layer; None for four times the width.
        dropout: probability on embeddings, attention weights and what each part of a block adds.
        tied: whether the head uses the embedding's weights.

    Raises:
        UserError: a count is below 1 or a probability is out of range.

    Source: the GPT-2 layout; (768, 12, 12) with 50257 tokens and a context of 1024 is its small model.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        context: int = 128,
        *,
        hidden: int | None = None,
        dropout: float = 0.0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        check_count("depth", depth)
        self.context = check_count("context", context)
        self.embedding = nn.Embedding(check_count("vocabulary", vocabulary), width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden or 4 * width, dropout, attention_dropout=dropout, causal=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to the logits of what follows each.

        Args:
            tokens: (n, l), l at most the context.

        Returns:
            (n, vocabulary, l).

        Raises:
            UserError: the sequence is longer than the context.
        """
        if tokens.shape[1] > self.context:
            raise UserError(
                f"a sequence of {tokens.shape[1]} tokens for context={self.context}; cut it, or build the "
                "model with a longer context."
            )
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2).contiguous()  # type: ignore[no-any-return]


gpt2_small = partial(Decoder, width=768, depth=12, heads=12, context=1024)


class EncoderDecoder(nn.Module):
    """The original Transformer: sinusoidal positions, norms after residuals, output tied to the input.

    Args:
        source_vocabulary: tokens of the language read; token ``padding`` is skipped.
        target_vocabulary: tokens of the language written.
        width: features of a token.
        depth: blocks of the encoder, and of the decoder.
        heads: of every attention.
        hidden: units of a block's inner layer.
        dropout: probability on embeddings and on what each part of a block adds.
        padding: the token that fills short sequences.
        norm_first: norm before each part and once at the end of each stack, instead of after residuals.

    Raises:
        UserError: a count is below 1 or a probability is out of range.

    Source: Vaswani et al. 2017 (arXiv 1706.03762); the default is the size that is usual for IWSLT14.
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        width: int = 512,
        depth: int = 6,
        heads: int = 4,
        hidden: int = 1024,
        *,
        dropout: float = 0.3,
        padding: int = 0,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        check_count("depth", depth)
        self.padding, self.width = check_count("padding", padding, low=0), width
        self.source = nn.Embedding(check_count("source_vocabulary", source_vocabulary), width)
        self.target = nn.Embedding(check_count("target_vocabulary", target_vocabulary), width)
        self.dropout = nn.Dropout(dropout)
        block = partial(Block, width, heads, hidden, dropout, activation="relu", norm_first=norm_first)
        self.encoder = nn.ModuleList(block() for _ in range(depth))
        self.decoder = nn.ModuleList(block(memory=True, causal=True) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.decoder_norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=width**-0.5)

    def encode(self, source: Tensor) -> Tensor:
        """Source tokens (n, l) to features (n, l, width)."""
        x, seen = self._embed(self.source, source), source != self.padding
        for block in self.encoder:
            x = block(x, seen)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def decode(self, memory: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Logits (n, target_vocabulary, m) of what follows each target token (n, m), given encode(source)."""
        x, seen = self._embed(self.target, target), source != self.padding
        for block in self.decoder:  # causal: padding at the end of a target is seen by padding only
            x = block(x, None, memory, seen)
        return (self.decoder_norm(x) @ self.target.weight.T).transpose(1, 2).contiguous()  # type: ignore[no-any-return]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Source (n, l) and target read so far (n, m) to logits (n, target_vocabulary, m)."""
        return self.decode(self.encode(source), source, target)

    def _embed(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        x = table(tokens) * self.width**0.5
        positions = sinusoids(tokens.shape[1], self.width)
        return self.dropout(x + positions.to(x))  # type: ignore[no-any-return]
