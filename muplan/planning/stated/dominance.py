"""Which candidates another replaces in every solution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muplan.planning.stated.model import Configuration

_TOLERANCE = 1e-12


def undominated(configurations: Sequence[Configuration], *, keep_peaks: bool) -> tuple[Configuration, ...]:
    """The configurations that no other one of the same pool replaces.

    A configuration of g GPUs is replaced by r = g / g' groups of another with g' GPUs, g' dividing g,
    where these host at least the same services, each at no more groups per rate and no more energy,
    with no more standing power in all and, if ``keep_peaks``, no more peak power. Of two that replace
    each other the first is kept. A solution that uses the replaced one keeps its rates, needs no more
    GPUs or power, and can still be placed; so the optimum stays.
    """
    pools: dict[str, list[Configuration]] = defaultdict(list)
    for configuration in configurations:
        pools[configuration.pool].append(configuration)
    kept: list[Configuration] = []
    for members in pools.values():
        kept += _undominated_of_pool(members, keep_peaks)
    return tuple(kept)


def _undominated_of_pool(members: list[Configuration], keep_peaks: bool) -> list[Configuration]:
    names = sorted({name for member in members for name in member.services})
    column = {name: index for index, name in enumerate(names)}
    # Per configuration: groups per rate and energy of each service (infinite where not hosted), then power.
    load = np.full((len(members), len(names)), np.inf)
    energy = np.full((len(members), len(names)), np.inf)
    for row, member in enumerate(members):
        for hosting in member.hostings:
            load[row, column[hosting.service]] = member.load_s(hosting)
            energy[row, column[hosting.service]] = hosting.energy_j
    gpus = np.array([member.num_gpus for member in members])
    standing = np.array([member.standing_w for member in members])
    peak = np.array([member.peak_w for member in members]) if keep_peaks else np.zeros(len(members))
    # Small groups first: only they can replace larger ones; then those that host most, at least energy.
    order = sorted(
        range(len(members)),
        key=lambda row: (gpus[row], -len(members[row].hostings), members[row].clocks_mhz, row),
    )
    alive: list[int] = []
    for row in order:
        rivals = np.array(alive, dtype=int)
        if not _is_replaced(row, rivals, load, energy, gpus, standing, peak):
            alive = [
                rival
                for rival in alive
                if gpus[rival] != gpus[row]
                or not _is_replaced(rival, np.array([row]), load, energy, gpus, standing, peak)
            ]
            alive.append(row)
    return [members[row] for row in sorted(alive)]


def _is_replaced(
    row: int,
    rivals: NDArray[np.int64],
    load: NDArray[np.float64],
    energy: NDArray[np.float64],
    gpus: NDArray[np.int64],
    standing: NDArray[np.float64],
    peak: NDArray[np.float64],
) -> bool:
    if len(rivals) == 0:
        return False
    slack = 1.0 + _TOLERANCE
    ratio = gpus[row] / gpus[rivals]
    hosted = np.isfinite(load[row])
    able = gpus[row] % gpus[rivals] == 0
    able &= (load[rivals][:, hosted] <= ratio[:, None] * load[row, hosted] * slack).all(axis=1)
    able &= (energy[rivals][:, hosted] <= energy[row, hosted] * slack + _TOLERANCE).all(axis=1)
    able &= ratio * standing[rivals] <= standing[row] * slack + _TOLERANCE
    able &= ratio * peak[rivals] <= peak[row] * slack
    return bool(able.any())
