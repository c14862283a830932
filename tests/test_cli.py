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
    for command in ("profile", "solve", "compare", "execute", "verify", "model", "device", "trace"):
        assert command in run.stdout
    assert "Exit codes" in run.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("profile",),
        ("profile", "import"),
        ("solve",),
        ("compare",),
        ("execute",),
        ("verify",),
        ("model", "make"),
        ("model", "capture"),
        ("device", "show"),
        ("trace", "make"),
        ("trace", "import", "azure"),
        ("trace", "import", "burstgpt"),
        ("trace", "import", "mooncake"),
        ("trace", "import", "servegen"),
        ("trace", "convert"),
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
        (("profile", "bert-1.3b", "--device", "v100-sxm2-32gb", "--batches", "1,4097"), "4096"),
        (("solve", "workloads/missing.yaml"), "does not exist"),
        (("solve", "workloads/light.yaml", "--profiles", "nowhere"), "no such folder"),
        (("trace", "make", "workloads/light.yaml", "--duration", "0"), "--duration"),
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


def test_exploring_a_grid_leaves_the_store_alone(folder: Path) -> None:
    """A profile on a grid of one's own is saved only where -o says."""
    command = ("profile", "bert-base", "--device", "v100-sxm2-32gb", "--batches", "1,2")
    before = written(folder)
    run = muplan(*command, folder=folder)
    assert run.returncode == 0
    assert "bert-base" in run.stdout
    assert "give -o" in run.stderr
    assert written(folder) == before
    assert muplan(*command, "-o", "mine.json", folder=folder).returncode == 0
    assert written(folder) == before | {"mine.json"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("MemoryError()", "memory"),
        ("OSError(28, 'No space left on device', 'x')", "No space left on device"),
        ("RuntimeError('odd')", "failed unexpectedly"),
    ],
)
def test_what_nobody_expects_is_not_the_answer_no(error: str, expected: str, folder: Path) -> None:
    """Exit code 1 means "no"; a failure of the program or the machine exits with 3."""
    code = f"import muplan.cli.main as cli\ndef fail():\n    raise {error}\ncli.app = fail\ncli.main()"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 3
    assert expected in run.stderr
    assert run.stderr.startswith("error:")
    assert ("Traceback" in run.stderr) == ("Runtime" in error)


def test_execute_refuses_other_inputs(folder: Path) -> None:
    """A plan is executed only with the devices and profiles it was made with."""
    shutil.copytree(ROOT / "plans", folder / "plans")
    path = folder / "plans" / "quickstart.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    profiles = content["provenance"]["profiles"]
    profiles["v100-sxm2-32gb/bert-1.3b"] = "sha256:0"
    path.write_text(json.dumps(content), encoding="utf-8")
    before = written(folder)
    run = muplan("execute", "plans/quickstart.json", folder=folder)
    assert run.returncode == 2, run.stderr
    assert "v100-sxm2-32gb/bert-1.3b" in run.stderr
    assert written(folder) == before


def test_execute_of_a_trace_judges_only_what_it_asks(folder: Path) -> None:
    """A service without requests is neither met nor missed; other demand has no saving to state."""
    shutil.copytree(ROOT / "plans", folder / "plans")
    made = muplan(
        "trace", "make", "workloads/quickstart.yaml", "--duration", "90", "-o", "t.csv", folder=folder
    )
    assert made.returncode == 0, made.stderr
    path = folder / "t.csv"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if "photos" not in line]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    run = muplan("execute", "plans/quickstart.json", "--trace", "t.csv", folder=folder)
    assert run.returncode in (0, 1), run.stderr
    assert "of 3 services" in run.stdout
    assert next(line for line in run.stdout.splitlines() if "photos" in line).count("–") == 4
    assert "over this run" not in run.stdout


def test_overload_is_answered_with_no(folder: Path) -> None:
    """An infeasible workload exits with 1, names the conflicting demands, and leaves no plan."""
    before = written(folder)
    run = muplan("solve", "workloads/overload.yaml", folder=folder)
    assert run.returncode == 1, run.stderr
    assert "infeasible" in run.stdout
    assert written(folder) == before
