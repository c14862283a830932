"""The picture of a trace: its rate over time, its intervals, its dispersion, its lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from muplan.report.plots import new_figure, save_figure
from muplan.traces.summary import count_dispersion
from muplan.traces.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_BINS = 120
"""Parts of the trace whose rate is drawn."""
_MOST_POINTS = 2_000
"""Points of a curve: of more requests a curve shows so many quantiles."""


def plot_trace(trace: Trace, path: Path) -> None:
    """Draw rate, intervals, dispersion and lengths of every service that has requests.

    Raises
    ------
    InputError
        The file's ending is none that can be drawn, or it cannot be written.
    """
    figure = new_figure(rows=2, columns=2, width_in=12.0, height_in=4.0)
    rate_axis, interval_axis, dispersion_axis, length_axis = figure.axes
    parts = [trace.only(name) for name in trace.services]
    for number, part in enumerate(part for part in parts if len(part)):
        color, name = f"C{number % 10}", part.services[0]
        edges_s = np.linspace(0.0, part.duration_s, _BINS + 1)
        counts = np.histogram(part.arrival_s, edges_s)[0]
        rates_rps = counts * _BINS / part.duration_s
        rate_axis.stairs(rates_rps, edges_s, baseline=None, color=color, label=name)
        _draw_intervals(interval_axis, part, color)
        _draw_dispersion(dispersion_axis, part, color)
        _draw_lengths(length_axis, part, color)
    _dress(figure.axes, trace)
    figure.suptitle(f"{len(trace)} requests in {trace.duration_s:.0f} s")
    save_figure(figure, path)


def _draw_intervals(axis: Axes, part: Trace, color: str) -> None:
    """Share of intervals longer than a multiple of their mean."""
    intervals_s = np.diff(part.arrival_s)
    if len(intervals_s) == 0 or intervals_s.sum() == 0.0:
        return
    longer, lengths = _exceedance(intervals_s / intervals_s.mean())
    axis.plot(lengths, longer, color=color, drawstyle="steps-post")


def _draw_dispersion(axis: Axes, part: Trace, color: str) -> None:
    """Index of dispersion of counts over windows, from a mean interval to a tenth of the trace."""
    shortest_s, longest_s = part.duration_s / len(part), part.duration_s / 10.0
    if shortest_s >= longest_s:
        return
    windows_s = np.geomspace(shortest_s, longest_s, 40)
    found = [
        count_dispersion(part.arrival_s, window_s=float(window_s), duration_s=part.duration_s)
        for window_s in windows_s
    ]
    axis.plot(windows_s, [np.nan if index is None else index for index in found], color=color)


def _draw_lengths(axis: Axes, part: Trace, color: str) -> None:
    """Share of requests longer than so many tokens: prompts whole, replies dashed."""
    for tokens, style in ((part.input_tokens, "-"), (part.output_tokens, "--")):
        if tokens.max() > 0:
            longer, lengths = _exceedance(tokens.astype(np.float64))
            axis.plot(lengths, longer, style, color=color, drawstyle="steps-post")


def _exceedance(values: Floats) -> tuple[Floats, Floats]:
    """Shares of values above a value, and that value; the more extreme, the denser."""
    ordered = np.sort(values)
    count = len(ordered)
    ranks = np.arange(count)
    if count > _MOST_POINTS:
        tail = np.geomspace(1, count, _MOST_POINTS)
        ranks = np.unique(np.concatenate([count - tail.astype(np.intp), np.linspace(0, count - 1, 200)]))
        ranks = ranks.astype(np.intp)
    return (count - ranks) / count, ordered[ranks]


def _dress(axes: list[Axes], trace: Trace) -> None:
    """Labels, scales and what a Poisson process would show."""
    rate_axis, interval_axis, dispersion_axis, length_axis = axes
    rate_axis.set(
        xlabel="time (s)", ylabel="requests/s", title=f"rate in parts of {trace.duration_s / _BINS:.3g} s"
    )
    rate_axis.set_xlim(0.0, trace.duration_s)
    rate_axis.set_ylim(bottom=0.0)
    if rate_axis.get_legend_handles_labels()[1]:
        rate_axis.legend(fontsize=8)
    multiples = np.geomspace(0.01, 12.0, 200)
    interval_axis.plot(multiples, np.exp(-multiples), color="grey", linestyle=":", label="Poisson")
    interval_axis.set(
        xscale="log", yscale="log", xlabel="interval / mean interval", ylabel="share of longer intervals"
    )
    interval_axis.set_xlim(left=0.01)
    interval_axis.set_title("inter-arrival times")
    dispersion_axis.axhline(1.0, color="grey", linestyle=":", label="Poisson")
    dispersion_axis.set(xscale="log", yscale="log", xlabel="window (s)", ylabel="variance / mean of counts")
    dispersion_axis.set_title("index of dispersion of counts")
    length_axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="share of longer requests")
    length_axis.set_title("lengths: prompts whole, replies dashed")
    for axis in (interval_axis, dispersion_axis):
        axis.legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
