"""The source files that a result depends on: what its code imports, directly or not."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]

APART = (
    "__init__.py",
    "core/errors.py",
    "core/files.py",
    "core/registry.py",
    "evaluation/metric.py",
    "harness/callbacks.py",
    "harness/provenance.py",
    "harness/sources.py",
    "harness/federation_spec.py",
    "harness/run_spec.py",
    "store",
)
"""Code that names, keeps and reports results and decides none of them: a change to it retires nothing.

A spec's values are part of the hash themselves, and rows say which metrics they were measured with."""


def dependencies(*roots: Path) -> list[Path]:
    """The package's files that some files import, directly or not, and those files, but for :data:`APART`."""
    return sorted(p for p in _reached(*roots) if not any(p.is_relative_to(PACKAGE / apart) for apart in APART))


def _reached(*roots: Path) -> set[Path]:
    found: set[Path] = set()
    waiting = [root.resolve() for root in roots]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return found


@cache
def source_digest(*roots: Path) -> str:
    """Hash of the :func:`dependencies` of some files, so that changed code reuses nothing."""
    return _digest(dependencies(*roots))


@cache
def metric_digest(source: Path) -> str:
    """Hash of a metric's own file and of those of ``evaluation/`` that it imports, directly or not."""
    return _digest(p for p in _reached(source) if p == source.resolve() or p.parent == PACKAGE / "evaluation")[:12]


def _digest(paths: Iterable[Path]) -> str:
    contents = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256("".join(sorted(contents)).encode()).hexdigest()


@cache
def _imported(path: Path) -> list[Path]:
    """The package's files that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    own = [name.split(".")[1:] for name in names if name.split(".")[0] == PACKAGE.name]
    files = [PACKAGE.joinpath(*parts) for parts in own]
    return [f for base in files for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()]


def digest(values: Mapping[str, Any]) -> str:
    """A short hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
