"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from muplan.workload import Goal

_Name = TypeVar("_Name", bound=str)


def _existing(context: typer.Context, parameter: typer.CallbackParam, folder: Path) -> Path:
    """Refuse a folder that was asked for and is not there; the default one may be absent."""
    source = context.get_parameter_source(parameter.name or "")
    if source is not None and source.name == "COMMANDLINE" and not folder.is_dir():
        from muplan.errors import InputError

        raise InputError(
            f"--profiles {folder}: there is no such folder.",
            "Name a folder of profiles, or leave the option out to have them modelled.",
        )
    return folder


MODEL_HELP = (
    "A shipped model (see 'muplan model list'), a model file, a config.json of transformers or the folder of"
    " a model, or a function that makes a torch module, as module:function."
)
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.", show_default=False)]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="What to optimise, else the workload's: power, goodput, rate, energy-per-request, or several in"
        " order with commas between (goodput,power).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Profiles = Annotated[
    Path,
    typer.Option(
        "--profiles",
        help="Folder of profiles (DEVICE/MODEL.json); what it lacks is modelled on the spot.",
        callback=_existing,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
TimeLimit = Annotated[
    float, typer.Option("--time-limit", min=0.1, help="Seconds for each run of the solver.")
]
Controllable = Literal["fixed", "miad", "slack", "forecast"]
"""Names of controllers, as `muplan.workload` has them; a test holds the two together."""
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw it into this file: .png, .svg or .pdf.", show_default=False),
]
DEFAULT_PROFILES = Path("profiles")


def parse_objective(text: str | None) -> tuple[Goal, ...]:
    """Parse ``"goodput,power"``; none where the option is absent. InputError where it is no objective."""
    from muplan.errors import InputError
    from muplan.workload import parse_goals

    if text is None:
        return ()
    try:
        return parse_goals([part.strip() for part in text.split(",")])
    except ValueError as error:
        raise InputError(
            f"--objective {text}: {error}.", "Write goals in order, as in: --objective goodput,power"
        ) from None


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


def parse_names(text: str, option: str, known: Sequence[_Name], noun: str) -> tuple[_Name, ...]:
    """Parse ``"exact,alpaserve"``, names of what ``noun`` says; each of ``known``, none twice.

    Raises
    ------
    InputError
        A name is not known, or stands twice.
    """
    from muplan.errors import InputError

    names = [part.strip() for part in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"{option} {text!r}: {', '.join(map(repr, unknown))} is no {noun}.",
            f"Name some of {', '.join(known)}, separated by commas.",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{option} {text!r} names {', '.join(twice)} more than once.", f"Name every {noun} once."
        )
    by_name = {str(name): name for name in known}
    return tuple(by_name[name] for name in names)
