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
    remakes
        Whether a saved modelled profile is made again, to see that it is what the profiler makes now. For a
        plan that need not be: it holds the digests of the profiles that it was made with.
    """

    def __init__(self, folder: Path | None = None, *, remakes: bool = True) -> None:
        self.folder, self.remakes = folder, remakes
        self._profiles: dict[tuple[str, str], Profile] = {}
        self._read: dict[Path, Profile | None] = {}

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
            saved = self._saved(graph.name, device)
            self._profiles[key] = (
                make_profile(graph, device)
                if saved is None
                else _current(saved, self._path(graph.name, device), graph, device, remakes=self.remakes)
            )
        return self._profiles[key]

    def own_profile(self, model: str, device: Device) -> Profile | None:
        """Return the user's own profile of a model on a device: one that is saved and was not modelled.

        Such a profile needs no graph and never is stale. None where there is none.

        Raises
        ------
        InputError
            The saved profile has faults, or is of something else.
        """
        saved = self._saved(model, device)
        if saved is None or saved.provenance.method is Method.MODELLED:
            return None
        check_profile_of(saved, self._path(model, device), model, device)
        return saved

    def _path(self, model: str, device: Device) -> Path:
        """Where the profile of a model on a device is saved."""
        return (self.folder or Path()) / device.name / f"{model}.json"

    def _saved(self, model: str, device: Device) -> Profile | None:
        """Return the saved profile, read once; None where there is none."""
        path = self._path(model, device)
        if path not in self._read:
            is_there = self.folder is not None and path.exists()
            self._read[path] = read_document(path, Profile) if is_there else None
        return self._read[path]


def check_profile_of(profile: Profile, path: Path, model: str, device: Device) -> None:
    """Refuse a profile of another model or another device."""
    if (profile.model, profile.device) != (model, device.name):
        raise InputError(
            f"{path} is the profile of {profile.model} on {profile.device}.",
            f"Name a profile of {model} on {device.name}.",
        )


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


def _current(profile: Profile, path: Path, graph: ModelGraph, device: Device, *, remakes: bool) -> Profile:
    """Return a saved profile; refuse one of something else, and a modelled one that is stale."""
    again = f"Profile again: muplan profile {graph.name} --device {device.name} -o {path}"
    if (profile.model, profile.device) != (graph.name, device.name):
        raise InputError(f"{path} is the profile of {profile.model} on {profile.device}.", again)
    if profile.provenance.method is Method.MODELLED:
        if profile.provenance.model_digest != digest(graph):
            raise InputError(f"{path} is stale: the model has changed since.", again)
        if profile.provenance.device_digest != digest(device):
            raise InputError(f"{path} is stale: the device has changed since.", again)
        if not remakes:
            return profile
        now = make_profile(graph, device)
        if _grid(profile) == _grid(now) and not _agree(_content(profile), _content(now)):
            raise InputError(f"{path} is not what the profiler makes now: it is stale or was edited.", again)
    return profile
