"""The README's commands exist, its code runs and prints what it says, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

from tests import rendered

README = (rendered.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_are_targets_of_the_makefile() -> None:
    makefile = (rendered.ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"\bmake (\w+)", README))
    assert {"book", "test"} <= commands
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


def test_the_code_prints_what_its_comment_says() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (promised,) = re.findall(r"print\(.*?\)  # (\[.*?\])", code)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=rendered.ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == promised


def test_every_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (rendered.ROOT / target).is_file()] == []
