"""Clocks of a GPU are restored whatever becomes of the process that changed them.

Everything here runs the real binding against the C double of NVML, in processes of its own; zeusd is a
server on a socket. If these fail, a killed measurement may leave a GPU at a low clock for whoever comes next.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from muplan.errors import DeviceError, PermissionDeniedError
from muplan.hardware.zeusd import ZeusdActuator
from tests.nvml_state import State, build

pytest.importorskip("pynvml")

RESTORED_WITHIN_S = 2.0
HOLD = """
import os, sys, time
from muplan.hardware.lease import lease_clock
from muplan.hardware.way import Way
with lease_clock(Way.NVML, 0) as lease:
    {body}
    sys.stdout.write("held\\n"); sys.stdout.flush()
    {then}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu(library: Path, tmp_path: Path) -> State:
    return State(tmp_path / "gpu", library)


def python(gpu: State, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=gpu.environment, capture_output=True, text=True, timeout=60
    )


@contextmanager
def holder(
    gpu: State, body: str = "lease.lock_clock(1200)", then: str = "time.sleep(60)"
) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lease and has done ``body``."""
    code = HOLD.format(body=body, then=then)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=gpu.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n", process.stderr and process.stderr.read()
            yield process
        finally:
            process.kill()


def wait_until_restored(gpu: State) -> float:
    """Seconds until the clock is the driver's again."""
    begin_s = time.monotonic()
    while gpu.get("locked_mhz") and time.monotonic() - begin_s < 10:
        time.sleep(0.01)
    assert gpu.get("locked_mhz") == 0
    return time.monotonic() - begin_s


