"""What the rows of a table of latencies must be together, and on a device, to make profiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from muplan.hardware.device import Device
from muplan.profiling.latency_table import Measurement, TableFaults

Shape = tuple[int, int]
"""Tensor parallelism and number of stages."""


def check_table(
    rows: Sequence[Measurement], device: Device, weight_bytes: Mapping[str, float], *, file: str
) -> None:
    """Refuse rows that stand twice, do not fit the device, or leave holes in a model's table.

    Parameters
    ----------
    weight_bytes
        Weights of whole models that stand in where no row of a configuration states them.

    Raises
    ------
    InputError
        Lists every fault with its row.
    """
    faults = TableFaults(file)
    _check_unique(rows, device, faults)
    for row in rows:
        _check_on_device(row, device, faults)
    models: dict[str, list[Measurement]] = defaultdict(list)
    for row in rows:
        models[row.model].append(row)
    for name, members in models.items():
        _check_power(members, faults)
        _check_grid(members, device, faults)
        if name not in weight_bytes:
            _check_weights(members, faults)
    faults.raise_any()


def _clock_mhz(row: Measurement, device: Device) -> int:
    return row.clock_mhz or device.max_clock_mhz


def _check_unique(rows: Sequence[Measurement], device: Device, faults: TableFaults) -> None:
    first: dict[tuple[object, ...], int] = {}
    for row in rows:
        key = (row.model, row.tensor_parallel, row.num_stages, row.batch, _clock_mhz(row, device))
        if key in first:
            faults.add(row.line, "", f"{row.place} stands already in row {first[key]}; keep one of the two")
        first.setdefault(key, row.line)


def _check_on_device(row: Measurement, device: Device, faults: TableFaults) -> None:
    clock = _clock_mhz(row, device)
    if clock not in device.usable_clocks_mhz:
        low, high = device.usable_clocks_mhz[0], device.usable_clocks_mhz[-1]
        message = f"{clock} is none of the usable clocks of {device.name}, {low} to {high} MHz as listed"
        faults.add(row.line, "clock_mhz", message)
        return
    if row.stage_power_w is None:
        return
    loaded_w = float(device.loaded_power_w(device.effective_clock_mhz(clock)))
    if min(row.stage_power_w) <= loaded_w or max(row.stage_power_w) > device.power_cap_w:
        message = (
            f"a busy {device.name} at {clock} MHz draws above {loaded_w:.0f} W and at most"
            f" {device.power_cap_w:g} W (found {min(row.stage_power_w):g} to {max(row.stage_power_w):g})"
        )
        faults.add(row.line, "power_w", message)


def _check_power(rows: Sequence[Measurement], faults: TableFaults) -> None:
    stated = [row for row in rows if row.stage_power_w is not None]
    if stated and len(stated) < len(rows):
        for row in rows:
            if row.stage_power_w is None:
                faults.add(row.line, "power_w", f"is empty, where other rows of {row.model} state it")


def _check_grid(rows: Sequence[Measurement], device: Device, faults: TableFaults) -> None:
    """Every configuration of a model is measured at the same batches and clocks; batch 1 is one."""
    points: dict[Shape, dict[tuple[int, int], int]] = defaultdict(dict)
    for row in rows:
        shape = (row.tensor_parallel, row.num_stages)
        points[shape][row.batch, _clock_mhz(row, device)] = row.line
    batches = sorted({batch for at in points.values() for batch, _ in at})
    clocks = sorted({clock for at in points.values() for _, clock in at})
    if batches[0] != 1:
        faults.add(rows[0].line, "batch_size", f"{rows[0].model} is not measured at batch 1; add those rows")
        return
    for (width, stages), at in points.items():
        missing = [(batch, clock) for batch in batches for clock in clocks if (batch, clock) not in at]
        if missing:
            shown = ", ".join(f"batch {batch} at {clock} MHz" for batch, clock in missing[:4])
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            message = (
                f"{rows[0].model}, tensor parallelism {width} × {stages} stages, lacks {shown}{more}, which"
                " another configuration has; add these rows, or leave those batches and clocks out"
            )
            faults.add(min(at.values()), "", message)


def _check_weights(rows: Sequence[Measurement], faults: TableFaults) -> None:
    stated = {(row.tensor_parallel, row.num_stages) for row in rows if row.stage_weight_bytes is not None}
    for row in rows:
        shape = (row.tensor_parallel, row.num_stages)
        if shape not in stated:
            stated.add(shape)  # once for each configuration
            message = f"is not stated; fill it in, or give --weights {row.model}=BYTES of the whole model"
            faults.add(row.line, "stage_weight_bytes_per_gpu", message)
