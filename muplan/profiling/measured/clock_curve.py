"""Values measured at some clocks, as values at all clocks of a profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def along_clocks(
    clocks_mhz: Sequence[int], anchors: Sequence[int], measured: Floats, modelled: Floats
) -> Floats:
    """Draw values over all clocks through those that were measured.

    Between measured clocks a monotone cubic in the logarithms of clock and value (PCHIP: Fritsch and Carlson,
    SIAM J. Numer. Anal. 17, 1980), so that no physics is assumed where there are measurements. Beyond the
    outermost, and everywhere if one alone was measured, values keep the proportions of the model.

    Parameters
    ----------
    clocks_mhz
        All clocks, ascending.
    anchors
        Places in them of those measured, ascending.
    measured, modelled
        Positive values at the anchors and at all clocks; the first axis is the clock.
    """
    first, last = anchors[0], anchors[-1]
    drawn = np.array(modelled, dtype=float)
    drawn[:first] *= measured[0] / modelled[first]
    drawn[last:] *= measured[-1] / modelled[last]
    if first < last:
        from scipy.interpolate import PchipInterpolator

        logs = np.log(np.array(clocks_mhz, dtype=float))
        curve = PchipInterpolator(logs[list(anchors)], np.log(measured), axis=0)
        drawn[first : last + 1] = np.exp(curve(logs[first : last + 1]))
    drawn[list(anchors)] = measured
    return drawn