# --- the lease -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "code"), [("pass", 0), ("raise ValueError('told')", 1), ("sys.exit(7)", 7)], ids=str
)
def test_leaving_restores_the_clock_once(gpu: State, then: str, code: int) -> None:
    """At the end, by an exception, by an exit: one reset, by the holder; the guardian has nothing to do."""
    run = python(gpu, HOLD.format(body="lease.lock_clock(1200); lease.lock_clock(1500)", then=then))
    assert run.returncode == code, run.stderr
    assert (gpu.get("locked_mhz"), gpu.get("num_locks"), gpu.get("num_resets")) == (0, 2, 1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_a_signal_restores_the_clock_within_two_seconds(gpu: State, name: str) -> None:
    """SIGTERM and Ctrl-C leave the ``with``; what Python does not handle, and kill -9, the guardian sees."""
    with holder(gpu) as process:
        assert gpu.get("locked_mhz") == 1200
        process.send_signal(getattr(signal, name))
        assert wait_until_restored(gpu) < RESTORED_WITHIN_S
        assert process.wait(10) != 0
    assert gpu.get("num_resets") == 1


def test_a_child_that_outlives_the_holder_does_not_keep_the_clock(gpu: State) -> None:
    """A forked worker holds the pipe open; the guardian sees that its holder is gone all the same."""
    fork = "lease.lock_clock(1200)\n    child = os.fork() or time.sleep(5)"
    with holder(gpu, fork) as process:
        process.kill()
        assert wait_until_restored(gpu) < RESTORED_WITHIN_S


@pytest.mark.parametrize("body", ["pass", "lease.lock_clock(1200); lease.reset_clock()"])
def test_only_what_was_changed_is_restored(gpu: State, body: str) -> None:
    """A clock that somebody else set meanwhile is theirs: a killed holder that holds none resets none."""
    with holder(gpu, body) as process:
        resets = gpu.get("num_resets")
        gpu.set(locked_mhz=900)
        process.kill()
        process.wait(10)
        time.sleep(0.5)
    assert (gpu.get("locked_mhz"), gpu.get("num_resets")) == (900, resets)


def test_without_its_guardian_a_lease_changes_nothing_more(gpu: State) -> None:
    then = "lease._guardian._process.kill(); lease._guardian._process.wait(); lease.lock_clock(900)"
    run = python(gpu, HOLD.format(body="pass", then=then))
    assert "the guardian, which restores the clock if muplan is killed, has ended" in run.stderr
    assert gpu.get("num_locks") == 0


def test_a_clock_that_cannot_be_restored_is_told_twice(gpu: State, tmp_path: Path) -> None:
    """The GPU is lost while it is locked: the holder says what to do, the guardian that it failed."""
    with holder(gpu, then="time.sleep(0.5)") as process:
        gpu.set(lost=1)
        _, told = process.communicate(timeout=20)
    assert "GpuLostError: The clock was changed and could not be restored. GPU 0: NVML could not" in told
    assert "nvidia-smi --reset-gpu-clocks" in told
    assert "muplan's guardian: GPU 0: NVML could not reset the clock: GPU is lost." in told


# --- what the binding makes of faults -------------------------------------------------------------

ASK = """
from muplan.errors import DeviceError
from muplan.hardware.nvml import NvmlMeter
from muplan.hardware.nvml_actuator import NvmlActuator
try:
    with NvmlMeter({index}) as meter, NvmlActuator({index}) as actuator:
        print(({what}))
except DeviceError as error:
    print(type(error).__name__, error.problem)
"""


def test_calls_and_structures_are_those_of_the_library(gpu: State) -> None:
    """Through the real binding: a wrong argument or structure would show here before it does on a GPU."""
    answers = {
        "meter.name, meter.driver, meter.nvml_version": "'NVIDIA H200', '580.00', '13.580.00'",
        "meter.supported_clocks_mhz[::50]": "(345, 1095, 1845)",
        "meter.power_limit_w, meter.memory_bytes, meter.is_partitioned": "700.0, 150754820096, False",
        "meter.num_processes, meter.energy_j() > 0": "0, True",
        "meter.read()": "Reading(power_w=300.0, sm_clock_mhz=1980, temperature_c=50, limits=())",
        "actuator.pci_address": "'0000:41:00.0'",
        "actuator.lock_clock(1200), meter.read().sm_clock_mhz, actuator.reset_clock()": "None, 1200, None",
        "meter.read().sm_clock_mhz": "1980",
    }
    run = python(gpu, ASK.format(index=0, what=", ".join(answers)))
    assert run.stdout == f"({', '.join(answers.values())})\n", run.stderr
    run = python(gpu, ASK.format(index=0, what="actuator.lock_clock(1)"))
    assert (
        run.stdout == "NotSupportedError GPU 0: NVML could not lock the clock at 1 MHz: Invalid Argument.\n"
    )


@pytest.mark.parametrize(
    ("fault", "what", "said"),
    [
        ({"denied": 1}, "actuator.lock_clock(1200)", "PermissionDeniedError GPU 0: NVML could not lock"),
        ({"lost": 1}, "meter.read()", "GpuLostError GPU 0: NVML could not find the GPU: GPU is lost."),
        ({"no_driver": 1}, "meter.name", "DriverMissingError GPU 0: NVML could not be loaded"),
        ({"num_processes": 3}, "meter.num_processes", "3"),
        ({"partitioned": 1}, "meter.is_partitioned", "True"),
        ({"reasons": 0x40 | 0x4}, "meter.read().limits", "('power cap', 'thermal')"),
        ({"held_mhz": 990}, "actuator.lock_clock(1200), meter.read().sm_clock_mhz", "(None, 990)"),
    ],
    ids=str,
)
def test_faults_have_their_names(gpu: State, fault: dict[str, int], what: str, said: str) -> None:
    gpu.set(**fault)
    run = python(gpu, ASK.format(index=0, what=what))
    assert said in run.stdout, run.stderr


def test_a_gpu_that_is_not_there_is_named(gpu: State) -> None:
    assert "NoSuchGpuError GPU 7" in python(gpu, ASK.format(index=7, what="meter.name")).stdout
    by_name = python(gpu, ASK.format(index="'GPU-double'", what="meter.name"))
    assert by_name.stdout == "NVIDIA H200\n"


def test_a_library_that_is_missing_is_told(gpu: State, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run = python(State(tmp_path / "none", empty), ASK.format(index=0, what="meter.name"))
    if run.stdout.startswith("DriverMissingError"):
        assert "NVML could not be loaded: NVML Shared Library Not Found" in run.stdout
    else:
        pytest.skip("this machine has a library of its own")


def test_a_library_that_is_too_old_is_told(tmp_path: Path) -> None:
    """What it lacks by name, a missing newer version of a call too; what it can do, it does."""
    gpu = State(tmp_path / "gpu", build(tmp_path, "-DOLD"))
    for what in ("meter.energy_j()", "meter.num_processes"):
        run = python(gpu, ASK.format(index=0, what=what))
        assert run.stdout.startswith("DriverTooOldError GPU 0: NVML could not"), run.stderr
    run = python(gpu, ASK.format(index=0, what="meter.read().limits, meter.is_partitioned"))
    assert run.stdout == "((), False)\n"


def test_doctor_sees_the_gpu(gpu: State) -> None:
    gpu.set(num_processes=2)
    run = subprocess.run(
        [sys.executable, "-m", "muplan", "doctor", "--json"], env=gpu.environment, capture_output=True
    )
    found = json.loads(run.stdout)
    assert [(one["name"], one["device"]) for one in found["gpus"]] == [("NVIDIA H200", "h200-sxm5-141gb")]
    answers = {one["what"]: one["value"] for one in found["gpus"][0]["findings"]}
    assert answers["processes"] == "2"
    assert answers["power, clock, temperature"] == "300 W, 1980 MHz, 50 °C"
    assert gpu.get("num_locks") == gpu.get("num_resets") == 0


# --- zeusd ---------------------------------------------------------------------------------------

ADDRESS = "0000:41:00.0"
DISCOVERED = json.dumps(
    {"gpus": [{"id": 0, "pci_address": "0000:01:00.0"}, {"id": 3, "pci_address": "00000000:41:00.0"}]}
)


class Zeusd(socketserver.ThreadingUnixStreamServer):
    """Answers as zeusd's reference says, and keeps what was asked."""

    def __init__(self, path: Path, status: int = 200) -> None:
        self.asked: list[str] = []
        self.status = status
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                server.asked.append(f"{self.command} {self.path}")
                body = DISCOVERED.encode() if self.command == "GET" else b""
                self.send_response(200 if self.command == "GET" else server.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # noqa: N815 - the base class's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def address_string(self) -> str:
                return "socket"

        super().__init__(str(path), Handler)


@contextmanager
def zeusd(path: Path, status: int = 200) -> Iterator[Zeusd]:
    with Zeusd(path, status) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_zeusd_is_asked_for_the_gpu_at_the_address(tmp_path: Path) -> None:
    """By its own number, which need not be NVML's here; both calls wait until they are done."""
    path = tmp_path / "s"
    with zeusd(path) as server:
        actuator = ZeusdActuator(str(path), ADDRESS)
        actuator.lock_clock(1200)
        actuator.reset_clock()
    assert server.asked == [
        "GET /discover",
        "POST /gpu/set_gpu_locked_clocks?gpu_ids=3&min_clock_mhz=1200&max_clock_mhz=1200&block=true",
        "POST /gpu/reset_gpu_locked_clocks?gpu_ids=3&block=true",
    ]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (
            403,
            PermissionDeniedError,
            r"zeusd at .* refused /gpu/set_gpu_locked_clocks: 403.*\n\n.*gpu-control",
        ),
        (404, DeviceError, r"answered 404 to /gpu/set_gpu_locked_clocks.*\n\nUpdate zeusd"),
        (500, DeviceError, r"answered 500.*\n\nSee zeusd's log"),
    ],
)
def test_what_zeusd_refuses_is_told(
    tmp_path: Path, status: int, kind: type[DeviceError], message: str
) -> None:
    path = tmp_path / "s"
    with zeusd(path, status), pytest.raises(kind, match=message):
        ZeusdActuator(str(path), ADDRESS).lock_clock(1200)


def test_a_zeusd_that_is_not_there_or_knows_no_such_gpu_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"does not answer.*\n\nStart it, or .*ZEUSD_SOCK_PATH"):
        ZeusdActuator(str(tmp_path / "none"), ADDRESS)
    with zeusd(tmp_path / "s"), pytest.raises(DeviceError, match="tells of no GPU at the PCI address"):
        ZeusdActuator(str(tmp_path / "s"), "0000:99:00.0")


def test_a_lease_through_zeusd_is_restored_when_its_holder_is_killed(gpu: State, tmp_path: Path) -> None:
    """The guardian asks the daemon, too."""
    path = tmp_path / "s"
    os.environ["ZEUSD_SOCK_PATH"] = str(path)
    try:
        with zeusd(path) as server:
            code = HOLD.replace("Way.NVML", "Way.ZEUSD").format(
                body="lease.lock_clock(1200)", then="os.kill(os.getpid(), 9)"
            )
            assert python(gpu, code).returncode == -signal.SIGKILL
            deadline_s = time.monotonic() + RESTORED_WITHIN_S
            while "reset" not in server.asked[-1] and time.monotonic() < deadline_s:
                time.sleep(0.02)
        assert server.asked[-1] == "POST /gpu/reset_gpu_locked_clocks?gpu_ids=3&block=true"
    finally:
        del os.environ["ZEUSD_SOCK_PATH"]
