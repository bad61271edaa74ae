"""The parser: command lines, presets and ``--config`` files to options."""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from quickdrop_bench.cli.commands import SUMMARIES, top_parser
from quickdrop_bench.cli.options import (
    add_common_options,
    add_dashboard_options,
    add_evaluate_options,
    add_export_options,
    add_figure_options,
    add_no_options,
    add_report_options,
    add_request_options,
    add_show_options,
    add_sweep_options,
    add_table_options,
    add_train_options,
)
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import file_size
from quickdrop_bench.harness.presets import preset_values, presets
from quickdrop_bench.harness.spec import LETTERS
from quickdrop_bench.methods import METHODS

__all__ = ["COMMANDS", "method_defaults", "options_of", "parse"]

COMMANDS: dict[str, Callable[[ArgumentParser], None]] = {
    "table": add_table_options,
    "figure": add_figure_options,
    "sweep": add_sweep_options,
    "train": add_train_options,
    "unlearn": add_request_options,
    "relearn": add_request_options,
    "evaluate": add_evaluate_options,
    "show": add_show_options,
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
    add_show_options,
    add_export_options,
)
FLAGS = (
    "--iid",
    "--force",
    "--dry-run",
    "--wandb-images",
    "--json",
    "--publish",
    "--resume",
    "--tf32",
    "--recover-log",
)
"""Options without a value."""


class Parser(ArgumentParser):
    """Errors become one sentence instead of usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`BadInput`."""
        raise _as_bad_input(" ".join(str(message).split()).removesuffix("."))


def _as_bad_input(message: str) -> BadInput:
    """Put a parser's message into the form of all others: option, value, what is allowed."""
    if found := re.search(r'key "([\w.]+)": (.*?)\s*(?:Given value type: .*)?(?:Got|Given) value:\s*(.*)$', message):
        key, reason, value = found.groups()
        kinds = [kind.replace("NoneType", "null") for kind in re.findall(r"<class '(\w+)'>", reason)]
        allowed = f"{' or '.join(dict.fromkeys(kinds))} is needed" if kinds else reason.rstrip(". ")
        return BadInput(f"--{key.replace('_', '-')}", value, allowed)
    if found := re.search(r'key "([\w.]+)": (.*)$', message):
        return BadInput(f"--{found[1].replace('_', '-')}", "is not usable", found[2])
    if found := re.search(r"(?:Problems parsing|Unexpected) config: (.*)$", message):
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
    section: str | None = None
    used: Parser | None = None
    commands = parser.add_subcommands(required=True, dest="command")
    for name, options in COMMANDS.items():
        text = SUMMARIES[name]
        sub = Parser(description=text, allow_abbrev=False)
        if argv and argv[0] == name:  # building the options of all commands takes seconds
            options(sub)
            sub.set_defaults(dict(defaults or {}))
            used = sub
        if argv and argv[0] == name and options not in WITHOUT_PRESET:
            with_methods = options in WITH_METHODS
            section = artefact or (_named_artefact(argv) if with_methods else None)
            by_preset = with_methods and _peek(argv, "--protocol") not in LETTERS
            preset = _preset_defaults(argv, section or "", with_methods=by_preset)
            chosen = preset["preset"]
            sub.set_defaults(preset)
            for path in _values(argv, "--config"):
                _check_config(path)
        commands.add_subcommand(name, sub, help=text)
    args = parser.parse_args(list(argv))
    if chosen is not None and args[args.command].preset != chosen:
        raise BadInput("--config", "with the key preset", "give --preset on the command line, before the file is read")
    if used is not None:
        _check_values(used, args[args.command])
        _expand_home(args[args.command])
        if any(_ignores_bound(values) for values in vars(args[args.command]).values()):
            typed = parser.parse_args(list(argv), defaults=False)
            _drop_bounds(args[args.command], typed[args.command])
    own = f"{args.command}{args[args.command].get('number', '')}"
    if artefact is None and chosen is not None and section not in (None, own):
        return parse([*argv, "--preset", chosen], own)  # the number is in a file, or written as 0x2
    return args


