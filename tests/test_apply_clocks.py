"""``muplan profile --measure --apply-clocks`` from the outside, on the C double of NVML.

If these fail, a command that is stopped or killed may leave a GPU at a clock that it set, or say that it
wrote what it did not.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from muplan.hardware.way import may_change_clocks
from tests.nvml_state import State, build
from tests.tiny_graphs import tiny_encoder

pytest.importorskip("pynvml")

RESTORED_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu(library: Path, tmp_path: Path) -> State:
    return State(tmp_path / "gpu", library)


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(tiny_encoder().model_dump_json(exclude_none=True), encoding="utf-8")
    return str(path)


@contextmanager
def measuring(gpu: State, model: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, as soon as it has set a clock and kept a point."""
    side = folder / "out.points.jsonl"
    command = [sys.executable, "-m", "tests.command_on_double", "profile", model, "--measure"]
    with subprocess.Popen(
        [*command, "--apply-clocks", "-o", str(folder / "out.json")],
        env=gpu.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline_s = time.monotonic() + 60
            while not (side.exists() and side.read_text(encoding="utf-8").count("\n") > 1):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
            assert gpu.get("locked_mhz") == 600
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("SIGKILL", -9, ""), ("SIGINT", 3, "error: Interrupted after ")],
)
def test_a_stopped_command_restores_the_clock_and_keeps_its_points(
    gpu: State, model: str, tmp_path: Path, name: str, code: int, said: str
) -> None:
    """Within two seconds, kill -9 included; no profile is written, and what was measured is kept."""
    with measuring(gpu, model, tmp_path) as process:
        begin_s = time.monotonic()
        process.send_signal(getattr(signal, name))
        while gpu.get("locked_mhz") and time.monotonic() - begin_s < 10:
            time.sleep(0.01)
        assert time.monotonic() - begin_s < RESTORED_WITHIN_S
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (code, "")
    assert said in errors
    assert (gpu.get("locked_mhz"), gpu.get("num_resets")) == (0, 1)
    assert not (tmp_path / "out.json").exists()
    assert (tmp_path / "out.points.jsonl").exists()


WHOLE = """\
What --apply-clocks would do
┏━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ what              ┃ how                                                                         ┃
┡━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ GPU               │ NVIDIA H200, measured as h200-sxm5-141gb                                    │
│ through           │ nvml                                                                        │
│ clocks set        │ 600 MHz, 750 MHz, 1215 MHz, 1980 MHz                                        │
│ further clocks    │ up to 8 in all, while one left out is foretold worse than 3 %               │
│ restored to       │ what the driver chooses (locked clocks are reset)                           │
│ restored by       │ muplan on leaving, however it leaves; if it is killed, its guardian process │
│ stands against it │ nothing                                                                     │
└───────────────────┴─────────────────────────────────────────────────────────────────────────────┘
"""


def dry_run(gpu: State, model: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "muplan", "profile", model, "--measure", "--apply-clocks", "--dry-run"]
    return subprocess.run([*command, *options], env=gpu.environment, capture_output=True, text=True)


@pytest.mark.skipif(not may_change_clocks(), reason="this process has no rights to change clocks")
def test_a_dry_runs_whole_output(gpu: State, model: str) -> None:
    run = dry_run(gpu, model)
    assert (run.returncode, run.stdout, run.stderr) == (0, WHOLE, "")
    assert gpu.get("num_locks") == gpu.get("num_resets") == 0


def test_a_dry_run_says_no_where_it_would_be_refused(gpu: State, model: str) -> None:
    """A divided GPU, in JSON for a program; the exit code is the answer."""
    gpu.set(partitioned=1)
    run = dry_run(gpu, model, "--json")
    assert run.returncode == 1
    assert any("(MIG)" in objection for objection in json.loads(run.stdout)["objections"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--apply-clocks", "--device", "h200-sxm5-141gb"], "--dry-run goes with --apply-clocks, and that"),
        (["--measure", "--dry-run"], "--dry-run goes with --apply-clocks, and that"),
        (["--measure", "--apply-clocks", "--dry-run", "--on", "cpu"], "cpu: there is no clock to set."),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str, model: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "muplan", "profile", model, *options], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
