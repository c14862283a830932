"""The energy of stages that really run: what they computed as told, and what they drew between."""

from __future__ import annotations

from muplan.serving.account_steps import add_busy, add_idle, add_iteration
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import Floats, Rows


class Account:
    """Energy of the stages of a desk, by the profiles' power.

    What a stage computed is known when it has ended; its clock may have changed before. So the clocks that it
    had are kept, and idle time is accounted for afterwards.

    Parameters
    ----------
    samples_j
        Of all stages over equal parts of the run; shape (2 · samples,).
    """

    def __init__(self, tables: KernelTables, settings: Rows, samples_j: Floats) -> None:
        self._tables, self._settings, self.samples_j = tables, settings, samples_j
        self._loaded_w = [[(0.0, self.loaded_w(place))] for place in range(len(tables.stages))]

    def loaded_w(self, place: int) -> float:
        """Power of a stage's GPUs when they are idle at the present clock."""
        row = self._tables.stages[place]
        return float(self._tables.values[row["first_loaded"] + row["clock"]])

    def clock_changed(self, place: int, at_s: float) -> None:
        """A stage has another clock from a time on."""
        self._loaded_w[place].append((at_s, self.loaded_w(place)))

    def idle(self, place: int, until_s: float) -> None:
        """A stage was idle up to a time."""
        pieces = self._loaded_w[place]
        while len(pieces) > 1 and pieces[1][0] <= until_s:
            self._add_idle(place, pieces[1][0], pieces[0][1])
            pieces.pop(0)
        self._add_idle(place, until_s, pieces[0][1])

    def busy(self, place: int, begin_s: float, end_s: float, watts: float) -> None:
        """A stage computed a pass, and was idle before."""
        self.idle(place, begin_s)
        add_busy(self._settings, self._tables.stages, self.samples_j, place, begin_s, end_s, watts)

    def iteration(self, place: int, busy_s: float, busy_j: float, loaded_w: float, end_s: float) -> None:
        """A stage computed for so long of an iteration that ends now, and waited for the others.

        Parameters
        ----------
        loaded_w
            What it drew when it waited.
        """
        add_iteration(
            self._settings, self._tables.stages, self.samples_j, place, busy_s, busy_j, loaded_w, end_s
        )

    def close(self, until_s: float) -> None:
        """All stages were idle up to a time."""
        for place in range(len(self._tables.stages)):
            self.idle(place, until_s)

    def _add_idle(self, place: int, until_s: float, watts: float) -> None:
        add_idle(self._settings, self._tables.stages, self.samples_j, place, until_s, watts)
