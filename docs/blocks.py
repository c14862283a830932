"""The executable blocks of the documentation.

A block fenced as ``console`` holds commands, each after ``$ ``, and below each what it prints
(stdout and stderr). A block fenced as ``python`` is a program. The blocks of a page run in order in
one folder that holds copies of workloads/, profiles/ and plans/.

``python -m docs.blocks`` runs every page and writes what the commands print now into it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/quickstart.md", "docs/formats.md")
FENCE = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = ("make ", "git ", "cd ", "python3 -m venv", "pip ")
"""Commands that set a machine up; the reader runs them, the tests do not."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its text, and where the text stands in the page."""

    language: str
    text: str
    start: int
    stop: int


def blocks(page: str) -> list[Block]:
    """The executable blocks of a page."""
    return [Block(m.group(1), m.group(2), m.start(2), m.end(2)) for m in FENCE.finditer(page)]


def run_block(block: Block, folder: Path) -> str:
    """Run a block in ``folder``; the text that it should have."""
    if block.language == "python":
        _run([sys.executable, "-c", block.text], folder, check=True)
        return block.text
    parts = []
    for command in re.findall(r"^\$ (.*(?:\\\n.*)*)$", block.text, re.MULTILINE):
        if command.startswith(NOT_RUN):
            parts.append(f"$ {command}\n")
            continue
        parts.append(f"$ {command}\n{_run(['bash', '-c', command], folder)}")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _run(command: list[str], folder: Path, *, check: bool = False) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    run = subprocess.run(  # noqa: S603 - the project's own documentation
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and run.returncode:
        raise RuntimeError(run.stdout)
    return "\n".join(line.rstrip() for line in run.stdout.splitlines()) + "\n" if run.stdout else ""


def make_folder(parent: Path) -> Path:
    """A folder as a reader has it: workloads, profiles and plans, free to be changed."""
    for name in ("workloads", "profiles", "plans"):
        shutil.copytree(ROOT / name, parent / name)
    return parent


def refreshed(page: str, folder: Path) -> str:
    """A page with the output of every command as it is now."""
    text, position = "", 0
    for block in blocks(page):
        text += page[position : block.start] + run_block(block, folder)
        position = block.stop
    return text + page[position:]


def main() -> None:
    """Refresh every page."""
    for name in PAGES:
        path = ROOT / name
        if not path.exists():
            continue
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as temporary:
            text = refreshed(page, make_folder(Path(temporary)))
        if text != page:
            path.write_text(text, encoding="utf-8")
            print(f"written: {name}")


if __name__ == "__main__":
    main()
