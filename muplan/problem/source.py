"""Where the profiles of a service's model come from: its graph, or the user's own profiles.

A workload's ``model`` names a shipped model, a model file, a profile file, or a model of which only
profiles exist (``<profiles>/<device>/<model>.json``, imported or measured). What a service may ask of the
model follows from the graph or from the profile; `ModelSource` holds it either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.model.catalog import load_model, model_names
from muplan.model.graph import ModelGraph
from muplan.profile import Method, Profile
from muplan.profiling.store import ProfileStore, check_profile_of
from muplan.serde import read_document, read_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model as a service sees it.

    ``fixed_tokens`` is the length that every request has, ``max_context`` the longest that the
    model takes, tokens. ``profile`` returns the profile on a device; InputError where there is none.
    """

    name: str
    request_kind: str  # "forward" | "generate"
    fixed_tokens: int | None
    max_context: int
    profile: Callable[[Device], Profile]


def find_model(
    name: str, *, directory: Path, store: ProfileStore, devices: Mapping[str, Device]
) -> ModelSource:
    """Find what a workload names as a model.

    Where an own profile of that name exists for every pool, it stands above a shipped graph.

    Parameters
    ----------
    directory
        Where relative paths start from.
    devices
        Devices of the fleet, by pool.

    Raises
    ------
    InputError
        There is neither a graph nor a profile of that name, or the file has faults.
    """
    path = directory / name
    if _is_path(name, path):
        if not path.is_dir() and path.suffix == ".json" and read_kind(path) == Profile.KIND:
            return _from_file(path)
        return _from_graph(load_model(path), store)
    own = {pool: store.own_profile(name, device) for pool, device in devices.items()}
    found = [profile for profile in own.values() if profile is not None]
    if found and len(found) == len(own):
        return _from_profile(found[0], lambda device: _own(store, name, device))
    if found and name not in model_names():
        lacking = sorted({device.name for pool, device in devices.items() if own[pool] is None})
        raise InputError(
            f"There is a profile of {name} on {found[0].device}, but none on {', '.join(lacking)}.",
            "Import measurements for that device too, or leave its pool out.",
        )
    try:
        return _from_graph(load_model(name), store)
    except InputError as error:
        raise InputError(error.problem, f"{error.remedy} {_hint(name, store)}") from None


def find_graph(name: str, *, directory: Path) -> ModelGraph:
    """Find the graph of what a workload names as a model.

    Raises
    ------
    InputError
        There is none: the model is known by its profile alone, or not at all.
    """
    path = directory / name
    return load_model(path if _is_path(name, path) else name)


def _is_path(name: str, path: Path) -> bool:
    """Whether a workload names a file or a folder as a model."""
    return (path.suffix in (".json", ".yaml", ".yml") or path.is_dir()) and name not in model_names()


def _hint(name: str, store: ProfileStore) -> str:
    folder = store.folder or "profiles"
    return f"Or import measurements of it to {folder}/DEVICE/{name}.json with 'muplan profile import'."


def _from_graph(graph: ModelGraph, store: ProfileStore) -> ModelSource:
    return ModelSource(
        name=graph.name,
        request_kind=graph.request_kind,
        fixed_tokens=graph.fixed_tokens,
        max_context=graph.max_context,
        profile=lambda device: store.profile(graph, device),
    )


def _from_file(path: Path) -> ModelSource:
    profile = read_document(path, Profile)
    if profile.provenance.method is Method.MODELLED:
        raise InputError(
            f"{path} is a modelled profile, which may be stale.",
            f"Name the model instead ({profile.model}), or a profile that was measured or imported.",
        )

    def on(device: Device) -> Profile:
        check_profile_of(profile, path, profile.model, device)
        return profile

    return _from_profile(profile, on)


def _from_profile(profile: Profile, on: Callable[[Device], Profile]) -> ModelSource:
    """Requests are as long as those that were profiled."""
    grid = profile.phases[0]
    return ModelSource(
        name=profile.model,
        request_kind=profile.request_kind,
        fixed_tokens=grid.tokens[0] if len(grid.tokens) == 1 else None,
        max_context=profile.phases[-1].tokens[-1],
        profile=on,
    )


def _own(store: ProfileStore, name: str, device: Device) -> Profile:
    profile = store.own_profile(name, device)
    if profile is None:
        raise InputError(f"There is no profile of {name} on {device.name}.", _hint(name, store))
    return profile
