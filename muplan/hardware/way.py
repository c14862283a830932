"""How this process may change clocks: through NVML, through zeusd, or not at all; and the actuator for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from muplan.errors import PermissionDeniedError
from muplan.hardware.actuator import Actuator
from muplan.hardware.nvml_actuator import NvmlActuator
from muplan.hardware.nvml_refusals import REFUSALS
from muplan.hardware.zeusd import SOCKET_VARIABLE, ZeusdActuator

_STATUS = Path("/proc/self/status")
_SYS_ADMIN = 21
"""Its bit in Linux' masks of capabilities (capabilities(7))."""


class Way(StrEnum):
    """By whose hands clocks are changed."""

    NVML = "nvml"
    ZEUSD = "zeusd"


def may_change_clocks(status: Path = _STATUS) -> bool:
    """Whether this process is root with the capability SYS_ADMIN, which a container may lack."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True  # no masks of capabilities here: root is root
    masks = [int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")]
    return not masks or bool(masks[0] >> _SYS_ADMIN & 1)


def find_way(environment: Mapping[str, str] = os.environ) -> Way | None:
    """Return how clocks may be changed here, None if not at all; nothing is tried."""
    if may_change_clocks():
        return Way.NVML
    return Way.ZEUSD if environment.get(SOCKET_VARIABLE) else None


def way_or_refusal() -> Way:
    """Return how clocks may be changed here.

    Raises
    ------
    PermissionDeniedError
        There is no way.
    """
    way = find_way()
    if way is None:
        raise PermissionDeniedError(
            "This process may not change a GPU's clock: it is not root with the capability SYS_ADMIN, and"
            f" {SOCKET_VARIABLE} names no socket of zeusd.",
            REFUSALS["NVML_ERROR_NO_PERMISSION"].advice,
        )
    return way


@contextmanager
def open_actuator(way: Way, index: int | str) -> Iterator[Actuator]:
    """Open what changes the clock of a GPU; ``index`` as `muplan.hardware.nvml.NvmlGpu` takes it.

    Raises
    ------
    DeviceError
        NVML or zeusd refuses.
    """
    with NvmlActuator(index) as nvml:
        if way is Way.NVML:
            yield nvml
        else:
            yield ZeusdActuator(os.environ[SOCKET_VARIABLE], nvml.pci_address)
