"""The guardian of a lease: restores a GPU's clock if the process that changed it is killed.

Run as ``python -m muplan.hardware.guardian WAY INDEX HOLDER``. Its standard input is a pipe from the holder,
which says ``changed`` before it locks a clock and ``restored`` when it has reset it. The end of the pipe, or
of the holder (a child of which may keep the pipe open), ends the guardian; a clock that is changed by then is
reset. It imports little, so that it costs little memory and starts at once.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from muplan.errors import DeviceError
from muplan.hardware.actuator import Actuator
from muplan.hardware.lease import CHANGED, READY
from muplan.hardware.way import Way, open_actuator

_LOOK_S = 0.25
"""The holder is looked for so often; its end is mostly told by the pipe, at once."""
_TRIES, _PAUSE_S = 5, 0.2
_CHUNK_BYTES = 4096


def main(way: str, index: str, holder: str) -> int:
    """Wait for the holder's end; return an exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with its holder, not before
    try:
        with open_actuator(Way(way), int(index) if index.isdecimal() else index) as actuator:
            os.write(sys.stdout.fileno(), READY)
            return _restore(actuator) if _is_left_changed(int(holder)) else 0
    except DeviceError as error:
        return _complain(error)


def _is_left_changed(holder: int) -> bool:
    """Wait for the end of the pipe or of the holder; whether the clock is changed by then."""
    pipe, told = sys.stdin.fileno(), b""
    while True:
        if select.select([pipe], [], [], _LOOK_S)[0]:
            chunk = os.read(pipe, _CHUNK_BYTES)
            if not chunk:
                break
            told = (told + chunk)[-_CHUNK_BYTES:]
        elif os.getppid() != holder:
            break
    return told.endswith(CHANGED)


def _restore(actuator: Actuator) -> int:
    for attempt in range(_TRIES):
        try:
            actuator.reset_clock()
        except DeviceError as error:
            if attempt + 1 == _TRIES:
                return _complain(error)
            time.sleep(_PAUSE_S)
        else:
            break
    return 0


def _complain(error: DeviceError) -> int:
    sys.stderr.write(f"muplan's guardian: {error.problem} {error.remedy}\n")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
