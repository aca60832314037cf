"""What the workflows call exists, and the package that a release ships works without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from book.editions import pdf
from llqr_sam_ref import __version__
from tests import rendered

FOLDER = rendered.ROOT / ".github" / "workflows"
BLOCKED = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path(sys.argv[1])"


def workflow(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / f"{name}.yml").read_text("utf-8")))


def commands(name: str) -> str:
    steps = [step for job in workflow(name)["jobs"].values() for step in job["steps"]]
    return "\n".join(step["run"] for step in steps if "run" in step)


def test_the_exact_layer_needs_no_torch_and_the_rest_says_what_brings_it() -> None:
    script = str(rendered.ROOT / ".ci" / "without_torch.py")
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, script],
        cwd=rendered.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert __version__ in run.stdout


def test_that_check_fails_where_torch_is() -> None:
    script = str(rendered.ROOT / ".ci" / "without_torch.py")
    run = subprocess.run(
        [sys.executable, script], cwd=rendered.ROOT, capture_output=True, text=True, check=False
    )
    assert "came without torch" in run.stderr


@pytest.mark.parametrize("name", ["ci", "pages", "release"])
def test_every_file_of_the_repository_that_a_workflow_names_is_there(name: str) -> None:
    text = commands(name)
    for path in re.findall(r"(?<![\w/$}])(\.ci/[\w.]+|CHANGELOG\.md|book)(?= |$|\")", text, re.MULTILINE):
        assert (rendered.ROOT / path).exists(), path
    assert set(re.findall(r"_build/pdf/([\w.-]+)", text)) <= {pdf.NAME}


def test_pages_publishes_what_ci_built() -> None:
    uploads = [
        step for step in workflow("ci")["jobs"]["book-and-tests"]["steps"] if "upload" in step.get("uses", "")
    ]
    (artifact,) = [step["with"] for step in uploads]
    assert artifact == {"name": "book", "path": "_build/html"}
    pages = workflow("pages")
    trigger = next(
        value for key, value in pages.items() if key not in {"name", "concurrency", "jobs"}
    )  # "on" is true
    assert trigger["workflow_run"]["workflows"] == [workflow("ci")["name"]]
    for job in pages["jobs"].values():
        (fetch,) = [step["with"] for step in job["steps"] if "download-artifact" in step.get("uses", "")]
        assert fetch["name"] == artifact["name"]


def test_the_branch_of_the_notebooks_is_the_one_that_the_buttons_name() -> None:
    branch = rendered.extension("address").NOTEBOOKS
    assert f"git checkout -B {branch}\n" in commands("pages")
    assert commands("pages").endswith(f"git push --force origin {branch}\n")


def test_one_version_everywhere() -> None:
    cff = yaml.safe_load((rendered.ROOT / "CITATION.cff").read_text("utf-8"))
    declared = re.search(
        r'^version = "(.+)"', (rendered.ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE
    )
    assert declared is not None
    assert cff["version"] == declared[1] == __version__
