"""Prose never carries a number that the build does not check."""

from __future__ import annotations

import re

import pytest

from tests import rendered
from tests.pages import prose


@pytest.mark.parametrize("page", [page for page in rendered.PAGES if not page.startswith("book/reference")])
def test_every_decimal_in_the_prose_was_computed_on_the_page(page: str) -> None:
    known = prose.computed(page)
    unchecked = sorted({number for number in prose.said(page) if number not in known})
    assert not unchecked, f"{page}: no cell and no output of the page has {', '.join(unchecked)}"


SAMPLE = """\
---
jupytext: {version: 1.23}
---
# Title 1.01

Text 1.11, $x = -1.12$, `1.13` and **1.14**; 12,345.15 and $1{,}200.16$; between 1.17--1.18.

```{math}
:label: eq-1.19
y = 1.20 \\cdot 10^{-3}
```

:::{admonition} Title 1.21
:class: predict
| a | 1.22 |
| --- | --- |
:::

```{live-figure} cycle
:eta: 1.23
Caption 1.24.
```

```{code-cell} ipython3
x = 9.91
```

```{literalinclude} ../9.92.py
:pyobject: f
```

A paper, arXiv:2010.01412, {cite}`key9.93`, {eq}`eq-9.94`, [link](http://x.org/9.95),
Theorem 6.12, version 2.13.0, 0.5.
"""


def test_the_reader_of_prose_sees_text_math_tables_and_captions_and_nothing_else() -> None:
    found = prose.decimals(prose.without_code(SAMPLE))
    expected = ["1.01", "1.11", "1.12", "1.13", "1.14", "12345.15", "1200.16", "1.17", "1.18"]
    assert found == [*expected, "1.20", "1.21", "1.22", "1.24"]


@pytest.mark.parametrize("page", rendered.PAGES)
def test_no_page_has_a_line_that_waits_for_its_text(page: str) -> None:
    text = prose.without_code((rendered.ROOT / f"{page}.md").read_text(encoding="utf-8"))
    waiting = [line for line in text.splitlines() if re.fullmatch(r"\s*[A-Z][A-Z_ ]{3,}\s*", line)]
    assert not waiting, f"{page}: {', '.join(waiting)}"
