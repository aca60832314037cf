"""What is trained: one row per task, of several kinds, each a matter of seconds on one core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn

from book.experiments.peers import arithmetic, data
from book.experiments.peers.data import Data
from llqr_sam_ref import nets
from llqr_sam_ref.nets.resnet import BasicBlock

CONTEXT = 64  # characters that the decoder sees


@dataclass(frozen=True)
class Problem:
    """A task, its data in memory.

    Args:
        model: makes the model with fresh weights.
        loss: loss(model(inputs), targets), a mean over whatever is predicted.
        data: batches, and the sets that are held out.
        batch: examples of a training batch.
    """

    model: Callable[[], nn.Module]
    loss: nn.Module
    data: Data
    batch: int = 64


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Args:
        about: the title in tables and figures.
        kind: of architecture.
        make: the problem, given the folder of data that does not come with a package, or None.
        steps: of a run.
        external: whether it needs that folder.
        decay: where the search of the decay begins, see ``Setting``; None is without any.
        code: files that the task is made of, beside those of all tasks.
    """

    about: str
    kind: str
    make: Callable[[str | None], Problem]
    steps: int = 400
    external: bool = False
    decay: float | None = None
    code: tuple[str, ...] = ()


def ill_scaled_mlp(data_path: str | None) -> Problem:
    """64-64-64-10 with tanh on digits of badly scaled pixels."""
    model = partial(nets.mlp, (64, 64, 64, 10), activation="tanh")
    return Problem(model, nn.CrossEntropyLoss(), data.ill_scaled_digits())


def autoencoder(data_path: str | None) -> Problem:
    """Down to 8 units and up again in eight layers, no side wider than 64; loss in nats per pixel."""
    model = partial(nets.mlp, (64, 64, 48, 32, 8, 32, 48, 64, 64), activation="tanh")
    return Problem(model, nn.BCEWithLogitsLoss(), data.digits_to_copy(8))


def wide_autoencoder(data_path: str | None) -> Problem:
    """Digits of 28 by 28 pixels down to 12 units and up again in six layers: two sides are 784 wide."""
    model = partial(nets.mlp, (784, 256, 64, 12, 64, 256, 784), activation="tanh")
    return Problem(model, nn.BCEWithLogitsLoss(), data.digits_to_copy(28))


def group_norm_resnet(data_path: str | None) -> Problem:
    """ResNet-8 of 16, 32 and 64 channels with group norm on digits at random places under noise."""
    model = partial(nets.ResNet, BasicBlock, (1, 1, 1), width=16, channels=1, norm="group")
    return Problem(model, nn.CrossEntropyLoss(), data.placed_digits(12, 0.3))


def batch_norm_resnet(data_path: str | None) -> Problem:
    """The same with batch norm."""
    model = partial(nets.ResNet, BasicBlock, (1, 1, 1), width=16, channels=1, norm="batch")
    return Problem(model, nn.CrossEntropyLoss(), data.placed_digits(12, 0.3))


def vision_transformer(data_path: str | None) -> Problem:
    """Two blocks of width 48 on 16 patches of digits under noise."""
    model = partial(nets.VisionTransformer, 48, 2, 4, image_size=8, patch_size=2, channels=1)
    return Problem(model, nn.CrossEntropyLoss(), data.placed_digits(8, 0.3))


def character_decoder(data_path: str | None) -> Problem:
    """Two blocks of width 64 continue a text, character by character; loss in nats per character."""
    model = partial(nets.Decoder, data.characters()[1], width=64, depth=2, heads=4, context=CONTEXT)
    return Problem(model, nn.CrossEntropyLoss(), data.reference_text(CONTEXT), batch=16)


def translator(data_path: str | None) -> Problem:
    """One block of width 64 reads, one writes: sentences of a made-up language, backwards in another."""
    tokens = data.FIRST_WORD + data.WORDS
    model = partial(
        nets.EncoderDecoder, tokens, tokens, 64, 1, 4, 128, dropout=0.0, padding=data.PADDING, norm_first=True
    )
    return Problem(model, nn.CrossEntropyLoss(ignore_index=data.PADDING), data.translation())


def modular_addition(data_path: str | None) -> Problem:
    """One block of width 64 adds two numbers modulo 31 and says the sum at the third place."""
    tokens = arithmetic.MODULUS + 1
    model = partial(nets.Decoder, tokens, width=64, depth=1, heads=4, context=3, hidden=128, tied=False)
    loss = nn.CrossEntropyLoss(ignore_index=arithmetic.UNASKED)
    return Problem(model, loss, arithmetic.sums(), batch=128)


def _folder(data_path: str | None) -> str:
    if data_path is None:
        raise ValueError("this task needs data_path; pass the folder of Fashion-MNIST's four files.")
    return data_path


def fashion_resnet(data_path: str | None) -> Problem:
    """ResNet-8 of 16, 32 and 64 channels with group norm on Fashion-MNIST."""
    model = partial(nets.ResNet, BasicBlock, (1, 1, 1), width=16, channels=1, norm="group")
    return Problem(model, nn.CrossEntropyLoss(), data.fashion(_folder(data_path)), batch=128)


def fashion_transformer(data_path: str | None) -> Problem:
    """Four blocks of width 64 on 49 patches of Fashion-MNIST."""
    model = partial(nets.VisionTransformer, 64, 4, 4, image_size=28, patch_size=4, channels=1)
    return Problem(model, nn.CrossEntropyLoss(), data.fashion(_folder(data_path)), batch=128)


TASKS: dict[str, Task] = {
    "mlp": Task("MLP, ill-scaled digits", "MLP", ill_scaled_mlp),
    "autoencoder": Task("Autoencoder, 64 wide", "autoencoder", autoencoder),
    "autoencoder-wide": Task("Autoencoder, 784 wide", "autoencoder", wide_autoencoder),
    "resnet-group": Task("ResNet-8, group norm", "convolutional net", group_norm_resnet),
    "resnet-batch": Task("ResNet-8, batch norm", "convolutional net", batch_norm_resnet),
    "vit": Task("ViT", "Transformer", vision_transformer),
    "decoder": Task("Character decoder", "Transformer", character_decoder),
    "translation": Task("Encoder-decoder", "Transformer", translator),
    "modular": Task(
        "Modular addition", "Transformer", modular_addition, decay=4.0, code=(arithmetic.__file__,)
    ),
    "fashion": Task("ResNet-8, Fashion-MNIST", "convolutional net", fashion_resnet, external=True),
    "fashion-vit": Task("ViT, Fashion-MNIST", "Transformer", fashion_transformer, external=True),
}


@cache
def problem(name: str, data_path: str | None = None) -> Problem:
    """The task's problem; its data is made once per process."""
    with torch.random.fork_rng(devices=[]):
        return TASKS[name].make(data_path)
