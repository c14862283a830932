"""The points of a measurement, and the side file that keeps those already taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from muplan.errors import InputError
from muplan.model.graph import Phase
from muplan.profile import Profile
from muplan.serde import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A pass of one cluster type; ``tokens`` as the profile's, the context in decode.

    ``clock_mhz`` is the clock that was set for it; None where it runs at the clock that the device chose.
    """

    cluster_type: int
    phase: Phase
    batch: int
    tokens: int
    clock_mhz: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measured pass: its time with a 95 % interval, and, where the device's energy was read, its power.

    ``refused`` and ``power_refused`` say what is wrong with time and power after every try; both empty
    where they are believed. Clock, temperature and ``limits``, which kept the clock down, are those under
    this load, while energy was read where it was.
    """

    latency_s: float
    low_s: float
    high_s: float
    tries: int = 1
    refused: tuple[str, ...] = ()
    power_w: float | None = None
    read_power_w: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: int | None = None
    limits: tuple[str, ...] = ()
    power_refused: tuple[str, ...] = ()

    @property
    def spread(self) -> float:
        """Half the interval's width over the median."""
        return (self.high_s - self.low_s) / 2 / self.latency_s

    @property
    def believed_power_w(self) -> float | None:
        """The power, where it was read and not refused."""
        return None if self.power_refused else self.power_w


_TUPLES = ("refused", "limits", "power_refused")


def points_of(profile: Profile) -> tuple[Point, ...]:
    """Every point of a profile's grids."""
    return tuple(_points(profile))


def _points(profile: Profile) -> Iterator[Point]:
    for grid in profile.phases:
        for number in range(len(profile.cluster_types)):
            for batch in grid.batches:
                for tokens in grid.tokens:
                    yield Point(cluster_type=number, phase=grid.phase, batch=batch, tokens=tokens)


class Kept:
    """Measurements on file, one line each, so that an interrupted run goes on where it was.

    Parameters
    ----------
    path
        The side file; None keeps nothing.
    key
        What is measured (model, device, grid): a file of something else is refused.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self.measured: dict[Point, Measurement] = {}
        if path is None or not path.exists():
            return
        try:
            head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.", "Delete it.") from error
        if head != key:
            raise InputError(
                f"{path} holds the beginning of another measurement.",
                "Delete it, or measure what was begun, with the same model, device and options.",
            )
        for line in lines:
            try:
                content = json.loads(line)
                point = Point(**{**content["point"], "phase": Phase(content["point"]["phase"])})
                held = content["measured"]
                made = Measurement(**{**held, **{name: tuple(held[name]) for name in _TUPLES}})
            except (ValueError, KeyError, TypeError):
                break  # an interruption cut this line short
            self.measured[point] = made
        if len(self.measured) < len(lines):
            write_text("".join(map(self._line, [None, *self.measured])), path)

    def _line(self, point: Point | None) -> str:
        if point is None:
            return f"{self._key}\n"
        return f"{json.dumps({'point': asdict(point), 'measured': asdict(self.measured[point])})}\n"

    def add(self, point: Point, made: Measurement) -> None:
        """Keep a measurement, on file at once."""
        self.measured[point] = made
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self._path.exists()
            with self._path.open("a", encoding="utf-8") as file:
                file.write((self._line(None) if is_new else "") + self._line(point))
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written: {error.strerror}.",
                "Make room, or name another place with -o; what was measured before is kept.",
            ) from error
