"""Every chapter was run from its source, to the end, and none shows an output that is not its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import jupytext
import pytest

from tests import rendered

HEADER = {
    "text_representation": {
        "extension": ".md",
        "format_name": "myst",
        "format_version": "0.13",
        "jupytext_version": "1.19.6",
    }
}


def test_the_makefile_builds_what_the_tests_build() -> None:
    makefile = (rendered.ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"jupyter-book {' '.join(rendered.BUILD)}" in makefile


def test_every_chapter_is_a_notebook() -> None:
    assert set(rendered.CHAPTERS) <= set(rendered.NOTEBOOKS)


@pytest.mark.parametrize("page", rendered.NOTEBOOKS)
def test_the_header_makes_the_page_a_notebook(page: str) -> None:
    """Without this header the cells would be shown and never run."""
    metadata = jupytext.reads(rendered.source(page), fmt="md:myst").metadata
    header = metadata["jupytext"]
    found = {key: str(value) for key, value in header["text_representation"].items()}
    assert found == HEADER["text_representation"]
    assert metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("page", rendered.NOTEBOOKS)
def test_every_cell_ran_and_none_failed(page: str) -> None:
    cells = [cell for cell in rendered.executed(page).cells if cell.cell_type == "code"]
    assert len(cells) == rendered.source(page).count("```{code-cell}")
    counts = [cell.execution_count for cell in cells]
    assert None not in counts
    assert counts == sorted(counts)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("page", rendered.NOTEBOOKS)
def test_the_page_shows_its_cells_and_says_what_they_were_computed_with(page: str) -> None:
    soup = rendered.html(page)
    hidden = [
        cell
        for cell in rendered.executed(page).cells
        if cell.cell_type == "code" and "remove-cell" in cell.metadata.get("tags", [])
    ]
    shown = rendered.source(page).count("```{code-cell}") - len(hidden)
    assert len(soup.select("div.cell")) == shown
    (line,) = soup.select("p.provenance")
    key = rendered.extension("freshness").source_key(rendered.ROOT)
    assert key in line.get_text()


def test_the_start_page_opens_on_the_welcome_page() -> None:
    index = rendered.build() / "index.html"
    assert 'url=book/intro.html"' in index.read_text(encoding="utf-8")
    title = rendered.html("book/intro").find("h1")
    assert title is not None
    assert "Sharpness and Geometry" in title.get_text()


def test_a_second_build_has_nothing_to_do_and_leaves_every_page() -> None:
    pages = {page: page.stat().st_mtime_ns for page in rendered.build().rglob("*.html")}
    assert any("_modules" in page.parts for page in pages)
    assert rendered.make_book() == []
    assert pages == {page: page.stat().st_mtime_ns for page in rendered.HTML.rglob("*.html")}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of everything that the execution key may depend on."""
    for name in ("llqr_sam_ref", "book/results"):
        shutil.copytree(rendered.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "Makefile"):
        shutil.copy(rendered.ROOT / name, tmp_path / name)
    return tmp_path


def _append(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["llqr_sam_ref/exact/geometry.py", "llqr_sam_ref/figures/says.py", "requirements.txt"]
)
def test_a_change_in_the_package_or_the_pins_makes_every_output_old(tree: Path, name: str) -> None:
    freshness = rendered.extension("freshness")
    before = freshness.cache_folder(tree)
    _append(tree / name)
    assert freshness.cache_folder(tree) != before


def test_a_new_module_and_a_new_stored_result_make_every_output_old(tree: Path) -> None:
    freshness = rendered.extension("freshness")
    keys = [freshness.source_key(tree)]
    for name in ("llqr_sam_ref/exact/new.py", "book/experiments/new.py", "book/results/new.json"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("1\n", encoding="utf-8")
        keys.append(freshness.source_key(tree))
    (tree / "llqr_sam_ref/exact/new.py").rename(tree / "llqr_sam_ref/exact/newer.py")
    keys.append(freshness.source_key(tree))
    assert len(set(keys)) == len(keys)


def test_what_no_cell_can_see_keeps_the_outputs(tree: Path) -> None:
    freshness = rendered.extension("freshness")
    before = freshness.source_key(tree)
    _append(tree / "Makefile")
    (tree / "llqr_sam_ref/exact/__pycache__").mkdir()
    (tree / "llqr_sam_ref/exact/__pycache__/geometry.cpython-311.pyc").write_bytes(b"\0")
    assert freshness.source_key(tree) == before
