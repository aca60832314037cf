"""A live figure as a file of its own, in the colors of the viewer's light or dark page.

python book/figures/picture.py road > book/_static/road.svg
"""

from __future__ import annotations

import sys

from bundle import fallback

from llqr_sam_ref.figures import style


def _rules(dark: bool) -> str:
    """The palette as CSS variables."""
    rules = [f"color: {style.INK_DARK if dark else style.INK}"]
    rules.append(f"--figure-grid: {style.GRID_DARK if dark else style.GRID}")
    rules.append(f"--pst-color-background: {'#14181e' if dark else '#ffffff'}")
    for key, method in style.METHODS.items():
        name = f"--method-{key.replace('_', '-')}"
        rules.append(f"{name}: {method.dark if dark else method.light}")
        rules.append(f"{name}-text: {method.text_dark if dark else method.text_light}")
    return "; ".join(rules)


def picture(kind: str) -> str:
    """The figure's default state as a complete SVG file."""
    svg, _ = fallback(kind, {})
    light, dark = (f"svg {{ {_rules(dark)} }}" for dark in (False, True))
    head, _, rest = svg.partition(">")
    return f"{head}>\n<style>\n{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n</style>{rest}\n"


if __name__ == "__main__":
    sys.stdout.write(picture(sys.argv[1]))
