"""Plots of profiles and runs, as PNG (or any format that the file's ending names)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from muplan.comparison import Comparison
from muplan.errors import InputError
from muplan.frontier import Axis, Frontier, FrontierPoint
from muplan.plan import Interval, Plan
from muplan.profile import Phase, Profile
from muplan.report.profile_summary import default_point
from muplan.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

FORMATS = (".png", ".svg", ".pdf")


def plot_profile(profile: Profile, path: Path) -> None:
    """Draw latency, power and energy of every cluster type over the clock, relative to the highest.

    Raises
    ------
    InputError
        The file's ending is none that can be drawn, or it cannot be written.
    """
    figure = new_figure(rows=len(profile.phases), columns=3, width_in=13.0, height_in=3.6)
    for row, grid in enumerate(profile.phases):
        _plot_phase(profile, grid.phase, figure.axes[3 * row : 3 * row + 3])
    figure.suptitle(f"{profile.model} on {profile.device} ({profile.provenance.method})")
    save_figure(figure, path)


def _plot_phase(profile: Profile, phase: Phase, axes: list[Axes]) -> None:
    point = default_point(profile, phase)
    where = asdict(point)
    latency = profile.latency_s(phase, **where)
    power = profile.power_w(phase, **where)
    counts = np.bincount(profile.cluster_type_index, minlength=len(profile.cluster_types))
    total = (counts[:, None] * latency).sum(axis=0)
    total_energy = (counts[:, None] * latency * power).sum(axis=0)
    curves = [
        (kind.name, latency[i], power[i], latency[i] * power[i])
        for i, kind in enumerate(profile.cluster_types)
    ]
    clocks = np.array(profile.clocks_mhz)
    for name, time, watts, energy in curves:
        axes[0].plot(clocks, time / time[-1], marker="o", markersize=3, label=name)
        axes[1].plot(clocks, watts, marker="o", markersize=3)
        axes[2].plot(clocks, energy / energy[-1], marker="o", markersize=3)
    axes[0].plot(clocks, clocks[-1] / clocks, color="grey", linestyle=":", label="in proportion to the clock")
    axes[0].plot(clocks, total / total[-1], color="black", linewidth=2, label="whole model")
    axes[1].plot(clocks, total_energy / total, color="black", linewidth=2)
    axes[2].plot(clocks, total_energy / total_energy[-1], color="black", linewidth=2)
    for axis, label in zip(
        axes, ("latency / latency at max clock", "power (W)", "energy / energy at max clock"), strict=True
    ):
        axis.set_ylabel(label)
        axis.set_xlabel("clock (MHz)")
        axis.grid(alpha=0.3)
    axes[0].set_title(f"{phase}: batch {point.batch}, {point.tokens} tokens", loc="left", fontsize=10)
    axes[0].legend(fontsize=8)


def plot_run(plan: Plan, run: Run, path: Path) -> None:
    """Draw the power of a run over time, split into its three levels, and the clock of every group.

    Raises
    ------
    InputError
        As `plot_profile`.
    """
    power = run.power_trace
    if power is None:
        raise InputError(
            f"The {run.backend} run has no power over time to draw.", "Draw a run on another backend."
        )
    figure = new_figure(rows=2, columns=1, width_in=10.0, height_in=3.2)
    power_axis, clock_axis = figure.axes
    times = power.width_s * (np.arange(len(power.busy_w)) + 0.5)
    levels = [np.full(len(times), power.parked_w), np.array(power.loaded_w), np.array(power.busy_w)]
    power_axis.stackplot(times, levels, labels=["parked", "loaded, idle", "busy"], alpha=0.8)
    power_axis.axhline(plan.prediction.power_w.mean, color="black", linestyle=":", label="predicted mean")
    power_axis.axvspan(0, run.warm_up_s, color="grey", alpha=0.2, label="warm-up")
    power_axis.set_ylabel("power of the fleet (W)")
    power_axis.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)
    for group in plan.deployment.groups:
        changes = [c for c in run.clock_commands if c.group == group.name and c.stage == 0]
        steps = [(0.0, group.stages[0].clock_mhz), *((c.time_s, c.to_mhz) for c in changes)]
        steps.append((run.duration_s, steps[-1][1]))
        hosted = ", ".join(replica.service for replica in group.replicas)
        clock_axis.step(*zip(*steps, strict=True), where="post", label=f"{group.name}: {hosted}")
    clock_axis.set_ylabel("clock (MHz)")
    clock_axis.set_xlabel("time (s)")
    clock_axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    for axis in figure.axes:
        axis.set_xlim(0, run.duration_s)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{run.plan}: {run.backend} run ({run.label})")
    save_figure(figure, path)


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the power of every plan with its interval, and below it the margin of every service to its target.

    Raises
    ------
    InputError
        As `plot_profile`.
    """
    drawn = [(plan, plan.prediction) for plan in comparison.plans if plan.prediction is not None]
    figure = new_figure(rows=2, columns=1, width_in=max(6.0, 1.6 * len(drawn) + 2.0), height_in=3.2)
    power_axis, margin_axis = figure.axes
    places = np.arange(len(drawn))
    for place, (plan, prediction) in zip(places, drawn, strict=True):
        power, over = prediction.power_w, plan.power_over_first
        color = "tab:blue" if plan.meets_targets else "tab:red"
        spread = [[power.mean - power.low], [power.high - power.mean]]
        power_axis.bar(place, power.mean, width=0.6, color=color, yerr=spread, capsize=4)
        text = f"{power.mean:.0f} W" + (f"\n{over.mean:.2f}×" if over is not None else "")
        power_axis.annotate(
            text, (place, power.high), (0, 3), textcoords="offset points", ha="center", fontsize=9
        )
        margins = [100 * plan.margin(item) for item in prediction.services]
        margin_axis.scatter([place] * len(margins), margins, s=14, color=color, alpha=0.7)
    power_axis.margins(y=0.2)
    power_axis.set_ylim(bottom=0)
    power_axis.set_ylabel("power of the fleet (W)")
    margin_axis.axhline(0.0, color="black", linestyle=":")
    margin_axis.set_ylabel("attainment above target (points)")
    for axis in figure.axes:
        axis.set_xticks(places, [plan.solver for plan, _ in drawn])
        axis.set_xlim(-0.6, len(drawn) - 0.4)
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{comparison.name}: plans side by side (modelled; red: misses a target)")
    save_figure(figure, path)


