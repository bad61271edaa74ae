"""Which code a metric is, so that rows say what measured them: adding or changing one metric re-measures it alone."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from quickdrop_bench.evaluation.metric import METRICS

__all__ = ["identities", "name_of"]

HERE = Path(__file__).parent


def identities() -> dict[str, str]:
    """Every metric's name → ``name@digest`` of its own file and of what that imports from this package."""
    return {name: f"{name}@{_digest(METRICS[name].source)}" for name in METRICS}


def name_of(identity: object) -> str:
    """The name in an identity; empty for what is none, as a row's missing column."""
    return str(identity).split("@")[0] if identity else ""


@cache
def _digest(source: Path) -> str:
    files, waiting = {source}, [source]
    while waiting:
        found = _imported(waiting.pop()) - files
        files |= found
        waiting += found
    contents = (hashlib.sha256(path.read_bytes()).digest() for path in (source, *sorted(files - {source})))
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def _imported(path: Path) -> set[Path]:
    """Files of this package that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = (str(node.module) for node in nodes if isinstance(node, ast.ImportFrom))
    package = __name__.rpartition(".")[0]
    return {HERE / f"{name.removeprefix(package + '.')}.py" for name in modules if name.startswith(f"{package}.")}
