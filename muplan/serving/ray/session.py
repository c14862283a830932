"""A connection to Ray: a cluster that is there, or a local one that is started and ended."""

from __future__ import annotations

import os
import socket

from muplan.errors import DeviceError, InputError
from muplan.serving.ray.hosts import Host

_REACH_S = 10.0
"""Seconds within which a head node takes a connection."""
_ADVICE = "Name the address of the head node, as in head:6379, or none for a Ray on this host alone."


class RaySession:
    """Ray, from the first use to the last.

    Parameters
    ----------
    address
        Of a cluster; that of ``RAY_ADDRESS`` where absent; where that is too, Ray is started on this host.
        Where this process is connected already, that connection is used, and left as it is.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._is_ours = False

    def open(self) -> None:
        """Connect, or start.

        Raises
        ------
        InputError
            The address is not one of a head node.
        DeviceError
            There is no Ray at the address, or it cannot be started here.
        """
        import ray

        if ray.is_initialized():
            return
        _check_reach(self._address)
        options = {"include_dashboard": False} if self._address == "local" else {}
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _unreachable(self._address, str(error)) from None
        self._is_ours = True

    def close(self) -> None:
        """End what was opened: the connection, and with it a local Ray."""
        import ray

        if self._is_ours:
            self._is_ours = False
            ray.shutdown()


def _check_reach(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself tries for minutes."""
    if address in ("local", "auto"):
        return
    name, _, port = address.rpartition(":")
    if not name or not port.isdecimal() or "://" in address:
        raise InputError(f"{address!r} is no address of a Ray head node.", _ADVICE)
    try:
        socket.create_connection((name.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, said: str) -> DeviceError:
    return DeviceError(f"No connection to Ray at {address!r}: {said.strip().partition(chr(10))[0]}", _ADVICE)


def live_hosts() -> tuple[Host, ...]:
    """The hosts of the cluster that are alive."""
    import ray

    return tuple(
        Host(ray_id=row["NodeID"], address=row["NodeManagerAddress"], resources=row["Resources"])
        for row in sorted(ray.nodes(), key=lambda row: str(row["NodeID"]))
        if row["Alive"]
    )
