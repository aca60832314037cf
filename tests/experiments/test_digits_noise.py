"""The study of wrong labels measures what it says; that its runs are the package's, its page checks."""

from __future__ import annotations

import torch
from torch import Tensor

from book.experiments import digits_noise as study

SHAPES = [(5, 4), (5,), (3, 5), (3,)]  # 4-5-3, 43 weights


def _flat(vector: Tensor, data: study.Data) -> Tensor:
    weights = []
    for shape in SHAPES:
        size = torch.Size(shape).numel()
        weights.append(vector[:size].view(1, *shape))
        vector = vector[size:]
    return study.losses(weights, *data)[0]


def test_the_top_eigenvalue_is_that_of_the_whole_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    inputs = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 30), generator=generator)
    found, residual = study.top_eigenvalue(weights, study.Data(inputs, labels))
    for run in range(2):
        data = study.Data(inputs[run : run + 1], labels[run : run + 1])
        vector = torch.cat([w[run].flatten() for w in weights])
        H = torch.autograd.functional.hessian(lambda v, data=data: _flat(v, data), vector)  # type: ignore[no-untyped-call]
        true = torch.linalg.eigvalsh(H)[-1]
        assert abs(found[run] - true) <= 1e-9 * true
        assert abs(found[run] - true) <= residual[run] + 1e-12
    early, bound = study.top_eigenvalue(weights, study.Data(inputs, labels), steps=3)
    assert bool((early <= found + 1e-12).all())
    assert bool((bound > residual).all())


def test_exactly_400_labels_are_wrong_and_every_seed_has_its_own() -> None:
    right = study.splits()[0].labels
    first, again, other = (study.wrong_labels(right, seed) for seed in (7, 7, 8))
    assert int((first != right).sum()) == int((other != right).sum()) == study.WRONG
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_three_sets_share_no_example() -> None:
    parts = study.splits()
    assert [len(part.labels) for part in parts] == [1000, 300, 497]
    images = torch.cat([part.inputs for part in parts])
    assert len(torch.unique(images, dim=0)) == len(images)


def test_an_epoch_visits_no_example_twice() -> None:
    order = study.batches(5)
    assert order.shape == (study.STEPS, study.BATCH)
    epoch = order[: study.TRAIN // study.BATCH].flatten()
    assert len(set(epoch.tolist())) == len(epoch)
