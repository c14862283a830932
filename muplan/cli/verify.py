"""``muplan verify``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.options import DEFAULT_PROFILES, Json, Profiles, Seed
from muplan.errors import EXIT_NO, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from muplan.verify.check import PlanVerdict

_SHOWN = 4
"""Violations of one constraint that are printed for a plan."""


def verify_command(
    paths: Annotated[list[Path], typer.Argument(help="Plan or run files, or folders of plans.")],
    profiles: Profiles = DEFAULT_PROFILES,
    seed: Seed = 1,
    json: Json = False,
) -> None:
    """Check saved plans: recompute every constraint from workload and plan, then simulate afresh.

    Of a run that 'muplan execute' wrote it checks that its figures follow from one another.
    Exits with 1 if a plan or run does not hold, and with 2 if one cannot be read.
    """
    from muplan.cli.console import print_error, print_json, print_result, progress
    from muplan.verify.check import check_file, find_plans, unreadable

    verdicts, refused = [], 0
    for path in find_plans(paths):
        try:
            with progress(f"checking {path}"):
                verdicts.append(check_file(path, profiles=profiles, seed=seed))
        except InputError as error:
            print_error(error)
            verdicts.append(unreadable(path, error))
            refused = error.exit_code
    worst_first = sorted(verdicts, key=_rank)
    if json:
        print_json(worst_first)
    elif worst_first:
        print_result(format_verdicts(worst_first), *format_violations(worst_first))
    if refused:
        raise typer.Exit(refused)
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(EXIT_NO)


def _rank(verdict: PlanVerdict) -> tuple[bool, int, float, str]:
    margin = verdict.margin if verdict.margin is not None else 0.0
    return (verdict.holds, -len(verdict.violations), margin, verdict.file)


def format_verdicts(verdicts: Sequence[PlanVerdict]) -> RenderableType:
    """One row a plan, worst first."""
    from muplan.cli.console import make_table

    rows = []
    for verdict in verdicts:
        fresh = verdict.fresh
        rows.append(
            [
                "[green]holds[/]" if verdict.holds else "[red]violated[/]",
                verdict.file,
                f"{len(verdict.violations)}",
                f"{100 * verdict.margin:+.2f}" if verdict.margin is not None else "–",
                f"{fresh.power_w.mean:.0f} W" if fresh else "–",
            ]
        )
    return make_table(
        "Plans checked, worst first",
        [
            ("verdict", "left"),
            ("plan", "left"),
            ("violations", "right"),
            ("margin", "right"),
            ("power", "right"),
        ],
        rows,
        caption="margin: least attainment above target over the services, in points."
        " Margin and power are those of a fresh simulation (modelled).",
    )


def format_violations(verdicts: Sequence[PlanVerdict]) -> list[str]:
    """Violations, one a line: the first of each constraint, and how many more there are."""
    from rich.markup import escape

    lines = []
    for verdict in verdicts:
        counts: Counter[str] = Counter()
        for violation in verdict.violations:
            counts[violation.constraint] += 1
            if counts[violation.constraint] <= _SHOWN:
                lines.append(
                    f"  [red]{escape(verdict.file)}[/]: [bold]{violation.constraint}[/]:"
                    f" {escape(violation.subject)}: {escape(violation.message)}"
                )
        name = escape(verdict.file)
        lines += [
            f"  [red]{name}[/]: [bold]{constraint}[/]: {count - _SHOWN} more (--json lists all)"
            for constraint, count in counts.items()
            if count > _SHOWN
        ]
    return lines
