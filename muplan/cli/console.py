"""The only place that prints. ``format_*`` are pure; stdout is the result, stderr is progress."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from muplan.errors import MuplanError
    from muplan.planning.search.progress import Report, Step
    from muplan.planning.solvers.solver import Progress
    from muplan.serde import Part

WIDTH = 110
"""Width of tables where the output is no terminal, so that equal results print equal text."""


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False)


def print_result(*renderables: RenderableType) -> None:
    """Print what the command was asked for."""
    console = _console()
    for renderable in renderables:
        console.print(renderable)


def print_text(text: str) -> None:
    """Print a result verbatim: JSON, CSV."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_json(result: Part | Sequence[Part]) -> None:
    """Print documents as JSON; a sequence as a JSON array."""
    import json

    from muplan.serde import Part, to_json

    if isinstance(result, Part):
        print_text(to_json(result))
    else:
        content = [document.model_dump(mode="json", exclude_none=True) for document in result]
        print_text(json.dumps(content, indent=2, ensure_ascii=False))


def print_note(text: str) -> None:
    """Say something beside the result."""
    _console(stderr=True).print(escape(text), style="dim", soft_wrap=True)


def print_error(error: MuplanError) -> None:
    """Say what is wrong, then what to do."""
    console = _console(stderr=True)
    console.print(f"[bold red]error:[/] {escape(error.problem)}", soft_wrap=True)
    if error.remedy:
        console.print(f"\n{escape(error.remedy)}", soft_wrap=True)


class Following:
    """What a search does, as a line or two with the time since it began."""

    def __init__(self, title: str) -> None:
        from rich.spinner import Spinner

        self._title, self._start_s = title, time.monotonic()
        self._spinner = Spinner("dots")
        self._step: Step | None = None
        self._figures = ""

    def follow(self, step: Step) -> None:
        """Show a step from now on; figures of a solver stay until the next one begins."""
        self._step = step
        if step.solver is not None:
            self._figures = format_progress(step.solver)
        elif step.phase != "simulating":
            self._figures = ""

    def __rich__(self) -> RenderableType:
        """The lines of this moment."""
        elapsed_s = time.monotonic() - self._start_s
        self._spinner.update(text=f"{format_elapsed(elapsed_s)}  {escape(self._title)}")
        lines: list[RenderableType] = [self._spinner]
        if self._step is not None:
            lines.append(f"  {escape(format_step(self._step))}")
        if self._figures:
            lines.append(f"  {escape(self._figures)}")
        return Group(*lines)


def format_step(step: Step) -> str:
    """A step in words: ``alpaserve: judging, 1 of 3``."""
    count = f", {step.number} of {step.total}" if step.total else ""
    return ": ".join([*step.scope, f"{step.phase}{count}"])


def format_progress(progress: Progress) -> str:
    """Incumbent, bound and gap of a solver."""
    gap = format_share(progress.gap, 2) if math.isfinite(progress.gap) else "–"
    known = f"{progress.incumbent:.1f}" if math.isfinite(progress.incumbent) else "none"
    return f"{progress.phase}: incumbent {known}, bound {progress.bound:.1f}, gap {gap}"


def format_elapsed(elapsed_s: float) -> str:
    """Hours, minutes and seconds: ``0:01:05``."""
    minutes, seconds = divmod(int(elapsed_s), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextmanager
def following(title: str) -> Iterator[Report]:
    """A report that shows on a terminal what a search does, and nothing elsewhere."""
    from rich.live import Live

    from muplan.planning.search.progress import silent

    console = _console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    shown = Following(title)
    with Live(shown, console=console, refresh_per_second=8, transient=True):
        yield shown.follow


@contextmanager
def counting(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal for what is done of how much, with the time left; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(escape(text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show that something is under way, on a terminal."""
    console = _console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(escape(text)):
        yield


def make_table(
    title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], caption: str = ""
) -> Group:
    """Build a table below its title; ``columns`` are pairs of header and justification."""
    table = Table()
    for header, justify in columns:
        table.add_column(header, justify="right" if justify == "right" else "left")
    for row in rows:
        table.add_row(*row)
    parts: list[RenderableType] = [f"[bold]{escape(title)}[/]", table]
    if caption:
        parts.append(f"[dim]{escape(caption)}[/]")
    return Group(*parts)


def format_bytes(count: float) -> str:
    """Bytes for a person: ``2.84 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def format_seconds(duration_s: float) -> str:
    """A duration for a person: ``151 ms``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if duration_s >= size:
            return f"{duration_s / size:.3g} {unit}"
    return f"{duration_s * 1e6:.3g} µs"


def format_share(share: float, digits: int = 1) -> str:
    """A share in percent: ``99.2 %``."""
    return f"{100 * share:.{digits}f} %"
