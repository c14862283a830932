"""A device as a list of its constants with their labels and sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from muplan.hardware.device import Device
from muplan.serde import Part


class ConstantRow(Part):
    """One constant or curve of a device."""

    key: str
    value: str
    label: str
    source: str


def list_constants(device: Device) -> tuple[ConstantRow, ...]:
    """Every labelled constant and curve of a device, by its dotted key, in the file's order."""
    return tuple(_rows(device.model_dump(mode="json"), ""))


def _rows(content: dict[str, Any], key: str) -> Iterator[ConstantRow]:
    for name, value in content.items():
        place = f"{key}.{name}" if key else name
        if not isinstance(value, dict):
            continue
        if "label" in value and "source" in value:
            yield ConstantRow(
                key=place,
                value=_value(value),
                label=str(value["label"]),
                source=" ".join(str(value["source"]).split()),
            )
        else:
            yield from _rows(value, place)


def _value(content: dict[str, Any]) -> str:
    if "points" in content:
        points = content["points"]
        return f"{len(points)} points, {points[0][0]:g}–{points[-1][0]:g}"
    return (
        f"{content['value']:g}"
        if isinstance(content.get("value"), int | float)
        else str(content.get("value"))
    )
