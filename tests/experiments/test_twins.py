"""Twins compute the same, and what methods make of them is what the theorems say."""

from __future__ import annotations

import pytest
import torch

from book.experiments import twins


@pytest.mark.parametrize("kind", twins.TWINS)
def test_twins_have_the_same_outputs_and_other_weights(kind: str) -> None:
    model, (inputs, _) = twins.network(3), twins.batch(3)
    other = twins.twin(model, kind, seed=1)
    torch.testing.assert_close(other(inputs), model(inputs), rtol=0, atol=1e-13)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_asking_and_stepping_leave_the_model_alone_and_move_the_function() -> None:
    model, data = twins.network(0), twins.batch(0)
    weights = [p.detach().clone() for p in model.parameters()]
    before = model(data[0]).detach()
    for metric in twins.METRICS.values():
        assert (twins.asked(model, data, metric) - before).norm() > 0.01
    for make in twins.STEPPERS.values():
        assert (twins.stepped(model, data, make) - before).norm() > 0.01
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_every_method_is_blind_to_order_and_asam_alone_to_scale() -> None:
    found = twins.changes(seed=2)
    alike = {(name, kind) for name, row in found.items() for kind, share in row.items() if share < twins.SAME}
    order, *scales = twins.TWINS
    assert alike == {(name, order) for name in found} | {("ASAM", kind) for kind in scales}
    assert all(share < twins.SAME or share > 0.01 for row in found.values() for share in row.values())


def test_llqr_asks_by_a_map_that_it_has_learned() -> None:
    model, data = twins.network(0), twins.batch(0)
    sam, ours = (twins.asked(model, data, twins.METRICS[name]) for name in ("SAM", "LLQR+SAM"))
    assert (sam - ours).norm() > 0.1 * (sam - model(data[0])).norm()
