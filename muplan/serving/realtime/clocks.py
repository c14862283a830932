"""Clock control in real time: decisions fall at their times, and are commanded to the backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from muplan.plan import Group
from muplan.problem.problem import Problem
from muplan.serving.control import LOG_COLUMNS, change_log
from muplan.serving.groups import clock_grid
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import Floats, Rows
from muplan.serving.realtime.account import Account
from muplan.serving.realtime.backend import ClockCommand

Control = Callable[[int, float], None]
"""Takes a group's decisions up to a time, by a kernel's own function."""


class Clocks:
    """The clocks of a desk's stages.

    Parameters
    ----------
    account
        Is told of clocks that have changed.
    """

    def __init__(
        self,
        problem: Problem,
        groups: Sequence[Group],
        tables: KernelTables,
        settings: Rows,
        account: Account,
    ) -> None:
        self._tables, self._settings, self._account = tables, settings, account
        self._places = [(group.name, stage) for group in groups for stage in range(len(group.stages))]
        self._grids = [clock_grid(problem, group) for group in groups for _ in group.stages]
        self.log = change_log(len(tables.stages), settings)
        """Of all commands, as the kernel keeps it."""

    @property
    def used_log(self) -> Floats:
        """The part of the log that is filled."""
        return self.log[: int(self._settings["num_changes"][0]) * LOG_COLUMNS]

    def next_s(self) -> float:
        """When the next decision falls, or the next command takes effect; infinite where clocks are fixed."""
        if self._settings["num_windows"][0] == 0:
            return np.inf
        return float(self._next_s().min())

    def control(self, until_s: float, control: Control) -> list[ClockCommand]:
        """Take all decisions up to a time, in their order."""
        commands = list[ClockCommand]()
        while self._settings["num_windows"][0] > 0:
            times_s = self._next_s()
            number = int(times_s.argmin())
            if times_s[number] > until_s:
                break
            commands += self._control_group(number, float(times_s[number]), control)
        return commands

    def _next_s(self) -> Floats:
        """Of each group."""
        groups, settings = self._tables.groups, self._settings[0]
        decision_s = (groups["next_window"] + 1) * settings["window_s"]
        decision_s = np.where(groups["next_window"] < settings["num_windows"], decision_s, np.inf)
        return np.asarray(np.minimum(decision_s, groups["change_at_s"]))

    def _control_group(self, number: int, at_s: float, control: Control) -> list[ClockCommand]:
        group = self._tables.groups[number]
        places = range(group["first_stage"], group["last_stage"])
        before, change_s = self._tables.stages["clock"].copy(), float(group["change_at_s"])
        num_before = int(self._settings["num_changes"][0])
        control(number, at_s)
        for place in places:
            if self._tables.stages["clock"][place] != before[place]:
                self._account.clock_changed(place, change_s)
        return [self._command(row) for row in self.used_log.reshape(-1, LOG_COLUMNS)[num_before:]]

    def _command(self, row: Floats) -> ClockCommand:
        group, stage = self._places[int(row[1])]
        clock_mhz = self._grids[int(row[1])][int(row[3])]
        return ClockCommand(group=group, stage=stage, clock_mhz=clock_mhz, at_s=float(row[0]))
