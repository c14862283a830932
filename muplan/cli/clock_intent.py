"""``muplan execute --apply-clocks --dry-run``: what would be done to the GPUs' clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from muplan.errors import EXIT_NO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.plan import Plan
    from muplan.problem.problem import Problem
    from muplan.serving.realtime.clock_intent import ClockIntent


def show_clock_intent(
    problem: Problem, plan: Plan, controller: str | None, *, is_shared: bool, json: bool
) -> None:
    """Print what --apply-clocks would do; exits with 1 where it would be refused."""
    from muplan.cli.console import print_json, print_result
    from muplan.serving.realtime.clock_intent import clock_intent

    policy = controller or plan.deployment.serving.controller.policy
    intent = clock_intent(problem, plan, controller=policy, is_shared=is_shared)
    if json:
        print_json(intent)
    else:
        print_result(*format_clock_intent(intent))
    if intent.objections:
        raise typer.Exit(EXIT_NO)


def format_clock_intent(intent: ClockIntent) -> list[RenderableType]:
    """A row a GPU, then how, and what stands against it."""
    from muplan.cli.console import make_table

    rows = [[one.gpu, f"{one.index}", one.name or "none", f"{one.clock_mhz} MHz"] for one in intent.gpus]
    moved = "stays as it is" if intent.controller == "fixed" else f"is moved by {intent.controller}"
    return [
        make_table(
            "What --apply-clocks would do",
            [("GPU of the plan", "left"), ("here", "right"), ("which is", "left"), ("clock", "right")],
            rows,
        ),
        f"Through {intent.way or 'nothing: no rights'}; then the clock {moved}.",
        f"Restored to {intent.restored_to},\nby muplan however it leaves; if it is killed, by its guardians.",
        *[f"Stands against it: {objection}" for objection in intent.objections],
    ]
