"""What starting costs: few packages, and no heavy import before it is needed."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "numpy", "tokenizers", "transformers", "rich", "jinja2", "huggingface_hub", "PIL")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def best_of(times: int, command: list[str]) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, whippet; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys, whippet.cli.main as main
try:
    main.main(["--help"])
except SystemExit:
    pass
print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("verb", ["demo", "finetune", "plan", "data", "chat", "generate", "serve", "export"])
def test_help_of_each_verb_loads_no_torch(verb: str) -> None:
    code = f"""
import sys, whippet.cli.main as main
try:
    main.main([{verb!r}, "--help"])
except SystemExit as end:
    assert end.code == 0
assert "torch" not in sys.modules
"""
    run(code)


def test_import_and_help_are_quick() -> None:
    bare = best_of(5, [sys.executable, "-c", "pass"])
    assert best_of(5, [sys.executable, "-c", "import whippet"]) - bare < 0.2
    assert best_of(5, [sys.executable, "-m", "whippet", "--help"]) < 0.3


def closure(name: str, seen: set[str]) -> set[str]:
    """Names of all packages that installing ``name`` without extras brings, itself included."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen or key == "torch":
        return seen
    seen.add(key)
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, seen)
    return seen


def test_core_has_at_most_30_packages_besides_torch() -> None:
    packages = closure("whippet", set()) - {"whippet"}
    assert 5 < len(packages) <= 30, sorted(packages)
