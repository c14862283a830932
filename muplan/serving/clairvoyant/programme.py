"""The linear programme of the least energy: work flows through slots of time, each at a mix of clocks.

Every *resource* is a place that does one thing at a time: it has the seconds of each slot. A *stream* is
work of one sort that passes a resource: what has been done of it by the end of a slot lies between what is
due by then and what has come by then. A stream's *part* does each unit of it at some clock, which takes
seconds of the resource and joules. Requests may be left out, up to a number for each service.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.errors import SolverError
from muplan.serving.layout import Floats, Integers

TOLERANCE = 1e-7
"""Relative: what a solution may break its constraints by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Seconds and joules (above those of idling) of a unit of work by slot and clock.

    Shapes (slots, clocks) or (1, clocks) where all slots are alike.
    """

    unit_s: Floats
    unit_j: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Work of one sort for one resource.

    Parameters
    ----------
    resource
        Number of the resource.
    release, due
        The slots in which each request's work may be done: from slot ``release`` to before slot ``due``.
    work
        Units of each request.
    request
        Number of each request, in the programme's whole list of them.
    parts
        All of them do every unit, one after the other.
    """

    resource: int
    release: Integers
    due: Integers
    work: Floats
    request: Integers
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """All streams of a run.

    Parameters
    ----------
    edges_s
        Where the slots begin and end; shape (slots + 1,).
    service
        Service of each request that may be left out; shape (requests,).
    spare
        How many requests of each service may be left out.
    """

    edges_s: Floats
    streams: tuple[Stream, ...]
    service: Integers
    spare: Integers


