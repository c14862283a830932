"""Profiles by model and device: read where they are saved, made where they are not."""

from __future__ import annotations

import math
from pathlib import Path

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.model.graph import ModelGraph
from muplan.profile import Method, Profile
from muplan.profiling.analytical import make_profile
from muplan.serde import digest, read_document

_ROUNDING = 1e-9
"""Relative difference between machines that compute the same profile."""


class ProfileStore:
    """Profiles of one folder, ``<device>/<model>.json``, and of the analytical profiler.

    Parameters
    ----------
    folder
        Folder of saved profiles; without it every profile is made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._profiles: dict[tuple[str, str], Profile] = {}

    def profile(self, graph: ModelGraph, device: Device) -> Profile:
        """Return the profile of a model on a device; each is read or made once.

        Raises
        ------
        InputError
            The saved profile has faults, is of something else, or is modelled and stale: its model,
            its device, or on the default grid what the profiler makes of them, has changed since.
        """
        key = (digest(graph), digest(device))
        if key not in self._profiles:
            path = self._saved(graph, device)
            self._profiles[key] = make_profile(graph, device) if path is None else _read(path, graph, device)
        return self._profiles[key]

    def _saved(self, graph: ModelGraph, device: Device) -> Path | None:
        """Path of the saved profile; None where there is none."""
        if self._folder is None:
            return None
        path = self._folder / device.name / f"{graph.name}.json"
        return path if path.exists() else None


def _grid(profile: Profile) -> tuple[object, ...]:
    """The operating points of a profile."""
    points = tuple((grid.phase, grid.batches, grid.tokens) for grid in profile.phases)
    return (profile.clocks_mhz, profile.tensor_parallel, points)


def _content(profile: Profile) -> dict[str, object]:
    return profile.model_dump(mode="json", exclude={"provenance"}, exclude_none=True)


def _agree(one: object, other: object) -> bool:
    """Whether two contents are equal, numbers up to the rounding of another machine."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_agree(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_ROUNDING)
    return one == other


def _read(path: Path, graph: ModelGraph, device: Device) -> Profile:
    profile = read_document(path, Profile)
    again = f"Profile again: muplan profile {graph.name} --device {device.name} -o {path}"
    if (profile.model, profile.device) != (graph.name, device.name):
        raise InputError(f"{path} is the profile of {profile.model} on {profile.device}.", again)
    if profile.provenance.method is Method.MODELLED:
        if profile.provenance.model_digest != digest(graph):
            raise InputError(f"{path} is stale: the model has changed since.", again)
        if profile.provenance.device_digest != digest(device):
            raise InputError(f"{path} is stale: the device has changed since.", again)
        now = make_profile(graph, device)
        if _grid(profile) == _grid(now) and not _agree(_content(profile), _content(now)):
            raise InputError(f"{path} is not what the profiler makes now: it is stale or was edited.", again)
    return profile
