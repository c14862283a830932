"""The slots of time of a clairvoyant programme: windows are rounded outwards to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.serving.layout import Floats, Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Slots of a measured period, and the resources that have time in them.

    Parameters
    ----------
    edges_s
        Where slots begin and end, from the beginning of the measured period to its end.
    resources
        Group and stage of every resource.
    """

    edges_s: Floats
    resources: tuple[tuple[str, int], ...]

    def resource(self, group: str, stage: int) -> int:
        """Number of the resource that a group's stage is, or the group itself (stage 0)."""
        return self.resources.index((group, stage))

    def window(
        self, release_s: Floats, due_s: Floats, least_s: float
    ) -> tuple[Integers, Integers, NDArray[np.bool_]]:
        """Windows in slots, rounded outwards: releases to the slot's beginning, due times to its end.

        Returns
        -------
        release, due
            First slot, and first slot after.
        inside
            Which windows lie in the period and are not shorter than ``least_s``. Others can be left out:
            their work may be done outside the period, or cannot be done in time at all.
        """
        # as late as rounding allows, so that no window is shorter than the simulator's own arithmetic has it
        slack_s = 1e-9 * max(abs(float(self.edges_s[-1])), 1.0)
        inside = (release_s >= self.edges_s[0]) & (due_s <= self.edges_s[-1])
        inside &= due_s - release_s >= least_s
        release = np.searchsorted(self.edges_s, release_s + slack_s, side="right") - 1
        due = np.searchsorted(self.edges_s, due_s - slack_s, side="left")
        last = len(self.edges_s) - 1
        release = np.clip(release, 0, last - 1)
        return release, np.clip(due, release + 1, last), inside


def even_edges(begin_s: float, end_s: float, width_s: float) -> Floats:
    """Edges of equal slots of at most ``width_s``."""
    return np.linspace(begin_s, end_s, max(int(np.ceil((end_s - begin_s) / width_s)), 1) + 1)
