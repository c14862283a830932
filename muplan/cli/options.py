"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Profiles = Annotated[
    Path,
    typer.Option(
        "--profiles", help="Folder of profiles (DEVICE/MODEL.json); what it lacks is modelled on the spot."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
DEFAULT_PROFILES = Path("profiles")


def parse_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Parse ``"1,2,4"``; InputError names the option where it is no such list."""
    from muplan.errors import InputError

    if text is None:
        return None
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise InputError(
            f"{option} {text!r} is not a list of positive whole numbers.", f"Write it as in: {option} 1,2,4"
        )
    return numbers
