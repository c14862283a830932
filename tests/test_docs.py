"""The documentation is executed: what a reader types works and prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import generate
from docs.blocks import PAGES, ROOT, make_folder, refreshed


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_blocks_print_what_the_page_says(name: str, tmp_path: Path) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    assert refreshed(page, make_folder(tmp_path)) == page, "run: python -m docs.blocks"


@pytest.mark.parametrize("path", sorted(generate.generate()), ids=lambda path: path.name)
def test_generated_pages_are_current(path: Path) -> None:
    text = generate.generate()[path]
    assert path.exists(), f"docs/{path.relative_to(generate.DOCS)} is missing: run make docs"
    assert path.read_text(encoding="utf-8") == text, "run: make docs"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    import re

    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"


def test_every_constraint_stands_in_the_mathematics() -> None:
    """One name for a constraint: in the programme, in a violation, and on the page."""
    import re

    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    names = set()
    for path in (ROOT / "muplan" / "verify").glob("*.py"):
        names |= set(re.findall(r'constraint="(\w+)"', path.read_text(encoding="utf-8")))
    assert len(names) > 10
    missing = sorted(name for name in names if f"`{name}`" not in page)
    assert not missing, f"docs/mathematics.md does not name {missing}"
