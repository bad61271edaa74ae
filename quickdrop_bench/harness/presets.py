"""The presets, and where they and the paper's numbers lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import read_bytes, reason_of
from quickdrop_bench.methods import METHODS

SECTIONS = {"class": "table2", "client": "table4", "sample": "table4"}
"""Sections of the presets whose settings of methods suit a level of requests."""

LARGEST = 2**20
"""Bytes of a file of options that is still read."""


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


def preset_contents(preset: str, dataset: str | None, section: str) -> list[dict[str, Any]]:
    """What a preset's files say; later ones win.

    What a data set needs stands above what the preset says of all, and what a section for a table or figure asks for
    above both.

    Raises:
        BadInput: there is no such preset, or its file cannot be read.
    """
    contents = [_content(path) for path in preset_files(preset, dataset)]
    return [*contents, *(content.get(section, {}) for content in contents)]


def preset_values(preset: str, dataset: str | None, section: str) -> dict[str, Any]:
    """The options that a preset sets, see :func:`flat`; errors are those of :func:`preset_contents`."""
    found: dict[str, Any] = {}
    for values in preset_contents(preset, dataset, section):
        found |= flat(values)
    return found


def kept_settings(preset: str, dataset: str) -> dict[str, Any]:
    """What a federation keeps of its preset, for requests on it whatever the preset says later.

    Returns:
        ``preset``, its name, and the settings of methods by section, e.g. ``table2.quickdrop.unlearn_lr``.
    """
    sections = {section: preset_values(preset, dataset, section) for section in SECTIONS.values()}
    own = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {"preset": preset, **{key: value for key, value in own.items() if key.count(".") > 1}}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by key, those of a method's section as ``quickdrop.unlearn_lr``; other sections are left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(value, dict):
            found[key] = value
        elif key in method_sections():
            found |= {f"{key}.{name}": entry for name, entry in value.items()}
    return found


def part(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """What stands in a section of flat options, by the names in it."""
    return {key.removeprefix(f"{section}."): v for key, v in values.items() if key.startswith(f"{section}.")}


def method_sections() -> set[str]:
    """Keys under which a file has the settings of methods."""
    return {name.replace("-", "_") for name in METHODS}


@cache
def _content(path: Path) -> dict[str, Any]:
    try:
        return read_options(path)
    except (OSError, ValueError) as error:
        raise BadInput("benchmarks", f"presets/{path.name}", reason_of(error)) from error


def read_options(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no mapping in UTF-8, or a key stands twice in it.
    """
    try:
        content = _UniqueKeys(read_bytes(path, LARGEST).decode("utf-8")).get_single_data()
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"it is no YAML file ({error.problem}{where})") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no YAML file in UTF-8 ({reason_of(error)})") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no options, as rounds: 2")
    return {str(key): value for key, value in content.items()}


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which only one value could count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, each of whose keys stands in it once."""
        keys = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if keys.count(key.value) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0].value} is given twice", twice[-1].start_mark
            )
        return super().construct_mapping(node, deep)


def paper_values() -> Path:
    """The numbers that the paper publishes, one value a line, accuracies in percent."""
    return benchmarks_dir() / "paper_values.csv"
