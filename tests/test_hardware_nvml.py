"""NVML's meter: units, names of errors, older drivers; and what `muplan doctor` makes of it.

NVML's binding is replaced function by function; its error codes and constants are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from muplan import errors
from muplan.cli.doctor import doctor_command
from muplan.errors import DeviceError, DriverTooOldError, GpuLostError
from muplan.hardware import inspection
from muplan.hardware.catalog import load_device
from muplan.hardware.inspection import Inspection, inspect_gpu, inspect_machine
from muplan.hardware.meter import Reading
from muplan.hardware.nvml import NvmlMeter
from muplan.hardware.nvml_refusals import REFUSALS
from muplan.hardware.way import Way, find_way, may_change_clocks
from tests.emulated_gpu import EmulatedGpu, Faults

pynvml = pytest.importorskip("pynvml")

Answers = dict[str, Any]

GPU: Answers = {
    "nvmlInit": None,
    "nvmlShutdown": None,
    "nvmlSystemGetDriverVersion": "580.1",
    "nvmlSystemGetNVMLVersion": "13.580.1",
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": SimpleNamespace(),
    "nvmlDeviceGetHandleByUUID": SimpleNamespace(),
    "nvmlDeviceGetName": "NVIDIA H200",
    "nvmlDeviceGetSupportedMemoryClocks": [2619, 3201],
    "nvmlDeviceGetSupportedGraphicsClocks": [1980, 1965, 345],
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=4 << 30, used=1 << 30),
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=1)],
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetTotalEnergyConsumption": 2_500_000,
    "nvmlDeviceGetPowerUsage": 287_500,
    "nvmlDeviceGetClockInfo": 1395,
    "nvmlDeviceGetTemperature": 55,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x1,  # power cap, idle
}


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make NVML answer so; an answer that is an error is raised."""

    def reply(value: Any) -> Callable[..., Any]:
        def replied(*_: object) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return replied

    def install(**changes: Any) -> None:
        for name, value in {**GPU, **changes}.items():
            monkeypatch.setattr(pynvml, name, reply(value))

    return install


def nvml_error(name: str) -> Exception:
    error: Exception = pynvml.NVMLError(getattr(pynvml, name))
    return error


def test_units_of_nvml_stay_inside(answer: Callable[..., None]) -> None:
    """Milliwatts and millijoules become watts and joules, reasons words; clocks ascend."""
    answer()
    with NvmlMeter() as meter:
        assert meter.energy_j() == 2500.0
        assert meter.power_limit_w == 700.0
        assert meter.supported_clocks_mhz == (345, 1965, 1980)
        assert (meter.memory_used_bytes, meter.memory_bytes) == (1 << 30, 4 << 30)
        assert (meter.num_processes, meter.is_partitioned) == (1, False)
        assert meter.read() == Reading(
            power_w=287.5, sm_clock_mhz=1395, temperature_c=55, limits=("power cap",)
        )


@pytest.mark.parametrize("code", REFUSALS)
def test_every_error_has_its_name_and_advice(answer: Callable[..., None], code: str) -> None:
    """What NVML says is in the message, what to do below it, and a program can tell them apart."""
    answer(nvmlDeviceGetPowerUsage=nvml_error(code))
    with NvmlMeter(2) as meter, pytest.raises(DeviceError) as caught:
        meter.read()
    assert type(caught.value) is REFUSALS[code].error
    assert caught.value.problem.startswith("GPU 2: NVML could not read the power: ")
    assert caught.value.remedy == REFUSALS[code].advice
    assert caught.value.exit_code == 3


def test_every_named_error_is_raised_by_something() -> None:
    named = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, DeviceError) and kind is not DeviceError
    }
    assert named == {refusal.error for refusal in REFUSALS.values()} - {DeviceError}


def test_an_unknown_error_points_to_where_more_is_said(answer: Callable[..., None]) -> None:
    answer(nvmlInit=nvml_error("NVML_ERROR_UNKNOWN"))
    with pytest.raises(
        DeviceError, match=r"NVML could not be loaded: Unknown Error.*\n\nSee what nvidia-smi"
    ):
        NvmlMeter().__enter__()


def test_an_older_driver_calls_clock_events_throttle_reasons(answer: Callable[..., None]) -> None:
    missing = nvml_error("NVML_ERROR_FUNCTION_NOT_FOUND")
    answer(nvmlDeviceGetCurrentClocksEventReasons=missing, nvmlDeviceGetCurrentClocksThrottleReasons=0x20)
    with NvmlMeter() as meter:
        assert meter.read().limits == ("thermal",)


