"""What the package never contains: unpickling, evaluation of text, remote code, shells, broad handlers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "whippet"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch.serialization"}
ORACLES = {"transformers", "peft", "accelerate", "trl", "unsloth", "datasets"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {("torch", "load"), ("torch", "save"), ("os", "system"), ("os", "popen"), ("numpy", "load"), ("np", "load")}


ORIGINALS = PACKAGE / "weights" / "meta.py"
"""Meta's own files are archives of torch's. This one file may open them, by torch's reader that runs nothing, and write
them."""


def complaints(tree: ast.AST, path: Path | None = None) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name in MODULES | ORACLES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in MODULES or node.module.split(".")[0] in ORACLES:
                found.append(f"{node.lineno}: from {node.module} import")
        elif isinstance(node, ast.Call):
            name = node.func
            if isinstance(name, ast.Name) and name.id in CALLS:
                found.append(f"{node.lineno}: {name.id}()")
            owner = name.value.id if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name) else ""
            if isinstance(name, ast.Attribute) and (owner, name.attr) in METHODS and not _granted(node, path):
                found.append(f"{node.lineno}: {owner}.{name.attr}()")
            for keyword in node.keywords:
                if keyword.arg in {"trust_remote_code", "shell", "allow_pickle"}:
                    found.append(f"{node.lineno}: {keyword.arg}=")
        elif isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
            )
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if broad and not reraises:
                found.append(f"{node.lineno}: a broad except that swallows")
    return found


def _granted(call: ast.Call, path: Path | None) -> bool:
    """Whether ``path`` may make this call of torch.load or torch.save."""
    if path != ORIGINALS or not isinstance(call.func, ast.Attribute):
        return False
    safe = any(
        keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in call.keywords
    )
    return call.func.attr == "save" or (call.func.attr == "load" and safe)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_forbidden(path: Path) -> None:
    assert complaints(ast.parse(path.read_text(encoding="utf-8")), path) == []


@pytest.mark.parametrize("more", ["", ", weights_only=False", ", weights_only=safe", ", mmap=True"])
def test_one_file_may_open_an_archive_and_only_safely(more: str) -> None:
    assert complaints(ast.parse(f"torch.load(path{more})"), ORIGINALS)
    safe = ast.parse("torch.load(path, weights_only=True)\ntorch.save(x, path)")
    assert complaints(safe, ORIGINALS) == [] and len(complaints(safe, PACKAGE / "weights" / "hf.py")) == 2
    assert complaints(ast.parse("os.system('x')"), ORIGINALS)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "torch.load('x')", "eval('1')", "f(trust_remote_code=False)",
        "subprocess.run('x', shell=True)", "import transformers", "from peft import x",
        "try:\n    f()\nexcept Exception:\n    pass",
    ],
)  # fmt: skip
def test_the_rule_can_fail(code: str) -> None:
    assert complaints(ast.parse(code))
