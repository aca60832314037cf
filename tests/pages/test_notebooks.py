"""What a reader downloads runs alone, stays whole when a number is changed, and reads as plain Markdown."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupytext
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

from tests import rendered

RAW = re.compile(
    r"(?:`{3,}|:{3,})\{|^\([\w-]+\)=$|\{(?:eq|ref|numref|doc|prf:ref|cite|cite:t)\}`|^:\w+:", re.M
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def copy_of(page: str) -> nbformat.NotebookNode:
    """The reader's copy of a page, made from its source: code as in the download, no numbers for references."""
    notebook = jupytext.read(rendered.ROOT / f"{page}.md")
    repository = rendered.extension("address").address(rendered.ROOT).repository
    return rendered.extension("reader_copy").reader_copy(
        notebook, page, rendered.ROOT, lambda role, target: target, repository
    )


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing in it, and a kernel that finds the package and nothing else of the repository."""
    site, folder = tmp_path / "site", tmp_path / "folder"
    site.mkdir()
    folder.mkdir()
    (site / "llqr_sam_ref").symlink_to(rendered.ROOT / "llqr_sam_ref")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    return folder


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run it from the top; an exception in a cell is an exception here."""
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("page", rendered.NOTEBOOKS)
def test_the_download_runs_in_an_empty_folder(page: str, empty_folder: Path) -> None:
    run(copy_of(page), empty_folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("page", "old", "new"),
    [
        ("book/sam/adversary", "rho = 0.1\n", "rho = 0.4\n"),
        ("book/sam/cycle", "4.0, 0.1, 0.1", "4.0, 0.2, 0.1"),
    ],
)
def test_a_reader_changes_a_number_and_nothing_stops(
    page: str, old: str, new: str, empty_folder: Path
) -> None:
    notebook = copy_of(page)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source + "\n"]
    assert cells
    cells[0].source = (cells[0].source + "\n").replace(old, new)
    run(notebook, empty_folder)


@pytest.mark.parametrize("page", rendered.NOTEBOOKS)
def test_the_download_has_the_code_of_the_page_and_no_directive(page: str) -> None:
    copy = nbformat.read(rendered.build() / "_sources" / f"{page}.ipynb", as_version=4)
    code = [cell.source for cell in copy.cells if cell.cell_type == "code"]
    assert code == [cell.source for cell in copy_of(page).cells if cell.cell_type == "code"]
    assert not [RAW.findall(cell.source) for cell in copy.cells if RAW.search(_prose(cell))]
    assert not re.findall(r"\b(?:thm|prop|cor|cex|eq)-[a-z]+-[a-z-]+", "\n".join(map(_prose, copy.cells)))


def _prose(cell: nbformat.NotebookNode) -> str:
    return (
        ""
        if cell.cell_type == "code"
        else re.sub(r"^```python\n.*?^```$", "", cell.source, flags=re.M | re.S)
    )


PAGE = """\
---
jupytext: {{text_representation: {{extension: .md, format_name: myst, format_version: 0.13}}}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---
# Title

```{{code-cell}} ipython3
import math

from llqr_sam_ref.figures import says
```

{text}

```{{code-cell}} ipython3
:tags: [remove-cell]
{hidden}
```

```{{code-cell}} ipython3
print(math.pi, half)
```
"""


def small(hidden: str, text: str = "Text.") -> list[nbformat.NotebookNode]:
    notebook = jupytext.reads(PAGE.format(hidden=hidden, text=text), fmt="md:myst")
    make = rendered.extension("reader_copy").reader_copy
    return list(make(notebook, "book/page", rendered.ROOT, lambda role, target: f"<{role} {target}>").cells)


def test_checks_go_and_what_is_needed_stays() -> None:
    hidden = "half = 1 / 2\nother = 3\nsays(half, '0.5')\nfor x in (1, 2):\n    assert x\nassert other == 3"
    code = [cell.source for cell in small(hidden) if cell.cell_type == "code"]
    assert code == ["import math\n\n", "half = 1 / 2\nother = 3", "print(math.pi, half)"]


def test_a_hidden_cell_that_nothing_needs_goes() -> None:
    code = [cell.source for cell in small("other = 3\nsays(other, '3')") if cell.cell_type == "code"]
    assert code == ["import math\n\n", "print(math.pi, half)"]