def plot_frontier(frontier: Frontier, path: Path) -> None:
    """Draw the power of every plan over the axis, with its interval; the line joins those on the frontier.

    Raises
    ------
    InputError
        As `plot_profile`.
    """
    figure = new_figure(rows=1, columns=1, width_in=7.0, height_in=4.2)
    axis = figure.axes[0]
    factor = 100.0 if frontier.axis is Axis.ATTAINMENT else 1.0
    line = [(factor * point.value, power) for point, power in _powers(frontier.undominated)]
    axis.plot([x for x, _ in line], [power.mean for _, power in line], color="tab:blue", alpha=0.6)
    for point, power in _powers(frontier.points):
        color = "tab:grey" if point.is_dominated else "tab:blue"
        spread = [[power.mean - power.low], [power.high - power.mean]]
        axis.errorbar(factor * point.value, power.mean, yerr=spread, fmt="o", capsize=4, color=color)
        axis.annotate(
            f"{len(point.placed)} GPUs",
            (factor * point.value, power.high),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    if frontier.axis is Axis.ATTAINMENT:
        # Misses halve from tick to tick: targets crowd at 100 %.
        axis.set_xscale("function", functions=(_nines, _share_of_nines))
        axis.set_xticks([factor * point.value for point, _ in _powers(frontier.points)])
    axis.margins(x=0.08, y=0.12)
    axis.set_xlabel(_AXIS_LABELS[frontier.axis])
    axis.set_ylabel("power of the fleet (W)")
    axis.grid(alpha=0.3)
    figure.suptitle(f"{frontier.name}: least power against {frontier.axis} (modelled; grey: dominated)")
    save_figure(figure, path)


_AXIS_LABELS = {
    Axis.ATTAINMENT: "attainment target of every service (%)",
    Axis.SLO_SCALE: "latency limits, as multiples of the workload's",
    Axis.GPUS: "GPUs that may be used",
}


def _powers(points: Sequence[FrontierPoint]) -> list[tuple[FrontierPoint, Interval]]:
    return [(point, point.prediction.power_w) for point in points if point.prediction is not None]


def _nines(percent: Floats) -> Floats:
    """Where a percentage stands on an axis of nines: 90 → 1, 99 → 2."""
    return np.asarray(-np.log10(np.maximum(1.0 - percent / 100.0, 1e-6)))


def _share_of_nines(place: Floats) -> Floats:
    return np.asarray(100.0 * (1.0 - 10.0**-place))


def new_figure(*, rows: int, columns: int, width_in: float, height_in: float) -> Figure:
    """A figure without a window: rows × columns axes, each row ``height_in`` high."""
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width_in, height_in * rows), layout="constrained")
    figure.subplots(rows, columns, squeeze=False)
    return figure


def check_format(path: Path | None) -> None:
    """Refuse a file (if any) whose ending names no format, before anything long is begun."""
    if path is not None and path.suffix.lower() not in FORMATS:
        raise InputError(
            f"{path} ends in none of {', '.join(FORMATS)}.", "Name a file that ends in one of these."
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; equal figures give equal bytes.

    Raises
    ------
    InputError
        The file's ending is none that can be drawn, or it cannot be written.
    """
    check_format(path)
    # Without a date or a version in the file, equal inputs give equal bytes.
    metadata: dict[str, Any] = {
        ".png": {"Software": None},
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
    }[path.suffix.lower()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata=metadata)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}.", "Name another place for the plot."
        ) from None
