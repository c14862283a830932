"""A connection to Ray: a cluster that is there, or a local one that is started and ended."""

from __future__ import annotations

import os

from muplan.errors import DeviceError
from muplan.serving.ray.hosts import Host


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
        DeviceError
            There is no Ray at the address, or it cannot be started here.
        """
        import ray

        if ray.is_initialized():
            return
        options = {"include_dashboard": False} if self._address == "local" else {}
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            said = str(error).strip().partition("\n")[0]
            raise DeviceError(
                f"No connection to Ray at {self._address!r}: {said}",
                "Name the address of the head node, 'host:6379', or none for a Ray on this host alone.",
            ) from None
        self._is_ours = True

    def close(self) -> None:
        """End what was opened: the connection, and with it a local Ray."""
        import ray

        if self._is_ours:
            self._is_ours = False
            ray.shutdown()


def live_hosts() -> tuple[Host, ...]:
    """The hosts of the cluster that are alive."""
    import ray

    return tuple(
        Host(ray_id=row["NodeID"], address=row["NodeManagerAddress"], resources=row["Resources"])
        for row in sorted(ray.nodes(), key=lambda row: str(row["NodeID"]))
        if row["Alive"]
    )
