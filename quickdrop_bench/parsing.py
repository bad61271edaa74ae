"""The parser: command lines, presets and ``--config`` files to options."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser, Namespace

from quickdrop_bench.commands import SUMMARIES, top_parser
from quickdrop_bench.errors import BadInput
from quickdrop_bench.harness.catalogue import preset_values, presets
from quickdrop_bench.methods import METHODS
from quickdrop_bench.options import (
    add_common_options,
    add_dashboard_options,
    add_evaluate_options,
    add_export_options,
    add_figure_options,
    add_no_options,
    add_report_options,
    add_request_options,
    add_run_name,
    add_sweep_options,
    add_table_options,
    add_train_options,
)

__all__ = ["COMMANDS", "method_defaults", "options_of", "parse"]

COMMANDS: dict[str, Callable[[ArgumentParser], None]] = {
    "table": add_table_options,
    "figure": add_figure_options,
    "sweep": add_sweep_options,
    "train": add_train_options,
    "unlearn": add_request_options,
    "relearn": add_request_options,
    "evaluate": add_evaluate_options,
    "show": add_run_name,
    "export": add_export_options,
    "distribution": add_common_options,
    "report": add_report_options,
    "dashboard": add_dashboard_options,
    "methods": add_no_options,
    "datasets": add_no_options,
    "presets": add_no_options,
}
"""What adds the options of a command."""

WITH_METHODS = (add_table_options, add_figure_options, add_sweep_options)
WITHOUT_PRESET = (
    add_no_options,
    add_report_options,
    add_dashboard_options,
    add_request_options,
    add_evaluate_options,
    add_run_name,
    add_export_options,
)
FLAGS = ("--iid", "--force", "--dry-run", "--wandb-images", "--json", "--publish", "--resume")
"""Options without a value."""


class Parser(ArgumentParser):
    """Errors become one sentence instead of usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`BadInput`."""
        raise _as_bad_input(" ".join(str(message).split()).removesuffix("."))


def _as_bad_input(message: str) -> BadInput:
    """Put a parser's message into the form of all others: option, value, what is allowed."""
    if found := re.search(r'key "([\w.]+)": (.*?)\s*Got value: (.*)$', message):
        key, reason, value = found.groups()
        kinds = re.findall(r"<class '(\w+)'>", reason)
        allowed = f"{' or '.join(dict.fromkeys(kinds))} is needed" if kinds else reason.rstrip(". ")
        return BadInput(f"--{key.replace('_', '-')}", value, allowed)
    if found := re.search(r'key "([\w.]+)": (.*)$', message):
        return BadInput(f"--{found[1].replace('_', '-')}", "is not usable", found[2])
    if found := re.search(r"Problems parsing config: (.*)$", message):
        return BadInput("--config", "is not usable", found[1])
    if found := re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
        return BadInput("command", found[1], f"use one of {found[2]}".replace("'", ""))
    return BadInput("command line", "not understood", message)


def parse(argv: Sequence[str], artefact: str | None = None, defaults: Mapping[str, Any] | None = None) -> Namespace:
    """Parse a command line; the preset sets the defaults that options and ``--config`` files override.

    Args:
        argv: the arguments.
        artefact: whose section of the preset counts; None takes the artefact that the command line names.
        defaults: in place of the preset's, for commands that have none.
    """
    parser = top_parser(Parser)
    chosen: str | None = None
    commands = parser.add_subcommands(required=True, dest="command")
    for name, options in COMMANDS.items():
        text = SUMMARIES[name]
        sub = Parser(description=text, allow_abbrev=False)
        if argv and argv[0] == name:  # building the options of all commands takes seconds
            options(sub)
            sub.set_defaults(dict(defaults or {}))
        if argv and argv[0] == name and options not in WITHOUT_PRESET:
            with_methods = options in WITH_METHODS
            section = artefact or (_named_artefact(argv) if with_methods else "")
            preset = _preset_defaults(argv, section, with_methods=with_methods)
            chosen = preset["preset"]
            sub.set_defaults(preset)
        commands.add_subcommand(name, sub, help=text)
    try:
        args = parser.parse_args(list(argv))
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadInput("--config", _peek(argv, "--config"), "it is no YAML file in UTF-8") from error
    if chosen is not None and args[args.command].preset != chosen:
        raise BadInput("--config", "with the key preset", "give --preset on the command line, before the file is read")
    return args


def options_of(argv: Sequence[str], section: str) -> Namespace:
    """The options of a command line's command, with another section of the preset."""
    args: Namespace = parse(argv, section)
    options: Namespace = args[args.command]
    return options


def _named_artefact(argv: Sequence[str]) -> str:
    """The artefact of a command line, before the real parser reads it: its number is no option's value."""
    if argv[0] == "sweep":
        return "sweep"
    for before, part in pairwise(argv):
        if part.isdigit() and (not before.startswith("--") or "=" in before or before in FLAGS):
            return f"{argv[0]}{part}"
    return ""


def _preset_defaults(argv: Sequence[str], artefact: str, *, with_methods: bool) -> dict[str, Any]:
    """The values of the preset's files.

    Args:
        argv: the command line.
        artefact: whose section in the files counts, e.g. ``table4``.
        with_methods: whether the command takes options of methods; their sections are left out otherwise.
    """
    preset = _peek(argv, "--preset")
    if preset is None:
        preset = "paper" if torch.cuda.is_available() else "quick"
        if not {"-h", "--help"} & set(argv):
            others = " or ".join(f"--preset {name}" for name in presets() if name != preset)
            print(f"preset {preset} (others: {others})", file=sys.stderr)
    return {"preset": preset, **_preset_values(preset, _peek(argv, "--dataset"), artefact, with_methods=with_methods)}


def method_defaults(preset: str, dataset: str, artefact: str) -> dict[str, Any]:
    """The settings of all methods in a preset, as options ``<method>.<field>``.

    Raises:
        BadInput: there is no such preset.
    """
    values = _preset_values(preset, dataset, artefact, with_methods=True)
    return {name: value for name, value in values.items() if "." in name}


def _preset_values(preset: str, dataset: str | None, artefact: str, *, with_methods: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for values in preset_values(preset, dataset, artefact):
        found |= _flat(values, with_methods=with_methods)
    return found


def _flat(values: Mapping[str, Any], *, with_methods: bool) -> dict[str, Any]:
    """Options, and options of methods as ``<method>.<field>``."""
    flat = {key: value for key, value in values.items() if not isinstance(value, dict)}
    if with_methods:
        sections = {name.replace("-", "_") for name in METHODS}
        for section in sections & values.keys():
            flat |= {f"{section}.{name}": entry for name, entry in values[section].items()}
    return flat


def _peek(argv: Sequence[str], option: str) -> str | None:
    """The last value of an option, before the real parser reads it."""
    value = None
    for position, part in enumerate(argv):
        if part == option and position + 1 < len(argv):
            value = argv[position + 1]
        elif part.startswith(f"{option}="):
            value = part.split("=", 1)[1]
    return value
