"""The C double of NVML: built with gcc into a folder, its GPU's state read and set through a file."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml_double" / "nvml_double.c"
LIBRARY = "libnvidia-ml.so.1"
"""What the binding asks the loader for."""
FIELDS = (
    *("locked_mhz", "num_locks", "num_resets", "denied", "lost", "partitioned", "num_processes"),
    *("held_mhz", "reasons", "power_mw", "temperature_c", "no_driver"),
)


def build(folder: Path, *flags: str) -> Path:
    """Compile the double; skip where there is no gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("the NVML double is built with gcc, which is not here")
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC", *flags]
    subprocess.run([*command, "-o", str(folder / LIBRARY), str(SOURCE)], check=True)
    return folder


class State:
    """One GPU of the double; fields as in its source."""

    def __init__(self, path: Path, library: Path) -> None:
        self._path, self._library = path, library
        path.write_bytes(struct.pack(f"{len(FIELDS)}q", *([0] * len(FIELDS))))
        self.set(power_mw=300_000, temperature_c=50)

    def set(self, **values: int) -> None:
        """Change fields in place: the file is shared with whoever has loaded the double."""
        with self._path.open("r+b") as file:
            for name, value in values.items():
                file.seek(8 * FIELDS.index(name))
                file.write(struct.pack("q", value))

    def get(self, name: str) -> int:
        content = self._path.read_bytes()
        return int(struct.unpack_from("q", content, 8 * FIELDS.index(name))[0])

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to find the double instead of the driver's library."""
        root = str(Path(__file__).parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        found = {"LD_LIBRARY_PATH": str(self._library), "NVML_DOUBLE_STATE": str(self._path)}
        return {**os.environ, **found, "PYTHONPATH": path}
