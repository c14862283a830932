"""How orders reach workers, and answers come back."""

from __future__ import annotations

from typing import Protocol

from muplan.errors import DeviceError
from muplan.serving.workers.messages import Answer, Order
from muplan.serving.workers.parts import Place, WorkerParts

Heard = tuple[Place, Answer | None]
"""What a worker says; None: it has died."""


class NoPlaceError(DeviceError):
    """There is no place, or no longer one, where a worker could be started."""


class Transport(Protocol):
    """Starts workers, and carries orders and answers; an order that finds its worker dead is dropped."""

    name: str

    def open(self) -> None:
        """Make ready for the first worker.

        Raises
        ------
        MachineError
            There is not what the workers need.
        """

    def start(self, held: WorkerParts) -> str:
        """Start a worker, or one that died anew; returns the host on which.

        Raises
        ------
        NoPlaceError
            There is none for it.
        """

    def send(self, held: WorkerParts, order: Order) -> None:
        """Send an order; workers run what they get first in, first out."""

    def hear(self, most_s: float) -> list[Heard]:
        """What is said within a time, which may be infinite: as soon as something is.

        What leaves the last stage of a group is an array; between stages it may be a reference to one.
        """

    def close(self) -> None:
        """End all workers, on every way out; what was opened is put back as it was."""
