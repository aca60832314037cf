"""What builds on what: read off sources as a reader would, shown under titles and on the map."""

from __future__ import annotations

from tests import rendered

USES = rendered.extension("uses")
FIRST = """(ch-first)=
# First

```{prf:theorem} One
:label: thm-one

$$
a = b
$$ (eq-one)
```

```{prf:proof}
:class: dropdown
By hand.
```

```{math}
:label: eq-loose
c = d
```
"""
SECOND = """(ch-second)=
# Second

```{admonition} Borrowed results
:class: dropdown
From {ref}`ch-first`: a word.
```

````{prf:corollary} Two
:label: cor-two

Of {eq}`eq-one`.
````

````{prf:proof}
From {prf:ref}`cor-two` itself and {eq}`eq-loose`.
````
"""
THIRD = """# Third

No more than {ref}`the first <ch-first>`.

## Common mistakes

To take it for {ref}`ch-second`.
"""


def test_uses_are_read_off_statements_proofs_and_borrowed_results() -> None:
    found = USES.read({"first": FIRST, "second": SECOND, "third": THIRD})
    assert found.results["thm-one"].uses == ()
    assert found.results["cor-two"].uses == ("thm-one",)
    assert found.chapters == {"first": {}, "second": {"first": 3}, "third": {"first": 1}}


def test_every_use_is_on_the_map() -> None:
    book = USES.of_book(rendered.ROOT)
    page = rendered.html("book/reference/map")
    rows = page.select("table.result-map tbody tr")
    used = {name for result in book.results.values() for name in result.uses}
    assert len(rows) == sum(bool(result.uses) or label in used for label, result in book.results.items())
    targets = [[str(link["href"]).partition("#")[2] for link in row.select("a")] for row in rows]
    assert {name for row in targets for name in row} <= set(book.results)
    assert sum(len(row) - 1 for row in targets) == 2 * sum(
        len(result.uses) for result in book.results.values()
    )
    assert len(page.select("svg.figure-svg path")) == sum(len(counts) for counts in book.chapters.values())


def test_no_result_uses_one_that_stands_on_it() -> None:
    results = USES.of_book(rendered.ROOT).results
    done: set[str] = set()

    def follow(label: str, path: tuple[str, ...]) -> None:
        assert label not in path, " uses ".join((*path, label))
        if label not in done:
            for used in results[label].uses:
                follow(used, (*path, label))
            done.add(label)

    for label in results:
        follow(label, ())


def test_the_line_under_a_title_says_how_long_and_links_both_ways() -> None:
    book = USES.of_book(rendered.ROOT)
    for page in rendered.CHAPTERS:
        line = rendered.html(page).select_one("p.chapter-line")
        assert line is not None
        assert line.text.split()[1] == "minutes."
        before = len(book.chapters[page])
        after = sum(page in counts for counts in book.chapters.values())
        assert len(line.select("a")) == before + after
