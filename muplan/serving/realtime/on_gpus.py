"""A backend on GPUs of this host: their energy is read, and their clocks are the plan's while it runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from muplan.errors import DeviceError
from muplan.hardware.lease import Lease, lease_clock
from muplan.hardware.nvml import NvmlMeter
from muplan.hardware.way import Way
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.profiling.measured.gpu import check_free
from muplan.serving.gpu_energy import EVERY_S, EnergyReadings, GpuName, Meters, measured_power, read_counters
from muplan.serving.power_outcome import PowerOutcome
from muplan.serving.realtime.backend import Backend, ClockCommand, Event, Work
from muplan.serving.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanGpu:
    """A GPU of the plan on this host: the stage that it holds, and the plan's clock."""

    index: GpuName
    group: str
    stage: int
    clock_mhz: int


class OnGpus:
    """A backend whose GPUs are held while it runs.

    What is read and set is that of NVML, beside the backend's own use of the GPUs. Clocks are restored on
    every way out, by guardian processes too.

    Parameters
    ----------
    gpus
        Those that hold stages.
    parked
        Those that the plan parks, as far as this host has them.
    way
        Through what clocks are set; None leaves them as they are.
    is_shared
        Whether others may use the GPUs meanwhile.
    """

    def __init__(
        self,
        backend: Backend,
        gpus: Sequence[PlanGpu],
        parked: Sequence[GpuName] = (),
        *,
        way: Way | None = None,
        is_shared: bool = False,
    ) -> None:
        self._backend, self._gpus, self._parked = backend, tuple(gpus), tuple(parked)
        self._way, self._is_shared = way, is_shared
        self._leases: dict[tuple[str, int], Lease] = {}
        self._held = ExitStack()
        self._reader: _Reader | None = None
        self.name, self.is_measured, self.sets_clocks = backend.name, backend.is_measured, way is not None

    def __enter__(self) -> Self:
        """See that the GPUs are free, set their clocks, and make the backend ready.

        Raises
        ------
        DeviceError
            A GPU is in use or partitioned, or NVML refuses; nothing is changed then, or restored.
        """
        with ExitStack() as held:
            meters = {name: held.enter_context(NvmlMeter(name)) for name in self._names}
            for meter in meters.values():
                check_free(meter, is_shared=self._is_shared)
            if self._way is not None:
                for gpu in self._gpus:
                    lease = held.enter_context(lease_clock(self._way, gpu.index))
                    lease.lock_clock(gpu.clock_mhz)
                    self._leases[gpu.group, gpu.stage] = lease
            held.enter_context(self._backend)
            self._reader = held.enter_context(_Reader(meters, self._backend))
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the backend, and restore the clocks."""
        self._held.__exit__(kind, error, traceback)

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._backend.now_s()

    def launch(self, work: Work) -> None:
        """Begin a work."""
        self._backend.launch(work)

    def next_event(self, until_s: float) -> Event | None:
        """The next event up to a time."""
        return self._backend.next_event(until_s)

    def set_clock(self, command: ClockCommand) -> None:
        """Set the clock of a stage's GPU."""
        self._leases[command.group, command.stage].lock_clock(command.clock_mhz)

    def power(self, problem: Problem, plan: Plan, records: Records) -> tuple[PowerOutcome | None, str | None]:
        """The power by the GPUs' counters, and why it is not known where it is not."""
        if self._reader is None:
            return None, None
        of_group: dict[str, list[GpuName]] = {}
        for gpu in self._gpus:
            of_group.setdefault(gpu.group, []).append(gpu.index)
        outcome, fault = measured_power(
            problem, plan, records, self._reader.readings, group_gpus=of_group, parked_gpus=self._parked
        )
        return (outcome if fault is None else None), fault

    @property
    def _names(self) -> tuple[GpuName, ...]:
        return (*(gpu.index for gpu in self._gpus), *self._parked)


class _Reader:
    """A thread that reads the counters now and then while a backend runs."""

    def __init__(self, meters: Meters, backend: Backend) -> None:
        self._meters, self._backend = meters, backend
        self.readings = EnergyReadings()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _read_on(self) -> None:
        """Read until it is over, and once more then; a GPU that refuses ends it, not the run."""
        is_last = False
        while not is_last:
            is_last = self._is_over.is_set()
            try:
                self.readings.note(*read_counters(self._meters, self._backend.now_s))
            except DeviceError as error:
                self.readings.fault = error.problem
                return
            self._is_over.wait(EVERY_S)
