"""The command line as a user meets it: exit codes, messages, files written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def muplan(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-c", "from muplan.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: workloads, and nothing else."""
    shutil.copytree(ROOT / "workloads", tmp_path / "workloads")
    return tmp_path


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_help_lists_every_command(folder: Path) -> None:
    run = muplan("--help", folder=folder)
    assert run.returncode == 0
    for command in ("profile", "solve", "execute", "verify", "model", "device", "trace"):
        assert command in run.stdout
    assert "Exit codes" in run.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("profile",),
        ("solve",),
        ("execute",),
        ("verify",),
        ("model", "make"),
        ("device", "show"),
        ("trace", "make"),
        ("trace", "import", "azure"),
        ("trace", "describe"),
    ],
    ids=" ".join,
)
def test_every_command_has_help(command: tuple[str, ...], folder: Path) -> None:
    run = muplan(*command, "--help", folder=folder)
    assert run.returncode == 0
    assert "Usage" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("profile", "bert-1.3", "--device", "v100-sxm2-32gb"), "bert-1.3b"),
        (("profile", "bert-1.3b", "--device", "v100"), "v100-sxm2-32gb"),
        (("profile", "bert-1.3b", "--device", "v100-sxm2-32gb", "--clocks", "1,2"), "MHz"),
        (("profile", "bert-1.3b", "--device", "v100-sxm2-32gb", "--batches", "a"), "--batches"),
        (("solve", "workloads/missing.yaml"), "does not exist"),
        (("execute", "plans/missing.json"), "does not exist"),
        (("verify", "workloads"), "holds no plan"),
        (("trace", "describe", "workloads/light.yaml"), "workloads/light.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_named_and_nothing_is_written(
    arguments: tuple[str, ...], expected: str, folder: Path
) -> None:
    before = written(folder)
    run = muplan(*arguments, folder=folder)
    assert run.returncode == 2, run.stderr
    assert expected in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert written(folder) == before


def test_profile_prints_json_that_is_the_file(folder: Path) -> None:
    device = ("--device", "v100-sxm2-32gb")
    run = muplan("profile", "bert-base", *device, "--json", "-o", "p.json", folder=folder)
    assert run.returncode == 0
    assert run.stdout == (folder / "p.json").read_text(encoding="utf-8")
    assert json.loads(run.stdout)["provenance"]["method"] == "modelled"


def test_overload_is_answered_with_no(folder: Path) -> None:
    """An infeasible workload exits with 1, names the conflicting demands, and leaves no plan."""
    before = written(folder)
    run = muplan("solve", "workloads/overload.yaml", folder=folder)
    assert run.returncode == 1, run.stderr
    assert "infeasible" in run.stdout
    assert written(folder) == before
