"""The Trainer of transformers on a tiny BERT with random weights: SAM, LLQR, batches that are dicts, resumed runs."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from llqr_sam_ref.optim.likelihood import Categorical
from tests.clients import loops
from tests.clients.recipes.hf_trainer import SAMTrainer

RATE = 0.01
OFTEN = LLQRConfig.sampled(every=3, basis_every=2)
LABELS = Categorical(outputs=attrgetter("logits"))
DATA = 48
BATCH = 8


def bert() -> nn.Module:
    """Two layers, no dropout: the passes of a step see the same network."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).double()


def examples() -> list[dict[str, Tensor]]:
    """Sequences of four to six tokens, padded, with their masks; the class is in the first token."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(1, 20, (DATA, 6), generator=generator)
    mask = torch.arange(6) < torch.randint(4, 7, (DATA, 1), generator=generator)
    rows = zip(words * mask, mask.long(), words[:, 0] % 3, strict=True)
    return [{"input_ids": w, "attention_mask": m, "labels": c} for w, m, c in rows]


def batches() -> list[dict[str, Tensor]]:
    data = examples()
    collate = transformers.default_data_collator
    return [collate(data[i : i + BATCH]) for i in range(0, DATA, BATCH)]


class InOrder(transformers.Trainer):
    """The examples in their order."""

    loss_is_scaled_for_ga = False  # this model's loss is its micro-batch's mean

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class SAMInOrder(InOrder, SAMTrainer):
    """The recipe."""


def train(
    model: nn.Module, opt: Any, folder: Path, resume: Path | None = None, **settings: Any
) -> dict[str, Tensor]:
    """Two epochs with a learning rate that falls linearly to 0; returns the final weights."""
    quiet: dict[str, Any] = {
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
        "num_train_epochs": 2, "per_device_train_batch_size": BATCH, "max_grad_norm": 1.0,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **{**quiet, **settings})
    kind = SAMInOrder if isinstance(opt, SAM) else InOrder
    trainer = kind(model, arguments, train_dataset=examples(), optimizers=(opt, None))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return loops.state(model)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


def their_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss that the model computes where it gets labels."""
    loss: Tensor = model(**batch).loss
    return loss


def score(outputs: Any, labels: Tensor) -> Tensor:
    """The loss of what the model returns without labels."""
    return cross_entropy(outputs.logits, labels)


def probe(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}, batch["labels"]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_trainer_is_sam(accumulate: int, tmp_path: Path) -> None:
    model = bert()
    opt = SAM(sgd(model))
    found = train(model, opt, tmp_path, gradient_accumulation_steps=accumulate)
    steps = 2 * loops.grouped(batches(), accumulate)
    rates = [RATE * (1 - t / len(steps)) for t in range(len(steps))]
    expected = loops.sam_by_hand(bert(), steps, loss=their_loss, lr=rates, clip=1.0)
    assert loops.gap(found, expected) < 1e-10
    assert opt.param_groups[0]["sam_steps"] == len(steps)


def test_the_trainer_with_a_learned_preconditioner_is_the_plain_loop(tmp_path: Path) -> None:
    """The model returns an object; labels are sampled from the logits that it holds."""
    model, other = bert(), bert()
    opt = SAM(LLQR(sgd(model), model, score, OFTEN, likelihood=LABELS))
    found = train(model, opt, tmp_path, gradient_accumulation_steps=2)
    plain = SAM(LLQR(sgd(other), other, score, OFTEN, likelihood=LABELS))
    steps = 2 * loops.grouped(batches(), 2)
    expected = loops.plain_loop(
        other,
        plain,
        steps,
        loss=their_loss,
        probe=probe,
        clip=1.0,
        scheduler=transformers.get_linear_schedule_with_warmup(plain, 0, len(steps)),
    )
    assert loops.same(found, expected)
    assert opt.param_groups[0]["llqr_refits"] == 2  # before steps 0 and 3


def optimizer(kind: str, model: nn.Module) -> Any:
    """LLQR alone needs no Trainer of ours: its probe brings the batch."""
    base = torch.optim.AdamW(model.parameters(), lr=RATE)
    if kind == "SAM":
        return SAM(base, ascent_ema=0.9)
    if kind == "LLQR":
        return LLQR(base, model, score, OFTEN, likelihood=LABELS, probe=lambda: probe(batches()[0]))
    return SAM(LLQR(base, model, score, OFTEN, likelihood=LABELS))


@pytest.mark.parametrize("kind", ["SAM", "LLQR", "LLQR+SAM"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """Stopped after four of twelve steps, in the middle of an epoch and between two refits."""
    model, resumed = bert(), bert()
    end = train(model, optimizer(kind, model), tmp_path, save_strategy="steps", save_steps=4)
    nn.init.constant_(next(resumed.parameters()), 0.3)  # whatever the new objects begin with
    opt = optimizer(kind, resumed)
    assert loops.same(train(resumed, opt, tmp_path, tmp_path / "checkpoint-4"), end)
    assert opt.param_groups[0].get("llqr_refits", 4) == 4  # before steps 0, 3, 6 and 9
