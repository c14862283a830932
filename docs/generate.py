"""Write the generated parts of the documentation: the CLI reference and the JSON Schemas.

Run as ``python -m docs.generate`` (or ``make docs``); a test fails where they are out of date.
"""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parent


def generate() -> dict[Path, str]:
    """Every generated file with its text."""
    return {DOCS / "cli.md": cli_reference(), **schemas()}


def cli_reference() -> str:
    """The command line, as Markdown, from the commands themselves."""
    import typer
    from typer.cli import get_docs_for_click

    from muplan.cli.main import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="muplan")
    text = get_docs_for_click(obj=command, ctx=context, name="muplan", title="Command line")
    return text.rstrip() + "\n"


def schemas() -> dict[Path, str]:
    """One JSON Schema for each kind of document."""
    from muplan.comparison import Comparison
    from muplan.control_comparison import ControlComparison
    from muplan.endpoints import Endpoints
    from muplan.frontier import Frontier
    from muplan.hardware.device import Device
    from muplan.model.graph import ModelGraph
    from muplan.plan import Plan
    from muplan.profile import Profile
    from muplan.run import Run
    from muplan.traces.lengths import LengthDistribution
    from muplan.workload import Workload

    documents = (
        Device,
        ModelGraph,
        Profile,
        LengthDistribution,
        Workload,
        Plan,
        Endpoints,
        Run,
        Comparison,
        ControlComparison,
        Frontier,
    )
    return {
        DOCS / "schemas" / f"{document.KIND}.json": json.dumps(document.model_json_schema(), indent=2) + "\n"
        for document in documents
    }


def main() -> None:
    """Write what changed."""
    for path, text in generate().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: docs/{path.relative_to(DOCS)}")


if __name__ == "__main__":
    main()
