"""Packing: groups get GPUs of nodes, so that no tensor-parallel set leaves its node.

A group is cut along its pipeline into *parts*, each on one node (`PoolSupply.parts`). A part takes the
first GPUs of an aligned slot whose width is a power of two that holds it, or of a whole node. Such slots
nest, and the part spoils ``⌈part / w⌉`` slots of each smaller width w, at most those of its node. So if for
every width w the parts at least that wide spoil no more slots of w GPUs than the nodes hold
(``gpus_available``), and the widest are placed first, each finds a free slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from muplan.planning.stated.model import PoolSupply


class FreeGpus:
    """GPUs of a pool that no group has yet.

    Parameters
    ----------
    nodes
        Names of the GPUs that may be used, of every node.
    """

    def __init__(self, supply: PoolSupply, nodes: Sequence[Sequence[str]]) -> None:
        self._supply = supply
        self._nodes = [tuple(node) for node in nodes]
        self._free = {gpu for node in nodes for gpu in node}

    def pack(self, demands: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
        """GPUs for every group, given by its parts; none for a group that finds no place.

        The widest parts of all groups are placed first, each on the first node that has a slot.
        """
        found: list[list[tuple[str, ...]]] = [[()] * len(parts) for parts in demands]
        places = [(group, place) for group, parts in enumerate(demands) for place in range(len(parts))]

        def widest_first(place: tuple[int, int]) -> tuple[int, int]:
            size = demands[place[0]][place[1]]
            return -self._supply.slot_width(size), -size

        for group, place in sorted(places, key=widest_first):
            size = demands[group][place]
            found[group][place] = self._slot(self._supply.slot_width(size))[:size]
            self._free.difference_update(found[group][place])
        for parts in found:
            if not all(parts):
                self._free.update(gpu for part in parts for gpu in part)
                parts.clear()
        return [tuple(gpu for part in parts for gpu in part) for parts in found]

    def _slot(self, width: int) -> tuple[str, ...]:
        """The first free aligned slot; empty where there is none."""
        for node in self._nodes:
            for start in range(0, len(node) - width + 1, width):
                slot = node[start : start + width]
                if self._free.issuperset(slot):
                    return slot
        return ()
