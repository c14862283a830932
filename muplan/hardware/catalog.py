"""The devices that ship with muplan, and devices in files of the user."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import files
from pathlib import Path

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.serde import parse_document, read_document

_SUFFIXES = (".yaml", ".yml", ".json")

DEVICE_OF_GPU = {
    "NVIDIA H200": "h200-sxm5-141gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm5-80gb",
    "NVIDIA A100-SXM4-80GB": "a100-sxm4-80gb",
    "Tesla V100-SXM2-32GB": "v100-sxm2-32gb",
    "Tesla V100-SXM2-16GB": "v100-sxm2-16gb",
    "Tesla V100-PCIE-16GB": "v100-pcie-16gb",
}
"""The shipped device of each GPU, by the name that its driver gives it."""


def device_names() -> tuple[str, ...]:
    """Names of the shipped devices, sorted."""
    folder = files("muplan.hardware") / "devices"
    names = [entry.name for entry in folder.iterdir()]
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_device(name_or_path: str | Path) -> Device:
    """Load a shipped device by name, or a device file by path.

    Parameters
    ----------
    name_or_path
        A name of `device_names`, or a path that ends in .yaml, .yml or .json.

    Raises
    ------
    InputError
        There is no such device, or the file has faults.
    """
    name = str(name_or_path)
    if name in device_names():
        return _shipped_device(name)
    if name.endswith(_SUFFIXES):
        return read_document(Path(name), Device)
    near = difflib.get_close_matches(name, device_names(), n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"There is no device {name!r}.",
        f"{hint}Shipped devices: {', '.join(device_names())}. To use your own, name its file (.yaml).",
    )


@cache
def _shipped_device(name: str) -> Device:
    resource = files("muplan.hardware") / "devices" / f"{name}.yaml"
    device = parse_document(resource.read_text(encoding="utf-8"), Device, file=f"devices/{name}.yaml")
    if device.name != name:
        raise InputError(f"devices/{name}.yaml holds the device {device.name!r}.", "Make the names equal.")
    return device
