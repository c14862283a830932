"""The shipped device files, and what a user hears about a faulty one.

If these fail, a shipped number has lost its source, or a faulty file is taken for a device.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from muplan.errors import InputError
from muplan.hardware.catalog import device_names, load_device
from muplan.hardware.quantity import Constant, Curve
from muplan.serde import Part, digest, to_json

SHIPPED = files("muplan.hardware") / "devices"


def quantities(part: Part, key: str = "") -> list[tuple[str, Constant | Curve]]:
    found: list[tuple[str, Constant | Curve]] = []
    for name in type(part).model_fields:
        value = getattr(part, name)
        path = f"{key}.{name}".lstrip(".")
        if isinstance(value, Constant | Curve):
            found.append((path, value))
        elif isinstance(value, Part):
            found += quantities(value, path)
    return found


def text_of(name: str) -> str:
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


def test_the_promised_devices_ship() -> None:
    assert device_names() == (
        "a100-sxm4-80gb",
        "a100-sxm4-80gb-500w",
        "cpu",
        "h100-sxm5-80gb",
        "h200-sxm5-141gb",
        "v100-pcie-16gb",
        "v100-sxm2-16gb",
        "v100-sxm2-32gb",
    )


@pytest.mark.parametrize("name", device_names())
def test_every_number_has_a_label_and_a_source(name: str) -> None:
    found = quantities(load_device(name))
    assert len(found) >= 30
    for key, quantity in found:
        assert len(quantity.source) > 5, key
        assert not any(word in quantity.source for word in ("preliminary", "to be calibrated", "TODO")), key


@pytest.mark.parametrize("name", device_names())
def test_round_trip(name: str, tmp_path: Path) -> None:
    device = load_device(name)
    path = tmp_path / "device.json"
    path.write_text(to_json(device), encoding="utf-8")
    again = load_device(path)
    assert again == device
    assert digest(again) == digest(device)


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        load_device("a100-sxm4-80g")
    assert str(caught.value).startswith(
        "There is no device 'a100-sxm4-80g'.\n\nDid you mean a100-sxm4-80gb or "
    )
    assert "To use your own, name its file (.yaml)." in caught.value.remedy


def test_missing_file() -> None:
    with pytest.raises(InputError, match=r"nowhere/mine\.yaml does not exist\."):
        load_device("nowhere/mine.yaml")


def test_a_broken_file_lists_all_its_faults(tmp_path: Path) -> None:
    text = text_of("h100-sxm5-80gb")
    text = text.replace("label: measured", "label: guessed", 1)
    text = text.replace("  step_mhz:", "  stride_mhz:")
    text = text.replace("two_gpu_factor: {value: 1.0", "two_gpu_factor: {value: 1.5")
    text = text.replace("launch_s: {value: 2.337e-05", "launch_s: {value: fast")
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_device(path)
    lines = {line: number for number, line in enumerate(text.splitlines(), start=1)}

    def line_of(fragment: str) -> int:
        return next(number for line, number in lines.items() if fragment in line)

    faults = {(fault.key, fault.line): fault.message for fault in caught.value.faults}
    assert faults[("memory.capacity_bytes.label", line_of("guessed"))].startswith("should be 'measured'")
    assert faults[("clocks.stride_mhz", line_of("stride_mhz"))] == "no such key"
    assert faults[("clocks.step_mhz", line_of("clocks:"))] == "this key is required"
    assert faults[("link", line_of("link:"))] == "two_gpu_factor must lie in (0, 1]"
    launch = faults[("compute.launch_s.value", line_of("launch_s: {value: fast"))]
    assert launch == "should be a valid number (found 'fast')"
    assert len(faults) == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[600, 600], [1980, 1980]]", "[[600, 700], [1980, 1980]]", "effective_mhz must not exceed"),
        ("[[600, 600], [1980, 1980]]", "[[900, 600], [1980, 1980]]", "effective_mhz must cover usable_min"),
        (
            "[[600, 1.0], [1200, 1.0], [1980, 1.4]]",
            "[[600, 1.0], [1200, 0.9], [1980, 1.4]]",
            "must begin at 1",
        ),
        ("[[600, 1.0], [1200, 1.0], [1980, 1.4]]", "[[900, 1.0], [1980, 1.4]]", "must cover the effective"),
        (
            "[[600, 0.65], [1200, 1.0]]",
            "[[600, 0.65], [600, 1.0]]",
            "must ascend: 600 follows 600",
        ),
        ("usable_minimum_mhz: {value: 600", "usable_minimum_mhz: {value: 2000", "expected 0 < minimum_mhz"),
    ],
)
def test_impossible_physics_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = text_of("h100-sxm5-80gb")
    assert old in text
    path = tmp_path / "impossible.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_device(path)