class _Rows:
    """A sparse matrix under construction, with the bounds of its rows."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_columns = 0
        self._entries: list[tuple[Integers, Integers, Floats]] = []
        self._row_bounds: list[tuple[Floats, Floats]] = []
        self._column_bounds: list[tuple[Floats, Floats, Floats]] = []

    def columns(self, lower: Floats, upper: Floats, cost: Floats) -> Integers:
        """Add columns; returns their numbers."""
        numbers = np.arange(self.num_columns, self.num_columns + len(lower))
        self.num_columns += len(lower)
        self._column_bounds.append((lower, upper, cost))
        return numbers

    def rows(self, lower: Floats, upper: Floats) -> Integers:
        """Add rows; returns their numbers."""
        numbers = np.arange(self.num_rows, self.num_rows + len(lower))
        self.num_rows += len(lower)
        self._row_bounds.append((lower, upper))
        return numbers

    def enter(self, rows: Integers, columns: Integers, values: Floats | float) -> None:
        """Add entries."""
        self._entries.append(
            (rows, columns, np.broadcast_to(np.asarray(values, dtype=np.float64), rows.shape))
        )

    def least(self) -> float:
        """Solve for the least cost, by HiGHS."""
        import highspy
        from scipy.sparse import csc_array

        rows, columns, values = (np.concatenate(column) for column in zip(*self._entries, strict=True))
        matrix = csc_array((values, (rows, columns)), shape=(self.num_rows, self.num_columns))
        model = highspy.HighsLp()
        model.num_row_, model.num_col_ = self.num_rows, self.num_columns
        model.row_lower_, model.row_upper_ = (
            np.concatenate(side) for side in zip(*self._row_bounds, strict=True)
        )
        model.col_lower_, model.col_upper_, model.col_cost_ = (
            np.concatenate(side) for side in zip(*self._column_bounds, strict=True)
        )
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_, model.a_matrix_.index_ = matrix.indptr, matrix.indices
        model.a_matrix_.value_ = matrix.data
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.passModel(model)
        solver.run()
        status = solver.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise SolverError(
                f"HiGHS ended the clairvoyant bound with {solver.modelStatusToString(status)!r}.",
                "Use longer slots, or bound a shorter run.",
            )
        return float(solver.getInfo().objective_function_value)


def least_energy_j(programme: Programme) -> float:
    """Joules above idling that no schedule of the programme's work can do without.

    Raises
    ------
    SolverError
        The work does not fit into its slots even at the fastest clocks, or HiGHS gave up.
    """
    rows = _Rows()
    num_slots = len(programme.edges_s) - 1
    num_resources = 1 + max((stream.resource for stream in programme.streams), default=-1)
    widths_s = np.diff(programme.edges_s)
    time = rows.rows(np.full(num_resources * num_slots, -np.inf), np.tile(widths_s, num_resources))
    time = time.reshape(num_resources, num_slots)
    left_out = _left_out(rows, programme)
    for stream in programme.streams:
        _add_stream(rows, stream, time[stream.resource], left_out)
    if rows.num_columns == 0:
        return 0.0
    return rows.least()


def _left_out(rows: _Rows, programme: Programme) -> Integers:
    """The column of each request: how many like it are left out."""
    kind = _kinds(programme)
    service = np.zeros(int(kind.max(initial=-1)) + 1, dtype=np.int64)
    service[kind] = programme.service
    most = np.bincount(kind, minlength=len(service)) * (programme.spare[service] > 0)
    none = np.zeros(len(service))
    columns = rows.columns(none, most.astype(np.float64), none)
    budget = rows.rows(np.full(len(programme.spare), -np.inf), programme.spare.astype(np.float64))
    rows.enter(budget[service], columns, 1.0)
    return columns[kind]


def _kinds(programme: Programme) -> Integers:
    """Kinds of requests that are alike: of one service, in the same streams, due and as large in each."""
    kind = programme.service.astype(np.int64)
    for stream in programme.streams:
        mark = np.zeros(len(kind), dtype=np.int64)
        is_even = len(stream.work) > 0 and bool((stream.work == stream.work[0]).all())
        mark[stream.request] = 1 + (stream.due if is_even else np.arange(len(stream.request)))
        kind = np.unique(kind * (int(mark.max()) + 1) + mark, return_inverse=True)[1]
    return kind


def _add_stream(rows: _Rows, stream: Stream, time: Integers, left_out: Integers) -> None:
    """Add what is done of a stream, slot by slot: between what is due and what has come."""
    first, last = int(stream.release.min()), int(stream.due.max())
    slots = np.arange(first, last)
    count = len(slots)
    come, due = (
        np.bincount(slot, weights=stream.work, minlength=count).cumsum(dtype=np.float64)
        for slot in (stream.release - first, stream.due - 1 - first)
    )
    done = rows.columns(np.zeros(count), come * (1.0 + TOLERANCE), np.zeros(count))
    dropped = rows.columns(np.zeros(count), due, np.zeros(count))
    enough = rows.rows(due * (1.0 - TOLERANCE), np.full(count, np.inf))
    rows.enter(enough, done, 1.0)
    rows.enter(enough, dropped, 1.0)
    adds = rows.rows(np.zeros(count), np.zeros(count))
    rows.enter(adds, dropped, 1.0)
    rows.enter(adds[1:], dropped[:-1], -1.0)
    columns, member = np.unique(left_out[stream.request], return_index=True)
    rows.enter(adds[stream.due[member] - 1 - first], columns, -stream.work[member])
    for part in stream.parts:
        unit_s, unit_j = _over_slots(part, slots)
        clocks = _worth_using(unit_s, unit_j)
        unit_s, unit_j = unit_s[:, clocks], unit_j[:, clocks]
        num_clocks = len(clocks)
        flow = rows.columns(np.zeros(unit_s.size), np.full(unit_s.size, np.inf), unit_j.ravel())
        through = rows.rows(np.zeros(count), np.zeros(count))
        rows.enter(np.repeat(through, num_clocks), flow, 1.0)
        rows.enter(through, done, -1.0)
        rows.enter(through[1:], done[:-1], 1.0)
        rows.enter(np.repeat(time[slots], num_clocks), flow, unit_s.ravel())


def _over_slots(part: Part, slots: Integers) -> tuple[Floats, Floats]:
    """A part's seconds and joules in some slots; shapes (slots, clocks)."""
    if len(part.unit_s) > 1:
        return part.unit_s[slots], part.unit_j[slots]
    shape = (len(slots), part.unit_s.shape[1])
    return np.broadcast_to(part.unit_s, shape), np.broadcast_to(part.unit_j, shape)


def _worth_using(unit_s: Floats, unit_j: Floats) -> NDArray[np.intp]:
    """Clocks that are not slower and dearer than another in every slot."""
    worse = [
        any(
            (unit_s[:, other] <= unit_s[:, clock]).all()
            and (unit_j[:, other] <= unit_j[:, clock]).all()
            and (
                other < clock
                or (unit_s[:, other] < unit_s[:, clock]).any()
                or (unit_j[:, other] < unit_j[:, clock]).any()
            )
            for other in range(unit_s.shape[1])
            if other != clock
        )
        for clock in range(unit_s.shape[1])
    ]
    return np.flatnonzero(~np.array(worse))
