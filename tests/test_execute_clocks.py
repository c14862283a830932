"""``muplan execute --apply-clocks`` from the outside, on the C double of NVML.

If these fail, a run that is stopped or killed may leave a GPU at a clock that it set, run at another clock
than the plan's, or tell a modelled power as measured.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muplan.hardware.way import may_change_clocks
from tests.nvml_state import State, build
from tests.test_cli import muplan
from tests.tiny_graphs import tiny_encoder

pytest.importorskip("pynvml")

RESTORED_WITHIN_S = 2.0
WORKLOAD = """kind: workload
schema_version: 1
name: one
fleet:
  pools:
    - {name: h200, device: h200-sxm5-141gb, num_gpus: 1, gpus_per_node: 1}
services:
  - {name: tiny, model: tiny.json, slo: {latency_s: 0.5, attainment: 0.9}, demand: {rate_rps: 20}}
simulation: {duration_s: 20, warm_up_s: 0.5, replications: 2}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu(library: Path, tmp_path: Path) -> State:
    return State(tmp_path / "gpu", library)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of one GPU at 600 MHz, the lowest clock of its profile."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny.json").write_text(tiny_encoder().model_dump_json(exclude_none=True), encoding="utf-8")
    (folder / "workload.yaml").write_text(WORKLOAD, encoding="utf-8")
    made = muplan("solve", "workload.yaml", "-o", "plan.json", "--solver", "uniform-clock", folder=folder)
    assert made.returncode == 0, made.stderr
    document = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    stages = document["deployment"]["groups"][0]["stages"]
    assert stages == [{"gpus": ["h200/0/0"], "clock_mhz": 600}]
    return folder / "plan.json"


def started(gpu: State, plan: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.execute_on_double", "execute", str(plan), "--backend", "torch"]
    return subprocess.Popen(
        [*command, "-o", str(out), *options],
        env=gpu.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGKILL", -9, ""), ("SIGINT", 3, "partial"), ("SIGTERM", 143, "")]
)
def test_a_stopped_run_restores_the_clock(
    gpu: State, plan: Path, tmp_path: Path, name: str, code: int, said: str
) -> None:
    """Within two seconds, kill -9 included; what Ctrl-C broke off is written as partial."""
    with started(gpu, plan, tmp_path / "run.json", "--apply-clocks", "--duration", "60") as process:
        deadline_s = time.monotonic() + 60
        while gpu.get("locked_mhz") != 600:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        time.sleep(1.5)  # the run goes on, beyond its warm-up
        begin_s = time.monotonic()
        process.send_signal(getattr(signal, name))
        while gpu.get("locked_mhz") and time.monotonic() - begin_s < 10:
            time.sleep(0.01)
        assert time.monotonic() - begin_s < RESTORED_WITHIN_S
        output, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert said in output
    assert gpu.get("num_resets") == 1
    assert (tmp_path / "run.json").exists() == (name == "SIGINT")


def test_a_run_is_at_the_plans_clock_and_its_power_measured(gpu: State, plan: Path, tmp_path: Path) -> None:
    """The counter's 300 W, not the profile's power; the clock is restored once, at the end."""
    with started(
        gpu,
        plan,
        tmp_path / "run.json",
        "--apply-clocks",
        "--duration",
        "4",
        "--controller",
        "miad",
        "--plot",
        str(tmp_path / "run.png"),
    ) as process:
        output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["label"] == run["power_label"] == "measured"
    assert run["power_w"]["observed"] == pytest.approx(300.0, rel=0.02)
    assert run["real_time"]["sets_clocks"] is True
    assert "Power (this run's measured" in output
    assert "Clocks were not set" not in output
    assert "No picture: power was measured as energy, not over time." in errors
    assert (gpu.get("locked_mhz"), gpu.get("num_resets")) == (0, 1)


def test_a_run_without_the_option_changes_no_clock(gpu: State, plan: Path, tmp_path: Path) -> None:
    with started(gpu, plan, tmp_path / "run.json", "--duration", "4") as process:
        output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "Clocks were not set" in output
    assert "Power (this run's measured" in output
    assert gpu.get("num_locks") == gpu.get("num_resets") == 0


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"denied": 1}, "Insufficient Permissions"),
        ({"partitioned": 1}, "MIG"),
        ({"num_processes": 1}, "is in use by 1 other process"),
    ],
)
def test_a_gpu_that_is_not_to_be_had_is_refused(
    gpu: State, plan: Path, tmp_path: Path, state: dict[str, int], said: str
) -> None:
    """Exit 3, with what is the matter; no clock is set, nothing is written."""
    gpu.set(**state)
    with started(gpu, plan, tmp_path / "run.json", "--apply-clocks", "--duration", "4") as process:
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 3
    assert said in errors
    assert "Restore it as root" not in errors
    assert gpu.get("locked_mhz") == 0
    assert not (tmp_path / "run.json").exists()


WHOLE = """\
What --apply-clocks would do
┏━━━━━━━━━━━━━━━━━┳━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━┓
┃ GPU of the plan ┃ here ┃ which is    ┃   clock ┃
┡━━━━━━━━━━━━━━━━━╇━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━┩
│ h200/0/0        │    0 │ NVIDIA H200 │ 600 MHz │
└─────────────────┴──────┴─────────────┴─────────┘
Through nvml; then the clock is moved by miad.
Restored to what the driver chooses (locked clocks are reset),
by muplan however it leaves; if it is killed, by its guardians.
"""


def dry_run(gpu: State, plan: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "muplan", "execute", str(plan), "--backend", "torch", "--apply-clocks"]
    return subprocess.run(
        [*command, "--dry-run", *options], env=gpu.environment, capture_output=True, text=True
    )


@pytest.mark.skipif(not may_change_clocks(), reason="this process has no rights to change clocks")
def test_a_dry_runs_whole_output(gpu: State, plan: Path) -> None:
    run = dry_run(gpu, plan, "--controller", "miad")
    assert (run.returncode, run.stdout, run.stderr) == (0, WHOLE, "")
    assert gpu.get("num_locks") == gpu.get("num_resets") == 0


def test_a_dry_run_says_no_where_it_would_be_refused(gpu: State, plan: Path) -> None:
    gpu.set(partitioned=1)
    run = dry_run(gpu, plan, "--json")
    assert run.returncode == 1
    assert any("(MIG)" in objection for objection in json.loads(run.stdout)["objections"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--apply-clocks"], "--apply-clocks goes with --backend torch alone."),
        (["--shared"], "--shared goes with --backend torch alone."),
        (["--backend", "torch", "--dry-run"], "--dry-run says what --apply-clocks would do."),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str, plan: Path) -> None:
    run = muplan("execute", str(plan), *options, folder=plan.parent)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
