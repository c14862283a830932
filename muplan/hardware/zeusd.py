"""Clocks of a GPU changed through zeusd, a daemon with the rights that this process lacks.

Its interface is HTTP over a Unix socket, as https://ml.energy/zeus/zeusd/api/ describes it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import Any
from urllib.parse import urlencode

from muplan.errors import DeviceError, PermissionDeniedError

SOCKET_VARIABLE = "ZEUSD_SOCK_PATH"
"""Names the socket, for zeusd's own clients as well."""
_TOKEN_VARIABLE = "ZEUSD_TOKEN"  # noqa: S105 - the variable's name
_ANSWER_S = 5.0
_GOOD, _UNKNOWN, _REFUSED = 200, 404, (401, 403)


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(self._path)


class ZeusdActuator:
    """Locks the SM clock of one GPU through zeusd.

    Parameters
    ----------
    path
        The daemon's socket.
    pci_address
        Which GPU: in a container the daemon may number GPUs otherwise than NVML does here.

    Raises
    ------
    DeviceError
        The daemon does not answer, refuses, or does not know the GPU.
    """

    def __init__(self, path: str, pci_address: str) -> None:
        self._path = path
        known = json.loads(self._answer("GET", "/discover") or "{}").get("gpus", [])
        numbers = [gpu["id"] for gpu in known if _is_same(gpu.get("pci_address", ""), pci_address)]
        if len(numbers) != 1:
            raise DeviceError(
                f"zeusd at {path} tells of no GPU at the PCI address {pci_address}.",
                "Update zeusd to a version that tells addresses (GET /discover), on the machine of the GPU.",
            )
        self._number = int(numbers[0])

    def lock_clock(self, clock_mhz: int) -> None:
        """Ask for one clock."""
        self._post("set_gpu_locked_clocks", min_clock_mhz=clock_mhz, max_clock_mhz=clock_mhz)

    def reset_clock(self) -> None:
        """Let the driver choose the clock again."""
        self._post("reset_gpu_locked_clocks")

    def _post(self, call: str, **arguments: Any) -> None:
        query = urlencode({"gpu_ids": self._number, **arguments, "block": "true"})
        self._answer("POST", f"/gpu/{call}?{query}")

    def _answer(self, method: str, target: str) -> str:
        token = os.environ.get(_TOKEN_VARIABLE)
        connection = _SocketConnection(self._path)
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            status, said = response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise DeviceError(
                f"zeusd at {self._path} does not answer: {error}.",
                f"Start it, or correct or unset {SOCKET_VARIABLE}.",
            ) from error
        finally:
            connection.close()
        call = target.partition("?")[0]
        if status in _REFUSED:
            raise PermissionDeniedError(
                f"zeusd at {self._path} refused {call}: {said or status}.",
                "Let zeusd run as root with its group gpu-control, and give a token of that group in"
                f" {_TOKEN_VARIABLE} where it asks for one.",
            )
        if status != _GOOD:
            lacks = "Update zeusd, or start it with its group gpu-control."
            raise DeviceError(
                f"zeusd at {self._path} answered {status} to {call}: {said or 'nothing'}.",
                lacks if status == _UNKNOWN else "See zeusd's log.",
            )
        return said


def _is_same(one: str, other: str) -> bool:
    """Whether two PCI addresses are equal, whatever their letters and the digits of the domain."""
    return _parts(one) == _parts(other)


def _parts(address: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part, 16) for part in address.replace(".", ":").split(":"))
    except ValueError:
        return None
