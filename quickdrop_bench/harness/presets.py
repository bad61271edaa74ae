"""The presets, and where they and the paper's numbers lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.methods import METHODS

__all__ = ["benchmarks_dir", "flat", "paper_values", "preset_files", "preset_values", "presets"]


@cache
def benchmarks_dir() -> Path:
    """The folder ``benchmarks``: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "benchmarks"
    return inside if inside.is_dir() else package.parent / "benchmarks"


def presets() -> list[str]:
    """Names of the presets, the quickest first."""
    known = ("quick", "small", "paper")
    names = {path.stem for path in (benchmarks_dir() / "presets").glob("*.yaml") if "." not in path.stem}
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def preset_files(preset: str, dataset: str | None) -> list[Path]:
    """The configuration files of a preset: ``<preset>.yaml`` and, if there is one, ``<preset>.<dataset>.yaml``.

    Raises:
        BadInput: there is no such preset.
    """
    if preset not in presets():
        raise BadInput("--preset", preset, f"use one of {', '.join(presets())}")
    folder = benchmarks_dir() / "presets"
    files = [folder / f"{preset}.yaml", folder / f"{preset}.{dataset}.yaml"]
    return [path for path in files if os.path.isfile(path)]  # a data set's name may be too long for a file


def preset_values(preset: str, dataset: str | None, section: str) -> dict[str, Any]:
    """What a preset sets, see :func:`flat`.

    What a data set needs stands above what the preset says of all, and what a section for a table or figure asks for
    above both.

    Raises:
        BadInput: there is no such preset.
    """
    contents = [_content(path) for path in preset_files(preset, dataset)]
    found: dict[str, Any] = {}
    for values in (*contents, *(content.get(section, {}) for content in contents)):
        found |= flat(values)
    return found


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by key, those of a method's section as ``quickdrop.unlearn_lr``; other sections are left out."""
    methods = {name.replace("-", "_") for name in METHODS}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(value, dict):
            found[key] = value
        elif key in methods:
            found |= {f"{key}.{name}": entry for name, entry in value.items()}
    return found


@cache
def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def paper_values() -> Path:
    """The numbers that the paper publishes, one value a line, accuracies in percent."""
    return benchmarks_dir() / "paper_values.csv"