def test_a_binding_without_a_call_is_too_old(
    answer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer()
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption")
    with NvmlMeter() as meter, pytest.raises(DriverTooOldError, match=r"\n\nUpdate it: pip install -U"):
        meter.energy_j()


def test_a_gpu_that_knows_no_mig_is_not_partitioned(answer: Callable[..., None]) -> None:
    answer(nvmlDeviceGetMigMode=nvml_error("NVML_ERROR_NOT_SUPPORTED"))
    with NvmlMeter() as meter:
        assert not meter.is_partitioned


def test_nvml_is_unloaded_whatever_happens(
    answer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the GPU is not found, and where it is lost meanwhile."""
    unloaded = []
    answer(nvmlDeviceGetHandleByIndex=nvml_error("NVML_ERROR_INVALID_ARGUMENT"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: unloaded.append(1))
    with pytest.raises(errors.NoSuchGpuError):
        NvmlMeter(9).__enter__()
    assert len(unloaded) == 1
    answer(nvmlShutdown=nvml_error("NVML_ERROR_GPU_IS_LOST"))
    with NvmlMeter("GPU-8a56"):
        pass


# --- doctor --------------------------------------------------------------------------------------


def test_a_gpu_is_asked_everything_once() -> None:
    """Answers in words; nothing about it is changed."""
    gpu = EmulatedGpu(load_device("h200-sxm5-141gb"))
    gpu.sleep(10.0)
    found = inspect_gpu(0, gpu)
    assert {finding.what: finding.value for finding in found.findings} == {
        "MIG": "off",
        "processes": "0",
        "memory": "0.0 of 140.4 GiB used",
        "listed SM clocks": "110, 345 to 1980 MHz",
        "power limit": "700 W",
        "energy counter": "822 J since the driver was loaded",
        "power, clock, temperature": "82 W, 345 MHz, 32 °C",
    }
    assert (found.name, found.device) == ("emulated h200-sxm5-141gb", None)


def test_a_refusal_is_an_answer() -> None:
    """One question that is refused hides none of the others; its remedy becomes advice, once."""
    gpu = EmulatedGpu(load_device("h200-sxm5-141gb"), faults=Faults(denied=frozenset({"read", "energy_j"})))
    refused = [finding for finding in inspect_gpu(0, gpu).findings if finding.problem]
    assert [finding.what for finding in refused] == ["energy counter", "power, clock, temperature"]
    assert all("SYS_ADMIN" in finding.remedy for finding in refused)


def test_one_lost_gpu_hides_no_other(answer: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    answer(nvmlDeviceGetCount=2)

    def handle(index: int) -> object:
        if index == 0:
            raise nvml_error("NVML_ERROR_GPU_IS_LOST")
        return SimpleNamespace()

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    found = inspect_machine()
    assert (found.driver, found.nvml, len(found.gpus)) == ("580.1", "13.580.1", 2)
    assert "GPU is lost" in found.gpus[0].findings[0].problem
    assert (found.gpus[1].name, found.gpus[1].device) == ("NVIDIA H200", "h200-sxm5-141gb")
    assert not found.is_well
    assert REFUSALS["NVML_ERROR_GPU_IS_LOST"].advice in found.advice
    assert GpuLostError is REFUSALS["NVML_ERROR_GPU_IS_LOST"].error


@pytest.mark.parametrize(
    ("mask", "allowed"), [("000001ffffffffff", True), ("00000000a80425fb", False)], ids=["root", "container"]
)
def test_a_container_may_lack_the_right_to_change_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, allowed: bool
) -> None:
    """Being root does not suffice there."""
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapEff:\t{mask}\n", encoding="utf-8")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert may_change_clocks(status) is allowed
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert not may_change_clocks(status)
    assert find_way({}) is None
    assert find_way({"ZEUSD_SOCK_PATH": "/run/zeusd/zeusd.sock"}) is Way.ZEUSD


def _inspection(**changes: Any) -> Inspection:
    gpu = EmulatedGpu(load_device("h200-sxm5-141gb"), faults=Faults(denied=frozenset({"energy_j"})))
    gpu.sleep(10.0)
    content = {
        "muplan": "1.0",
        "python": "3.12.3",
        "system": "Linux x86_64",
        "packages": {"torch": "2.11.0"},
        "driver": "580.1",
        "nvml": "13.580.1",
        "gpus": (inspect_gpu(0, gpu),),
        "way_to_clocks": None,
        "advice": ("Run as root.",),
    }
    return Inspection(**{**content, **changes})


WHOLE = """\
This machine
┏━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┓
┃ what                    ┃ found        ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━┩
│ muplan                  │ 1.0          │
│ python                  │ 3.12.3       │
│ system                  │ Linux x86_64 │
│ torch                   │ 2.11.0       │
│ NVIDIA driver           │ 580.1        │
│ NVML                    │ 13.580.1     │
│ GPUs                    │ 1            │
│ rights to change clocks │ no           │
└─────────────────────────┴──────────────┘
GPU 0: emulated h200-sxm5-141gb (no shipped device)
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ what                      ┃ found                                                                          ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ MIG                       │ off                                                                            │
│ processes                 │ 0                                                                              │
│ memory                    │ 0.0 of 140.4 GiB used                                                          │
│ listed SM clocks          │ 110, 345 to 1980 MHz                                                           │
│ power limit               │ 700 W                                                                          │
│ energy counter            │ refused: GPU 0: NVML could not read the energy counter: Insufficient           │
│                           │ Permissions.                                                                   │
│ power, clock, temperature │ 82 W, 345 MHz, 32 °C                                                           │
└───────────────────────────┴────────────────────────────────────────────────────────────────────────────────┘
- Run as root.
"""


def test_doctors_whole_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused answer is told in its place, the advice at the end, and the exit code is "no"."""
    monkeypatch.setattr(inspection, "inspect_machine", _inspection)
    with pytest.raises(typer.Exit) as left:
        doctor_command(json=False)
    assert left.value.exit_code == 1
    assert capsys.readouterr().out == WHOLE


def test_doctor_of_a_machine_that_lacks_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspection, "inspect_machine", lambda: _inspection(gpus=(), advice=()))
    doctor_command(json=False)
    assert capsys.readouterr().out.endswith("Nothing is missing.\n")


def test_doctor_answers_on_this_machine(tmp_path: Path) -> None:
    """With a GPU or without, with torch or without: whole JSON, nothing on stderr, nothing written."""
    command = [sys.executable, "-m", "muplan", "doctor", "--json"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(run.stdout)
    assert run.returncode in (0, 1)
    assert run.stderr == ""
    assert {"muplan", "python", "packages", "gpus", "advice"} <= set(found)
    assert list(tmp_path.iterdir()) == []
