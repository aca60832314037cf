"""Numbers in prose are checked when the page is built."""

from __future__ import annotations

from decimal import Decimal


def says(value: float, text: str) -> None:
    """Assert that ``value``, rounded to as many digits as ``text`` prints, reads ``text``.

    Args:
        value: the number as computed on the page.
        text: the number as the prose prints it, for example ``"1.5070"``, ``"-0.5"`` or ``"1.8e-04"``.

    Raises:
        AssertionError: the prose and the computation disagree.
    """
    plain = text.replace("\N{MINUS SIGN}", "-").replace(",", "")
    if "e" in plain.lower():
        digits = len(plain.lower().split("e")[0].partition(".")[2])
        printed = f"{value:.{digits}e}"
        agree = Decimal(printed) == Decimal(plain)
    else:
        digits = len(plain.partition(".")[2])
        printed = f"{value:.{digits}f}"
        agree = Decimal(printed) == Decimal(plain)  # "-0.00" equals "0.00"
    if not agree:
        raise AssertionError(f"the page says {text}, the computation gives {printed}")
