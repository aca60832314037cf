"""What CONTRIBUTING says how to add, added as it says: a metric, a structure, a method of the command, a chapter."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import pytest
import torch
from nbclient import NotebookClient
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from llqr_sam_ref.config import CHOICES
from llqr_sam_ref.optim.structures import STRUCTURES, make_structure
from llqr_sam_ref.train import configured, train
from llqr_sam_ref.train.methods import METHODS
from tests import rendered
from tests.pages import prose

TEXT = (rendered.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's code, run from top to bottom as one module; its registrations are taken back."""
    monkeypatch.setitem(CHOICES, "structure", CHOICES["structure"])
    tables: list[Any] = [STRUCTURES, METHODS]
    before = [dict(table) for table in tables]
    module = ModuleType("contributed")
    monkeypatch.setitem(sys.modules, "contributed", module)
    try:
        for block in PYTHON:
            exec(block, vars(module))
        yield module
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)


def setting() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.randn(32, 4).double(), torch.randint(3, (32,))


def test_the_metric(page: ModuleType) -> None:
    """SAM perturbs by it: epsilon along v (|g| + floor)^-power, and its dual length is rho."""
    model, x, y = setting()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, metric=page.Power(0.5))
    cross_entropy(model(x), y).backward()
    before = [p.detach().clone() for p in model.parameters()]
    g = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with opt.perturbed():
        epsilon = [p.detach() - w for p, w in zip(model.parameters(), before, strict=True)]
    way = [v / (v.abs() + 1e-3) ** 0.5 for v in g]
    length = sum((a * b).sum() for a, b in zip(g, way, strict=True)) ** 0.5
    for e, d in zip(epsilon, way, strict=True):
        torch.testing.assert_close(e, 0.05 * d / length, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("closed", [True, False])
def test_the_structure(page: ModuleType, closed: bool) -> None:
    """LLQR trains with it, and it is what its dense matrix says."""
    structure: Any = make_structure("rows", (3, 2))
    arrays = {"d": torch.tensor([[1.0, 2.0, 3.0]]).double()}
    X = torch.randn(1, 3, 2).double()
    dense = structure.to_dense(arrays)[0]
    torch.testing.assert_close(structure.apply(arrays, X).flatten(), dense @ X.flatten())
    torch.testing.assert_close(
        structure.squared_distance_to_identity(arrays)[0], (dense - torch.eye(6).double()).square().sum()
    )
    model, x, y = setting()
    config = (
        LLQRConfig(structure="rows", every=2, probes=4)
        if closed
        else LLQRConfig.published(structure="rows", every=2, lr=0.02)
    )
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    opt = LLQR(base, model, nn.CrossEntropyLoss(), config, probe=lambda: (x, y))
    losses = []
    for _ in range(20):
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(block.distance > 0 for block in opt.report())


def test_the_method(page: ModuleType, tmp_path: Path) -> None:
    """The training command knows it, with its metric and its settings."""
    settings: dict[str, Any] = {"epochs": 1, "train_examples": 64, "progress": False, "tensorboard": False}
    config = configured("digits-mlp", "power-sam").replace(
        alpha=0.5, rho=0.02, sharpness_examples=0, **settings
    )
    record = train(config, tmp_path)
    assert record["config"]["optimizer"] == "power-sam"
    assert record["metrics"][-1]["radius"] > 0


def test_the_chapter(tmp_path: Path) -> None:
    """The page is a notebook with the whole header, runs, and its decimals are computed in it."""
    (text,) = re.findall(r"^````md\n(.*?)^````$", TEXT, re.DOTALL | re.MULTILINE)
    header = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    assert header is not None
    assert rendered.source(rendered.CHAPTERS[0]).startswith(header[0])
    notebook = jupytext.reads(text, fmt="md:myst")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert "use_book_style()" in first.source
    assert [number for number in prose.decimals(prose.without_code(text)) if number not in last.source] == []