def test_the_cell_of_imports_is_folded_and_no_other() -> None:
    hidden = [cell.metadata.get("jupyter", {}) for cell in small("other = 3") if cell.cell_type == "code"]
    assert hidden == [{"source_hidden": True}, {}]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("See {eq}`eq-a` and {prf:ref}`thm-b`.", "See <eq eq-a> and <prf:ref thm-b>."),
        ("By {cite:t}`a,b` {cite}`c`.", "By <cite a>, <cite b> (<cite c>)."),
        ("{ref}`this page <ch-a>`", "this page"),
        ("```{math}\n:label: eq-a\nx\n```", "$$\nx \\tag{<eq eq-a>}\n$$"),
        ("$$\nx\n$$ (eq-a)", "$$\nx\n\\tag{<eq eq-a>}\n$$"),
        (":::{prf:theorem} Name\n:label: thm-a\nSo.\n:::", "**<prf:ref thm-a> (Name).**\n\nSo."),
        (":::{admonition} Name\n:class: predict\nSo.\n:::", "> **Name**\n>\n> So."),
        (
            "::::{prf:proof}\n:class: dropdown\n:::{math}\nx\n:::\n::::",
            "<details><summary>Proof</summary>\n\n$$\nx\n$$\n\n</details>",
        ),
    ],
)
def test_directives_become_plain_markdown(text: str, plain: str) -> None:
    convert = rendered.extension("markdown_copy").plain_markdown
    found = convert(text, rendered.ROOT, lambda role, target: f"<{role} {target}>")
    assert found.strip() == plain


def test_long_runs_travel_with_the_notebook_that_reads_them() -> None:
    files = rendered.extension("reader_copy").carried_files(
        'from book.experiments import digits_noise, store\nstudy = store.load("digits_noise")', rendered.ROOT
    )
    assert [path.name for path in files] == ["digits_noise.py", "store.py", "digits_noise.json"]


def test_a_copy_with_an_address_installs_what_is_missing_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = rendered.extension("reader_copy").reader_copy
    notebook = jupytext.reads(PAGE.format(hidden="half = 1 / 2", text="Text."), fmt="md:myst")
    copy = make(notebook, "book/page", rendered.ROOT, lambda role, target: target, "https://example.org/a/b")
    kinds = [cell.cell_type for cell in copy.cells]
    assert kinds[:2] == ["markdown", "code"]  # the title, then one cell
    shell = InteractiveShell.instance()
    ran: list[str] = []
    monkeypatch.setattr(shell, "run_line_magic", lambda magic, line, **_: ran.append(f"{magic} {line}"))
    assert shell.run_cell(copy.cells[1].source).success
    assert ran == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert shell.run_cell(copy.cells[1].source).success
    assert ran == ['pip install --quiet "llqr-sam-ref[book] @ git+https://example.org/a/b"']
    InteractiveShell.clear_instance()


def test_a_page_with_a_notebook_can_be_run_elsewhere_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = rendered.extension("notebooks")._launch
    app = SimpleNamespace(srcdir=rendered.ROOT)
    monkeypatch.setenv("BOOK_REPOSITORY", "https://github.com/someone/book")
    context: dict[str, Any] = {"ipynb_source": "book/sam/cycle.ipynb", "header_buttons": ["download"]}
    launch(app, "book/sam/cycle", "page.html", context, None)
    group, download = context["header_buttons"]
    assert download == "download"
    assert [button["text"] for button in group["buttons"]] == ["Colab", "Binder"]
    for button in group["buttons"]:
        assert button["url"].endswith("book/sam/cycle.ipynb")
        assert (rendered.build() / button["icon"]).is_file()
    plain: dict[str, Any] = {"header_buttons": []}
    launch(app, "book/bibliography", "page.html", plain, None)
    monkeypatch.delenv("BOOK_REPOSITORY")
    launch(app, "book/sam/cycle", "page.html", context, None)
    assert plain["header_buttons"] == []
    assert len(context["header_buttons"]) == 2


def test_binder_installs_the_package_at_the_books_pins() -> None:
    lines = [
        line
        for line in (rendered.ROOT / "binder/requirements.txt").read_text("utf-8").splitlines()
        if line[0] != "#"
    ]
    assert lines[:2] == ["-c ../requirements.txt", ".[book]"]
    pins = (rendered.ROOT / "requirements.txt").read_text("utf-8")
    assert [name for name in lines[2:] if f"\n{name}==" not in pins] == []
