"""What there is to measure on, and what is allowed: every GPU is asked once, refusals are noted.

Nothing is changed, and nothing is tried that would change something.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import muplan
from muplan.errors import DeviceError
from muplan.hardware.catalog import DEVICE_OF_GPU
from muplan.hardware.meter import Meter
from muplan.hardware.nvml import Nvml, NvmlMeter
from muplan.hardware.way import Way, find_way
from muplan.serde import Part

_PACKAGES = ("torch", "transformers", "nvidia-ml-py", "numpy", "highspy", "ray")
_NAMELESS = "not told"


class Finding(Part):
    """What a GPU answered to one question, or ``problem`` and ``remedy`` where it refused."""

    what: str
    value: str = ""
    problem: str = ""
    remedy: str = ""


class GpuInspection(Part):
    """One GPU: what it tells, and which shipped device it is, if any."""

    index: int
    name: str
    device: str | None
    findings: tuple[Finding, ...]


class Inspection(Part):
    """A machine: versions, GPUs, what this process may do, and what to do about what is missing."""

    muplan: str
    python: str
    system: str
    packages: dict[str, str]
    """Version of each package that is there."""
    driver: str | None = None
    nvml: str | None = None
    gpus: tuple[GpuInspection, ...] = ()
    way_to_clocks: Way | None
    """How this process may change clocks, None if not at all; it is not tried."""
    advice: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        """Whether models can be measured here, and no GPU refused an answer."""
        refused = any(finding.problem for gpu in self.gpus for finding in gpu.findings)
        return "torch" in self.packages and not refused


def inspect_machine() -> Inspection:
    """Look at this machine."""
    packages = dict(_versions())
    gpus, driver, nvml, missing = _inspect_gpus()
    return Inspection(
        muplan=muplan.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=packages,
        driver=driver,
        nvml=nvml,
        gpus=gpus,
        way_to_clocks=find_way(),
        advice=tuple(_advice(packages, gpus, missing)),
    )


def inspect_gpu(index: int, meter: Meter) -> GpuInspection:
    """Ask a GPU everything that muplan may need; a refusal is an answer."""
    name = _ask("name", lambda: meter.name)
    questions: tuple[tuple[str, Callable[[], str]], ...] = (
        ("MIG", lambda: "divided into instances: not for muplan" if meter.is_partitioned else "off"),
        ("processes", lambda: str(meter.num_processes)),
        (
            "memory",
            lambda: f"{meter.memory_used_bytes / 2**30:.1f} of {meter.memory_bytes / 2**30:.1f} GiB used",
        ),
        ("listed SM clocks", lambda: _listed(meter.supported_clocks_mhz)),
        ("power limit", lambda: f"{meter.power_limit_w:.0f} W"),
        ("energy counter", lambda: f"{meter.energy_j():.0f} J since the driver was loaded"),
        ("power, clock, temperature", lambda: _now(meter)),
    )
    return GpuInspection(
        index=index,
        name=name.value or _NAMELESS,
        device=DEVICE_OF_GPU.get(name.value),
        findings=(*([name] if name.problem else []), *(_ask(what, question) for what, question in questions)),
    )


def _ask(what: str, question: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, value=question())
    except DeviceError as error:
        return Finding(what=what, problem=error.problem, remedy=error.remedy)


def _listed(clocks_mhz: tuple[int, ...]) -> str:
    return f"{len(clocks_mhz)}, {clocks_mhz[0]} to {clocks_mhz[-1]} MHz"


def _now(meter: Meter) -> str:
    reading = meter.read()
    held = f", held by {', '.join(reading.limits)}" if reading.limits else ""
    return f"{reading.power_w:.0f} W, {reading.sm_clock_mhz} MHz, {reading.temperature_c} °C{held}"


def _inspect_gpus() -> tuple[tuple[GpuInspection, ...], str | None, str | None, DeviceError | None]:
    """Every GPU that NVML counts, the driver's and NVML's versions, and why there are none, if so."""
    try:
        with Nvml() as nvml:
            gpus = tuple(_inspect_index(index) for index in range(nvml.num_gpus))
            return gpus, nvml.driver, nvml.nvml_version, None
    except DeviceError as error:
        return (), None, None, error


def _inspect_index(index: int) -> GpuInspection:
    try:
        with NvmlMeter(index) as meter:
            return inspect_gpu(index, meter)
    except DeviceError as error:
        lost = Finding(what="the GPU itself", problem=error.problem, remedy=error.remedy)
        return GpuInspection(index=index, name=_NAMELESS, device=None, findings=(lost,))


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _advice(
    packages: dict[str, str], gpus: tuple[GpuInspection, ...], missing: DeviceError | None
) -> Iterator[str]:
    if "torch" not in packages:
        yield "To measure models, install torch: pip install 'muplan[torch]'"
    elif gpus and packages["torch"].endswith("+cpu"):
        yield "The torch here is built without CUDA; install one with it to measure on the GPU."
    if missing is not None:
        yield f"No GPU to measure on: {missing.problem} {missing.remedy}"
    remedies = (finding.remedy for gpu in gpus for finding in gpu.findings if finding.remedy)
    yield from dict.fromkeys(remedies)
    for gpu in gpus:
        if gpu.device is None and gpu.name != _NAMELESS:
            yield f"{gpu.name} is no shipped device: to measure on it, describe it in a device file."
