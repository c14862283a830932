"""The structure of the package: imports point one way, and stay light.

If these fail, a layer has begun to depend on what is built upon it, or the command line has become slow.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "muplan"

LAYERS = (
    ("errors",),
    ("serde",),
    ("hardware", "model"),
    ("capture",),
    ("profile", "traces"),
    ("workload",),
    ("profiling",),
    ("problem",),
    ("plan", "run", "endpoints"),
    ("comparison", "control_comparison", "frontier"),
    ("serving",),
    ("planning",),
    ("verify",),
    ("report",),
    ("cli",),
    ("__main__",),
)
"""A module imports only from its own line and the lines above it."""

HEAVY = {
    "torch",
    "transformers",
    "ray",
    "aiohttp",
    "ortools",
    "pulp",
    "highspy",
    "matplotlib",
    "pandas",
    "scipy",
}
"""Packages that are imported only inside the functions that use them."""

RUNS_TORCH = (
    {
        PACKAGE / "profiling" / "measured" / f"{name}.py"
        for name in (
            "bench",
            "captured_modules",
            "modules",
            "place",
            "runnable",
            "torch_load",
            "torch_probes",
        )
    }
    | {
        PACKAGE / "serving" / "workers" / f"{name}.py"
        for name in ("generate_stage", "kv_cache", "stage", "worker")
    }
    | {
        PACKAGE / "capture" / f"{name}.py"
        for name in (
            "capture",
            "costs",
            "cutting",
            "flow",
            "grouping",
            "operators",
            "recording",
            "stage",
            "trace",
        )
    }
)
"""Files that are torch code throughout: they are themselves imported only inside functions."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def top(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def level(name: str) -> int:
    for index, names in enumerate(LAYERS):
        if name in names:
            return index
    raise AssertionError(f"muplan/{name} stands in no layer of tests/test_architecture.py")


def runtime_imports(tree: ast.Module, *, everywhere: bool) -> list[str]:
    """Imported module names; only those run at import time unless ``everywhere``."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.append(child.module)
                found.extend(f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                if everywhere:
                    visit(child)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere:
                continue
            else:
                visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    mine = level(top(path))
    for name in runtime_imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=True):
        parts = name.split(".")
        if parts[0] != "muplan" or len(parts) == 1 or parts[1] == "__version__":
            continue
        assert level(parts[1]) <= mine, f"{path.relative_to(PACKAGE)} imports {name}, which stands below it"


def test_verify_shares_no_code_with_the_planner() -> None:
    """A check that called the planner would repeat its mistakes; so nothing it imports may either."""
    seen: set[Path] = set()
    waiting = sorted((PACKAGE / "verify").glob("*.py"))
    assert waiting
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in runtime_imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=True):
            assert not name.startswith("muplan.planning"), f"{path.relative_to(PACKAGE)} imports {name}"
            place = PACKAGE.parent.joinpath(*name.split("."))
            if name.startswith("muplan."):
                waiting += [
                    file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()
                ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_lazily(path: Path) -> None:
    imported = runtime_imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=False)
    heavy = sorted(
        {name.split(".")[0] for name in imported} & HEAVY - ({"torch"} if path in RUNS_TORCH else set())
    )
    others = {PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in imported}
    assert path in RUNS_TORCH or not others & RUNS_TORCH, f"{path.relative_to(PACKAGE)} imports torch code"
    assert not heavy, f"{path.relative_to(PACKAGE)} imports {heavy} when it is itself imported"


def test_every_layer_names_something_that_exists() -> None:
    present = {top(path) for path in modules()}
    named = {name for names in LAYERS for name in names}
    assert named <= present, f"LAYERS names what is gone: {sorted(named - present)}"


@pytest.mark.parametrize(
    "code",
    ["import muplan", "import muplan.cli.main"],
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    probe = f"{code}\nimport sys\nprint(*sorted({HEAVY | {'numba', 'pydantic', 'numpy'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [], f"{code} imports {run.stdout.split()}"


def test_only_the_command_line_prints() -> None:
    for path in modules():
        if top(path) == "cli":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in names, f"{path.relative_to(PACKAGE)} prints"
        assert not any(name.split(".")[0] == "rich" for name in runtime_imports(tree, everywhere=True))
