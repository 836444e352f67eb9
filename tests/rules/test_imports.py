"""The house has floors: a file imports only from lower ones, from its own unit, or from the ground."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "whippet"
GROUND = {"errors", "paths", "options"}
FLOORS = {
    "chat": 0, "kernels": 0, "report": 0, "data": 1, "model": 1, "lora": 2, "distributed": 2, "weights": 3,
    "infer": 4, "verify": 4, "train": 5, "guard": 5, "evaluate": 5, "export": 5, "recipe": 6, "serve": 6, "run": 7,
    "bench": 8, "demo": 8, "studio": 8, "cli": 9, "__main__": 10, "__init__": 10,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(dotted: str) -> str:
    return dotted.split(".")[1] if "." in dotted else "__init__"


def imported(path: Path) -> list[tuple[int, str]]:
    """Line and unit of each whippet import in the file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module and node.module.split(".")[0] == "whippet":
                names = [f"whippet.{alias.name}" for alias in node.names] if node.module == "whippet" else [node.module]
                found += [(node.lineno, unit(name)) for name in names if unit(name) != "__version__"]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, unit(a.name)) for a in node.names if a.name.split(".")[0] == "whippet"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for line, other in imported(path):
        if other in (own, "__init__") or other in GROUND:
            continue
        assert own not in GROUND, f"{path}:{line}: the ground imports nothing of ours, but {other}"
        assert other in FLOORS, f"{path}:{line}: {other} has no floor; give it one in this test and in docs/tour.md"
        assert FLOORS[other] < FLOORS[own], f"{path}:{line}: {own} (floor {FLOORS[own]}) imports {other}"


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_package_files_hold_a_docstring_only(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if path.parent != PACKAGE:
        assert len(body) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_file_says_what_it_does(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring at its top"