def _repeated(node: yaml.Node | None) -> str | None:
    """A key that a mapping has twice, at any depth; YAML's readers take the last value."""
    if not isinstance(node, yaml.CollectionNode):
        return None
    keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    if twice := [key for key in keys if keys.count(key) > 1]:
        return str(twice[0])
    inner = [value for _, value in node.value] if keys else node.value
    return next(filter(None, map(_repeated, inner)), None)


def _check_config(name: str) -> None:
    """Raise :class:`BadInput` unless a configuration file can be read, each of its keys once."""
    try:
        path = Path(name).expanduser()
        file_size(path)  # what can be read only once, as a pipe, would be empty for the parser
        text = path.read_text(encoding="utf-8")
        values, repeated = yaml.safe_load(text), _repeated(yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise BadInput("--config", name, f"it cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput("--config", name, f"it is no YAML file in UTF-8 ({error})") from error
    if not isinstance(values, dict):
        raise BadInput("--config", name, "it holds no options, as rounds: 2")
    if repeated:
        raise BadInput("--config", name, f"the key {repeated} is given twice, and only one value can count")
    if "config" in values:
        raise BadInput("--config", name, "it names another file, and only the command line does")


def _check_values(parser: ArgumentParser, options: Namespace) -> None:
    """Raise :class:`BadInput` where the parser lets pass nothing for a value, or another value for a flag."""
    for action in parser._actions:
        value = options.get(action.dest)
        name = action.option_strings[0] if action.option_strings else action.dest.upper()
        kinds = get_args(getattr(action, "_typehint", None))
        if value is None and action.default not in (None, SUPPRESS) and NoneType not in kinds:
            raise BadInput(name, "null", "a value is needed")
        if action.nargs == 0 and action.default is False and not isinstance(value, bool):
            raise BadInput(name, value, "true or false is needed")


def _expand_home(options: Namespace) -> None:
    """``~`` in paths, which shells leave alone in ``--option=~/x``, and files always."""
    for name, value in vars(options).items():
        if isinstance(value, Path):
            try:
                options[name] = value.expanduser()
            except RuntimeError as error:
                raise BadInput(f"--{name.replace('_', '-')}", value, "there is no such user's home") from error


def _ignores_bound(values: object) -> bool:
    """Whether these are a method's settings with a bound of gradient ascent beside reflection."""
    reflects = isinstance(values, Namespace) and values.get("ascent") == "reflection"
    return reflects and values.get("unlearn_stop_loss") is not None  # type: ignore[attr-defined]


def _drop_bounds(options: Namespace, typed: Namespace) -> None:
    """Take away a preset's bound that reflection ignores; one that was typed stays, and the method refuses it."""
    for name, values in vars(options).items():
        if _ignores_bound(values) and typed.get(f"{name}.unlearn_stop_loss") is None:
            values.unlearn_stop_loss = None


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
        if part.isascii() and part.isdecimal() and (not before.startswith("--") or "=" in before or before in FLAGS):
            return f"{argv[0]}{int(part)}"
    return ""


def _preset_defaults(argv: Sequence[str], artefact: str, *, with_methods: bool) -> dict[str, Any]:
    """The values of the preset's files.

    Args:
        argv: the command line.
        artefact: whose section in the files counts, e.g. ``table4``.
        with_methods: whether the command takes settings of methods from the preset.
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
    return next(reversed(_values(argv, option)), None)


def _values(argv: Sequence[str], option: str) -> list[str]:
    """All values of an option, before the real parser reads them."""
    values = []
    for position, part in enumerate(argv):
        if part == option and position + 1 < len(argv):
            values.append(argv[position + 1])
        elif part.startswith(f"{option}="):
            values.append(part.split("=", 1)[1])
    return values
