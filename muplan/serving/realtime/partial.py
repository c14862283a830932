"""A run that was broken off: its records as far as it went."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from muplan.errors import MachineError
from muplan.serving.records import PowerSamples, Records

_COLUMNS = (
    "service",
    "input_tokens",
    "output_tokens",
    "arrival_s",
    "group",
    "start_s",
    "first_token_s",
    "completion_s",
    "batch",
    "num_preemptions",
)


def cut_records(records: Records, until_s: float) -> Records:
    """Return the records of a run as if its trace had ended when it was broken off.

    Requests that had not come by then are left out; those that had come and were not answered stay, as
    rejected ones.

    Parameters
    ----------
    records
        Whose energy is that up to ``until_s``.

    Raises
    ------
    MachineError
        It was broken off before anything was measured.
    """
    if until_s >= records.duration_s:
        return records
    if until_s <= records.warm_up_s:
        raise MachineError(
            f"Interrupted after {until_s:.1f} s, within the warm-up of {records.warm_up_s:g} s: nothing was"
            " measured.",
            "Let it run for longer, or shorten the workload's simulation.warm_up_s.",
        )
    num_come = int(np.searchsorted(records.arrival_s, until_s))
    measured_until_s = min(records.measured_until_s, until_s)
    samples = records.samples
    num_samples = int(until_s / samples.width_s)  # those that are whole
    return replace(
        records,
        **{name: getattr(records, name)[:num_come] for name in _COLUMNS},
        duration_s=until_s,
        cool_down_s=until_s - measured_until_s,
        parked_j=samples.parked_w * (measured_until_s - records.warm_up_s),
        samples=PowerSamples(
            width_s=samples.width_s,
            busy_w=samples.busy_w[:num_samples],
            loaded_w=samples.loaded_w[:num_samples],
            parked_w=samples.parked_w,
        ),
    )
