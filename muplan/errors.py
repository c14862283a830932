"""The exception tree and the exit codes of the command line.

    MuplanError
    ├── InputError          what the user wrote is wrong                       exit 2
    └── MachineError        the machine refused                                exit 3
        ├── SolverError     a solver failed or returned something unusable
        ├── EndpointError   a server that should answer requests does not
        └── DeviceError     a GPU, its driver or its memory refused
            ├── DriverMissingError      no NVIDIA driver, or not loaded
            ├── DriverTooOldError       the driver lacks a call
            ├── PermissionDeniedError   it wants root, or SYS_ADMIN in a container
            ├── NotSupportedError       the GPU does not tell or do that
            ├── NoSuchGpuError          no GPU of that number
            ├── GpuLostError            it fell off the bus, or wants a reset
            └── GpuBusyError            others use it, or it did not answer in time

The answer "no" (an infeasible workload, a violated plan) is a value, never an exception; commands
report it with exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_GOOD = 0
EXIT_NO = 1
EXIT_BAD_INPUT = 2
EXIT_MACHINE = 3


class MuplanError(Exception):
    """Base of every error that muplan raises on purpose.

    Parameters
    ----------
    problem
        What is wrong: the place, the key and the value.
    remedy
        What to do about it.
    """

    exit_code = EXIT_MACHINE

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n\n{remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of an input file.

    ``key`` is dotted (``services[2].slo.scale``); ``line`` counts from 1 and is 0 where the fault
    has no line of its own.
    """

    file: str
    key: str
    message: str
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class InputError(MuplanError):
    """What the user wrote is wrong; carries every fault found, not only the first."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problem: str, remedy: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(problem, remedy)
        self.faults = tuple(faults)

    @classmethod
    def from_faults(cls, faults: Sequence[Fault], remedy: str = "") -> InputError:
        """Build the error that lists ``faults``, one a line."""
        noun = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(f"  {fault}" for fault in faults)
        return cls(f"{faults[0].file} has {noun}:\n{lines}", remedy, faults)


class MachineError(MuplanError):
    """The machine refused."""


class SolverError(MachineError):
    """A solver failed, or returned something that is no solution."""


class EndpointError(MachineError):
    """A server that should answer requests is not there, or does not take them."""


class DeviceError(MachineError):
    """A GPU, its driver or its memory refused."""


class DriverMissingError(DeviceError):
    """There is no NVIDIA driver, or it is not loaded."""


class DriverTooOldError(DeviceError):
    """The driver, or its library, lacks a call that is needed."""


class PermissionDeniedError(DeviceError):
    """The driver wants more rights for that."""


class NotSupportedError(DeviceError):
    """The GPU does not tell or do that."""


class NoSuchGpuError(DeviceError):
    """There is no GPU of that number."""


class GpuLostError(DeviceError):
    """The GPU fell off the bus, or wants a reset."""


class GpuBusyError(DeviceError):
    """The GPU is in use by others, or did not answer in time."""
