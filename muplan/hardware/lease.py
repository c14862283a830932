"""A lease of a GPU's clock: who holds it may change the clock, and it is restored whatever happens.

On leaving the ``with``, by an exception or by SIGTERM, the holder restores the clock itself. Should it be
killed, a guardian does: a small process of its own that waits for the end of a pipe. Only what was changed
is restored: a lease under which nothing was locked resets nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self, cast

from muplan.errors import DeviceError, PermissionDeniedError
from muplan.hardware.actuator import Actuator
from muplan.hardware.way import Way, open_actuator

CHANGED, RESTORED, READY = b"changed\n", b"restored\n", b"ready\n"
"""What the holder tells the guardian, and what the guardian answers when it can restore."""
_ROOT = str(Path(__file__).parents[2])
"""Where this very package is imported from."""
_TERMINATED = 128 + signal.SIGTERM
_LAST_WORDS_S = 5.0


class Guardian:
    """The process that restores the clock should this one be killed; use it in a ``with``.

    Raises
    ------
    DeviceError
        It does not start, or has ended before its time.
    """

    def __init__(self, way: Way, index: int | str) -> None:
        self._command = [sys.executable, "-P", "-m", "muplan.hardware.guardian", way, str(index)]
        self._who = f"GPU {index}: the guardian, which restores the clock if muplan is killed,"

    def __enter__(self) -> Self:
        """Start it, and wait until it can restore."""
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*self._command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C on a terminal is for the holder alone
            env={**os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)])},
        )
        self._ears = cast(IO[bytes], self._process.stdin)
        with cast(IO[bytes], self._process.stdout) as mouth:
            is_ready = mouth.readline() == READY
        if not is_ready:
            self.__exit__(None, None, None)
            raise DeviceError(
                f"{self._who} did not start.", "See what it said above; without it muplan changes no clock."
            )
        return self

    def tell(self, what: bytes) -> None:
        """Tell it that the clock is about to be changed, or is restored."""
        try:
            self._ears.write(what)
            self._ears.flush()
        except OSError as error:
            remedy = "Let it run; without it muplan changes no clock."
            raise DeviceError(f"{self._who} has ended.", remedy) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pipe: it restores what it was told of and is not restored, and ends."""
        with suppress(OSError):  # it may have ended
            self._ears.close()
        try:
            self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Lease:
    """The right to change one GPU's clock; use it in a ``with``. It is itself an actuator.

    Parameters
    ----------
    guardian
        Restores if this process is killed; None where that is of no use, as for an emulated GPU.
    """

    def __init__(self, actuator: Actuator, guardian: Guardian | None) -> None:
        self._actuator, self._guardian = actuator, guardian
        self._is_changed = False

    def __enter__(self) -> Self:
        """Take the lease; nothing is changed yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the clock, if it was changed."""
        self.reset_clock()

    def lock_clock(self, clock_mhz: int) -> None:
        """Ask for one clock; the guardian is told before."""
        is_first = not self._is_changed
        if is_first:
            self._tell(CHANGED)
            self._is_changed = True
        try:
            self._actuator.lock_clock(clock_mhz)
        except PermissionDeniedError:
            if is_first:  # nothing was changed, and nothing may be
                self._is_changed = False
                self._tell(RESTORED)
            raise

    def reset_clock(self) -> None:
        """Let the driver choose the clock again, if it was changed; the guardian is told after."""
        if not self._is_changed:
            return
        try:
            self._actuator.reset_clock()
        except DeviceError as error:
            raise type(error)(
                f"The clock was changed and could not be restored. {error.problem}",
                f"{error.remedy} Restore it as root: nvidia-smi --reset-gpu-clocks",
            ) from error
        self._is_changed = False
        self._tell(RESTORED)

    def _tell(self, what: bytes) -> None:
        if self._guardian is not None:
            self._guardian.tell(what)


@contextmanager
def lease_clock(way: Way, index: int | str) -> Iterator[Lease]:
    """Lease the clock of a GPU: on leaving it is what the driver chooses, as long as this changed it.

    Raises
    ------
    DeviceError
        NVML, zeusd or the guardian refuses; the clock could not be restored.
    """
    with (
        _leaving_on_sigterm(),
        open_actuator(way, index) as actuator,
        Guardian(way, index) as guardian,
        Lease(actuator, guardian) as lease,
    ):
        yield lease


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into leaving the ``with``, so that what it holds is restored before the process ends."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; the guardian restores
        return

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
