"""Pictures and captions: the batched runs are the package's, and alignment is measured as it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from book.experiments.alignment import captions, data, study, train
from book.experiments.alignment.data import Data, Part
from book.experiments.alignment.train import Setting
from llqr_sam_ref import SAM, Monge
from llqr_sam_ref.nets.towers import contrastive_loss

STEPS = 12


def made_up() -> Data:
    """Random pictures and captions, in float64."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        return Part(
            torch.randn(count, 196, generator=generator, dtype=torch.float64),
            torch.randint(len(captions.CONTENTS), (count,), generator=generator),
        )

    shape = (len(captions.CONTENTS), len(captions.WORDINGS), captions.FEATURES)
    vectors = torch.nn.functional.normalize(
        torch.randn(shape, generator=generator, dtype=torch.float64), dim=2
    )
    return Data(part(data.TRAIN), part(300), part(300), vectors)


def by_the_package(setting: Setting, seed: int, share: float, all_data: Data) -> tuple[list[Tensor], float]:
    """One run with ``SAM`` around ``AdamW``: the weights and the mean radius."""
    model = train.towers().double()
    with torch.no_grad():
        for p, value in zip(model.parameters(), train.initial_weights(seed), strict=True):
            p.copy_(value)
    decaying = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    base = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": setting.wd}, {"params": rest, "weight_decay": 0.0}],
        lr=setting.lr,
        betas=train.BETAS,
        eps=train.EPSILON,
    )
    opt = SAM(base, setting.rho, metric=Monge(setting.monge)) if setting.rho else base
    said = data.mismatched(all_data.train.contents, share, seed)
    wording = data.wordings(data.TRAIN, seed)
    radius = 0.0
    for step, chosen in enumerate(train.batches(seed, STEPS)):
        for group in opt.param_groups:
            group["lr"] = setting.lr * train.learning_rate(step, STEPS)

        def backward(chosen: Tensor = chosen) -> None:
            opt.zero_grad()
            logits = model(all_data.train.pictures[chosen], all_data.vectors[said[chosen], wording[chosen]])
            contrastive_loss(logits, torch.arange(len(chosen))).backward()

        backward()
        if isinstance(opt, SAM):
            with opt.perturbed():
                backward()
            radius += opt.realized_radius / STEPS
        opt.step()
    return [p.detach() for p in model.parameters()], radius


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_runs_that_train_at_once_are_those_of_the_package(share: float) -> None:
    all_data = made_up()
    asked = [
        (Setting(3e-3, 4.0), 5),
        (Setting(1e-3, 1.0, 0.3, 0.0), 6),
        (Setting(3e-3, 16.0, 0.8, 1.0), 7),
    ]
    weights, loss, radius, slope = train.train(asked, share, STEPS, all_data)
    assert bool((loss > 0).all())
    assert bool((slope > 0).all())
    for run, (setting, seed) in enumerate(asked):
        expected, length = by_the_package(setting, seed, share, all_data)
        assert float(radius[run]) == pytest.approx(length, rel=1e-9, abs=1e-15)
        for found, true in zip(weights, expected, strict=True):
            torch.testing.assert_close(found[run], true, rtol=1e-8, atol=1e-11)


def test_mutual_neighbors_by_hand() -> None:
    # Four directions in a plane; the nearest of each is on the first circle 1, 0, 3, 2, on the second 1, 0, 1, 2.
    first, second = (
        torch.deg2rad(torch.tensor(a, dtype=torch.float64)) for a in ([0, 10, 90, 95], [0, 10, 40, 90])
    )
    x, y = (torch.stack((a.cos(), a.sin()), 1)[None] for a in (first, second))
    assert train.mutual(x, x, 1).item() == 1.0
    assert train.mutual(x, y, 1).item() == 0.75
    assert train.mutual(x, y, 3).item() == 1.0


def test_unrelated_vectors_share_neighbors_by_chance_only() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (
        torch.nn.functional.normalize(torch.randn(40, 101, 8, generator=generator), dim=2) for _ in range(2)
    )
    assert train.mutual(x, y, 10).mean().item() == pytest.approx(0.1, abs=0.01)


def test_recall_counts_the_captions_that_are_nearer() -> None:
    x = torch.eye(3)[None]
    found = torch.tensor([[[1.0, 0, 0], [0.9, 0.5, 0], [0, 0, 1.0]]])
    contents = torch.tensor([0, 1, 2])
    assert train.recall(x, found, contents, 1).item() == 1.0
    assert train.recall(x, found, torch.tensor([1, 0, 2]), 1).item() == pytest.approx(1 / 3)
    assert train.recall(x, found, torch.tensor([1, 0, 2]), 2).item() == 1.0


def test_a_share_of_the_pairs_is_moved_and_the_rest_is_not() -> None:
    contents = torch.arange(1000)
    assert torch.equal(data.mismatched(contents, 0.0, 3), contents)
    moved = data.mismatched(contents, 0.4, 3)
    assert int((moved != contents).sum()) == 400
    assert torch.equal(moved.sort().values, contents)
    assert not torch.equal(moved, data.mismatched(contents, 0.4, 4))


def test_one_of_each_content() -> None:
    contents = torch.randint(20, (100,), generator=torch.Generator().manual_seed(2))
    chosen = data.one_each(contents, 0)
    assert torch.equal(contents[chosen], torch.unique(contents))
    assert not torch.equal(chosen, data.one_each(contents, 1))


def test_a_number_for_every_content_and_a_sentence_for_every_wording() -> None:
    parts = [torch.tensor(list(range(count))) for count in (10, 3, 3, 3)]
    grid = torch.cartesian_prod(*parts)
    assert torch.equal(captions.number(*grid.T), torch.arange(270))
    texts = captions.sentences()
    assert len(set(texts)) == len(texts) == 270 * 4
    kind, *attributes = captions.CONTENTS[100]
    assert all(kind in text and all(a in text for a in attributes) for text in texts[400:404])


def test_every_method_has_as_many_settings() -> None:
    assert {len(grid) for grid in study.GRIDS.values()} == {72}
    assert all(len(set(grid)) == len(grid) for grid in study.GRIDS.values())


def test_settings_are_ranked_by_their_worst_seed_and_only_where_all_seeds_ran() -> None:
    a, b, c = Setting(1.0, 1.0), Setting(2.0, 1.0), Setting(3.0, 1.0)
    table = {
        a: [{"alignment": 0.5}, {"alignment": 0.1}],
        b: [{"alignment": 0.3}, {"alignment": 0.2}],
        c: [{"alignment": 0.9}],
    }
    assert study.ranked(table, "alignment") == [b, a]
    assert study.at_edge([a, b, c], b) == []
    assert study.at_edge([a, b, c], c) == ["lr"]


def test_captions_that_are_missing_or_of_other_sentences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        captions.read(tmp_path / "none.pt")
    torch.save({"vectors": torch.zeros(2, 4, 384), "encoder": "x"}, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"has the shape \(2, 4, 384\)"):
        captions.read(tmp_path / "short.pt")
