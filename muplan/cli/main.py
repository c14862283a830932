"""The ``muplan`` command: its sub-commands, and errors turned into exit codes.

Sub-commands import what they need when they run, so that ``muplan --help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated

import typer

import muplan
from muplan.cli import (
    catalogs,
    compare,
    device_measure,
    doctor,
    execute,
    profile,
    profile_import,
    solve,
    traces,
    verify,
)
from muplan.cli.phrases import PhraseGroup
from muplan.errors import EXIT_GOOD, MachineError, MuplanError
from muplan.planning.methods.name import DESCRIPTIONS

app = typer.Typer(
    name="muplan",
    cls=PhraseGroup,
    help="Plan the serving of many models on GPUs within their latency objectives, on the least power.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 good · 1 the answer is no · 2 bad input · 3 the machine refused.",
)
app.command("profile")(profile.profile_command)
app.command("profile import")(profile_import.import_command)
_METHODS = "\n\n".join(["Planning methods:", *(f"{name}: {text}" for name, text in DESCRIPTIONS.items())])

app.command("solve", epilog=_METHODS)(solve.solve_command)
app.command("compare", epilog=_METHODS)(compare.compare_command)
app.command("execute")(execute.execute_command)
app.command("verify")(verify.verify_command)
app.command("doctor")(doctor.doctor_command)
app.add_typer(traces.app, name="trace")
app.add_typer(catalogs.models, name="model")
catalogs.devices.command("measure")(device_measure.measure_command)
app.add_typer(catalogs.devices, name="device")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"muplan {muplan.__version__}")
        raise typer.Exit(EXIT_GOOD)


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Profile models, solve for a plan, execute it, verify it."""


def main() -> None:
    """Run the command line and exit with the code that docs/cli.md lists."""
    if sys.stderr.isatty():  # elsewhere stderr is for errors
        logging.basicConfig(format="%(message)s")
        logging.getLogger("muplan").setLevel(logging.INFO)
    try:
        app()
    except MuplanError as error:
        _fail(error)
    except MemoryError:
        _fail(
            MachineError("The machine's memory does not suffice.", "Shorten the simulation, or its requests.")
        )
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(
            MachineError(f"{place}{error.strerror or error}.", "Check the path and the machine, and repeat.")
        )
    except Exception as error:
        _fail(
            MachineError(
                f"muplan failed unexpectedly: {type(error).__name__}: {error}",
                "This is a bug; please report it with the traceback below and the command that led to it.",
            ),
            unexpected=error,
        )


def _fail(error: MuplanError, unexpected: Exception | None = None) -> None:
    """Say what is wrong, then the traceback where nobody expected it, and exit."""
    from muplan.cli.console import print_error

    print_error(error)
    if unexpected is not None:
        sys.stderr.write("\n" + "".join(traceback.format_exception(unexpected)))
    sys.exit(error.exit_code)
