"""Passes on an emulated GPU: a bench whose times and activities are known."""

from __future__ import annotations

from collections.abc import Callable

from muplan.hardware.device import Device
from muplan.hardware.meter import Meter
from muplan.profiling.measured.measure import Place
from muplan.profiling.measured.points import Point
from muplan.profiling.measured.rules import Rules
from tests.emulated_gpu import EmulatedGpu, Faults

Jitter = Callable[[], float]
"""Draws by what factor a timing is off."""


class EmulatedLoad:
    """A pass of ``base_s`` at the highest clock, of which a share follows the clock."""

    num_passes = 1

    def __init__(self, gpu: EmulatedGpu, base_s: float, sensitivity: float, jitter: Jitter) -> None:
        device = gpu.device
        self._gpu, self._base_s, self._sensitivity, self._jitter = gpu, base_s, sensitivity, jitter
        self.core = sensitivity * device.matmul_core_activity
        self.core += (1 - sensitivity) * device.memory_core_activity
        self.memory = 1 - sensitivity

    def run_s(self) -> float:
        """Time of a run at the clock that holds now."""
        device, highest = (
            self._gpu.device,
            self._gpu.device.effective_clock_mhz(self._gpu.device.max_clock_mhz),
        )
        clock = self._gpu.effective_mhz(core=self.core, memory=self.memory)
        bandwidth = device.memory_bandwidth_bytes_per_s([highest, clock])
        slow = self._sensitivity * highest / clock + self.memory * bandwidth[0] / bandwidth[1]
        return float(self._base_s * slow)

    def time_s(self, count: int) -> float:
        run_s = self.run_s()
        self.start(count)
        return run_s * self._jitter()

    def start(self, count: int) -> None:
        """Time passes here, so that readings before `wait` see the load."""
        self._gpu.spend(count * self.run_s(), core=self.core, memory=self.memory)

    def wait(self) -> None:
        """Nothing is left to wait for."""


class EmulatedBench:
    """Loads whose time is a power of batch and tokens; ``begun`` counts them."""

    def __init__(self, gpu: EmulatedGpu, sensitivity: float = 0.5, jitter: Jitter = lambda: 1.0) -> None:
        self._gpu, self._sensitivity, self._jitter = gpu, sensitivity, jitter
        self.begun: list[Point] = []

    def base_s(self, point: Point) -> float:
        return float(1e-4 * (1 + point.cluster_type) * point.batch**0.5 * point.tokens**0.25)

    def load(self, point: Point) -> EmulatedLoad:
        self.begun.append(point)
        return EmulatedLoad(self._gpu, self.base_s(point), self._sensitivity, self._jitter)


def emulated_place(
    device: Device,
    faults: Faults | None = None,
    *,
    sensitivity: float = 0.5,
    jitter: Jitter = lambda: 1.0,
    rules: Rules | None = None,
    sets_clocks: bool = False,
) -> tuple[Place, EmulatedGpu, EmulatedBench]:
    """Return a place on an emulated GPU, with the GPU and its bench."""
    gpu = EmulatedGpu(device, faults=faults)
    bench = EmulatedBench(gpu, sensitivity, jitter)
    meter: Meter = gpu
    place = Place(
        label=f"emulated {device.name}",
        make_bench=lambda *_: bench,
        meter=meter,
        host=gpu,
        rules=rules or Rules(),
        batches=(1, 2, 4),
        tokens=(4, 16, 64),
        device=device.name,
        actuator=gpu if sets_clocks else None,
    )
    return place, gpu, bench
