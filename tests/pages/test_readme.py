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


def test_the_code_prints_what_its_comments_say() -> None:
    """The blocks are one session; an accuracy may be off by a point elsewhere."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    promised = re.findall(r"print\(.*\)  # ([^:\n]*)", code)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=rendered.ROOT, capture_output=True, text=True, check=True
    )
    path, accuracy = run.stdout.splitlines()
    assert path == promised[0]
    assert abs(int(accuracy.rstrip("%")) - int(promised[1].rstrip("%"))) <= 1


def test_every_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (rendered.ROOT / target).is_file()] == []
