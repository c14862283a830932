"""`muplan solve` as its user sees it: plans of every method are used alike, progress is for terminals."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from muplan.cli.console import format_elapsed, format_progress, format_step
from muplan.plan import Plan
from muplan.planning.search.progress import Step
from muplan.planning.solvers.solver import Progress
from muplan.serde import read_document
from tests.test_cli import muplan
from tests.test_compare import WORKLOAD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with one small workload."""
    (tmp_path / "small.yaml").write_text(WORKLOAD, encoding="utf-8")
    return tmp_path


def test_a_plan_by_another_method_is_verified_and_executed(folder: Path) -> None:
    """If it fails, a plan can be used only if the exact method made it."""
    run = muplan("solve", "small.yaml", "--solver", "mu-serve", folder=folder)
    assert run.returncode == 0, run.stderr
    assert "made by mu-serve" in run.stdout
    plan = read_document(folder / "plans" / "small.json", Plan)
    assert plan.solution.solver == "mu-serve"
    assert plan.parked == ()
    assert [row.name for row in plan.baselines][-1] == "plan"
    checked = muplan("verify", "plans/small.json", folder=folder)
    assert checked.returncode == 0, checked.stdout
    executed = muplan("execute", "plans/small.json", folder=folder)
    assert executed.returncode == 0, executed.stdout + executed.stderr


def on_a_terminal(*arguments: str, folder: Path) -> tuple[str, str]:
    """Run the command line with a terminal as stderr; what it printed, and what the terminal showed."""
    controller, terminal = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(controller, 65536))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    run = subprocess.run(
        [sys.executable, "-c", "from muplan.cli.main import main; main()", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        text=True,
        check=False,
    )
    os.close(terminal)
    reader.join(timeout=10)
    os.close(controller)
    return run.stdout, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(shown).decode())


def test_a_terminal_shows_what_the_search_does_and_a_pipe_does_not(folder: Path) -> None:
    """If it fails, a long search looks dead, or a log fills with spinners."""
    arguments = ("solve", "small.yaml", "--solver", "replicate", "--frontier", "power:gpus", "--steps", "3,4")
    printed, shown = on_a_terminal(*arguments, folder=folder)
    assert "tracing power:gpus of small.yaml" in shown
    assert "0:00:0" in shown
    assert "gpus 3, 1 of 2: " in shown or "gpus 4, 2 of 2: " in shown
    piped = muplan(*arguments, folder=folder)
    assert piped.stdout == printed
    assert "tracing" not in piped.stdout + piped.stderr


def test_steps_are_told_in_words() -> None:
    """If it fails, the line on the terminal says something else than what the search told."""
    step = Step(phase="solving", scope=("exact", "1050 MHz"), number=2, total=5)
    assert format_step(step) == "exact: 1050 MHz: solving, 2 of 5"
    assert format_step(Step(phase="explaining")) == "explaining"
    known = Progress(incumbent=796.24, bound=788.75, gap=0.0094, phase="polishing")
    assert format_progress(known) == "polishing: incumbent 796.2, bound 788.8, gap 0.94 %"
    unknown = Progress(incumbent=float("inf"), bound=788.75, gap=float("inf"), phase="diving")
    assert format_progress(unknown) == "diving: incumbent none, bound 788.8, gap –"
    assert format_elapsed(3725.9) == "1:02:05"
