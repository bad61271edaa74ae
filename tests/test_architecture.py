"""Imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "quickdrop_bench"

LAYERS = [
    {"__main__", "cli"},
    {"tracking"},
    {"reporting", "serving"},
    {"harness"},
    {"methods", "evaluation"},
    {"federation", "store"},
    {"distillation"},
    {"models", "data"},
    {"functional"},
    {"core"},
    {"__init__"},
]
"""From top to bottom; a unit imports from its own or from lower lines, never from above."""

FORBIDDEN = [
    ("methods", "evaluation"),
    ("evaluation", "methods"),
    ("store", "federation"),
    ("federation", "store"),
    ("reporting", "serving"),
    ("serving", "reporting"),
]
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Units of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "quickdrop_bench":
                found.add(parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    unit = unit_of(path)
    assert unit in RANK, f"{unit} has no place in the layers"
    for target in imports(path) - {unit}:
        assert RANK[target] >= RANK[unit], f"{unit} imports {target}, which lies above it"
        assert (unit, target) not in FORBIDDEN


def external(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    return plain | {(n.module or "").split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}


def test_reporting_knows_no_torch() -> None:
    for path in (PACKAGE / "reporting").rglob("*.py"):
        assert not external(path) & {"torch", "lightning"}, path


def test_one_file_knows_wandb() -> None:
    known = {path.relative_to(PACKAGE).as_posix() for path in FILES if "wandb" in external(path)}
    assert known == {"tracking/wandb_logger.py"}


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in external(path)
        assert "torch.load" not in text
        assert "yaml.load(" not in text
        assert text.count("fabric.load(") == text.count("weights_only=True")
